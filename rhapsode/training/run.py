"""A whole run, from texts to a model folder: prepare, plan, train, finish. `rhapsode train TEXT...` calls `train`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rhapsode.base.errors import DamagedError, InputError, MismatchError, NotFiniteError
from rhapsode.base.files import new_folder, read_json
from rhapsode.base.machine import peak_flops, processor
from rhapsode.base.settings import given, validated
from rhapsode.inference.language_model import LanguageModel
from rhapsode.model.folder import load_model
from rhapsode.model.initialization import initialise
from rhapsode.model.model import Model, new_model
from rhapsode.training.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    State,
    checkpoint_name,
    checkpoints,
    disk_errors,
    load_state,
    newest_good,
    verify_folder,
)
from rhapsode.training.gradient import Gradient, workers_for
from rhapsode.training.horizon import Horizon
from rhapsode.training.job import Job, versions
from rhapsode.training.loop import Trainer
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.planner import Plan
from rhapsode.training.preparation import SECONDS_AFTER_LAST_STEP, prepare_job, reopen_job
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.samples import write_sample
from rhapsode.training.settings import TrainSettings

FRESH = State(
    step=0,
    tokens=0,
    seconds=0.0,
    best_loss=None,
    best_bits_per_byte=None,
    best_step=0,
    last_loss=None,
    evaluations_since_best=0,
)
"""Where a new run stands."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    """The run folder."""
    reason: str
    """Why it ended: "done", "validation turned up", "SIGINT", "SIGTERM", or "planned" after a dry run."""
    plan: Plan
    state: State | None
    """Where the loop stood at the end; None after a dry run."""


def train(
    texts: Sequence[str],
    settings: TrainSettings | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    started: float | None = None,
    show_plan: Callable[[Plan], None] = lambda plan: None,
    **reading: Any,
) -> TrainResult:
    """Train a language model on texts.

    Args:
        texts: files, folders, globs, `-`, or one prepared corpus; none with `resume`, to take the run's own.
        settings: what was chosen; the planner chooses the rest.
        out: the run folder; `runs/NAME` after the first text unless given.
        resume: go on with the run in `out`; what is given besides must agree with it.
        force: replace the run in `out`.
        dry_run: stop after the plan, leaving nothing.
        started: `time.time()` when the command began; the minutes count from there.
        show_plan: called with the plan before training begins.
        reading: further arguments of `prepare_corpus`: validation, text_field, separator, skip_bad, licence, ...

    Raises:
        InputError: the texts, the settings or the run folder will not do.
        NotFiniteError: training met a value that is not a number.
    """
    started = time.time() if started is None else started
    settings = validated(TrainSettings, given(settings or TrainSettings()), "settings")
    run = RunFolder(out or Path("runs") / _name_of(texts))
    if resume and (force or dry_run):
        raise InputError(f"--resume goes on with a run; --{'force' if force else 'dry-run'} does not go with it")
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="rhapsode-plan-") as folder:
            job = prepare_job(RunFolder(Path(folder)), texts, settings, started, reading)
            show_plan(job.plan)
            return TrainResult(run.path, "planned", job.plan, None)
    if not run.begun and run.path.exists() and any(run.path.iterdir()):
        raise InputError("is not empty and not a run", where=str(run.path), todo="Choose another folder with --out.")
    if run.exists and not (resume or force):
        raise InputError(
            "a run is already here",
            where=str(run.path),
            todo="Go on with it by --resume, replace it by --force, or choose another folder with --out.",
        )
    if not texts and not (resume and run.exists):
        raise InputError("no text was given", todo="Name files, folders or a prepared corpus.")
    with run.locked():
        for name in run.remove_leftovers():
            run.say(f"Removed {name}, left by a process that was cut short.")
        if run.exists and resume:
            job = reopen_job(run, texts, settings, reading)
        else:
            _refuse_own_texts(run, [*texts, *reading.get("validation", ()), settings.tokenizer_folder or "-"])
            with run.making_way():
                job = prepare_job(run, texts, settings, started, reading)
                job.plan_written()
        show_plan(job.plan)
        return _carry_out(job, started)


def _name_of(texts: Sequence[str]) -> str:
    first = texts[0] if texts and texts[0] != "-" else "text"
    name = Path(first).name.split(".")[0] or "text"
    return "".join(character if character.isalnum() or character in "-_" else "-" for character in name)


def _refuse_own_texts(run: RunFolder, texts: Sequence[str | Path]) -> None:
    """A run must not be replaced by one that reads what it wrote."""
    for text in texts:
        if Path(os.path.realpath(text)).is_relative_to(os.path.realpath(run.path)):
            raise InputError(
                "lies in the run folder itself",
                where=str(text),
                todo="Copy it elsewhere first, or choose another folder with --out.",
            )


def _carry_out(job: Job, started: float) -> TrainResult:
    """Train a job from where it stands to its end, and put the model in place."""
    run, settings, identity = job.run, job.settings, job.identity()
    found = _checkpoint_to_resume(job, identity)
    model = new_model(job.plan.config).to(job.device)
    initialise(model, settings.seed)
    optimizers = Optimizers(model, settings)
    state = FRESH if found is None else _restore(found, model, optimizers)
    resumed_from = None if found is None else state.step
    seconds = 60 * settings.minutes if job.plan.timed else None
    horizon = Horizon(run.horizon, settings.steps, seconds, SECONDS_AFTER_LAST_STEP)
    peak = peak_flops(job.device)
    writer = LanguageModel(model, job.tokenizer)
    writer.use_kernels = False  # a training does not wait until they are compiled
    run.record(
        "start",
        step=state.step,
        seconds=state.seconds,
        time=time.time(),
        versions=versions(),
        machine={
            "name": processor(),
            "system": platform.platform(),
            "device": str(job.device),
            "threads": torch.get_num_threads(),
            "peak_flops": peak,
        },
        parameters=job.plan.config.parameters,
        flops_per_token=job.plan.config.training_flops_per_token(settings.context_length),
        command=" ".join((Path(sys.argv[0]).name.replace("__main__.py", "rhapsode"), *sys.argv[1:])),
        resumed_from=resumed_from,
    )
    trainer = Trainer(
        model=model,
        tokenizer=job.tokenizer,
        objective=job.objective(),
        settings=settings,
        horizon=horizon,
        optimizers=optimizers,
        run=run,
        state=state,
        device=job.device,
        peak_flops=peak,
        identity=identity,
        provenance=job.provenance(),
        started=started,
        saved_step=resumed_from,
        draw_sample=lambda prompt, temperature: write_sample(writer, prompt, temperature, settings.seed),
        gradient=Gradient(
            model,
            torch.compile(model.loss) if settings.compile else None,
            workers=workers_for(job.device, settings.compile, torch.get_num_threads()),
            **({"label_smoothing": settings.label_smoothing} if settings.kind == "encoder-decoder" else {}),
        ),
    )
    with trainer.interruption.watched(run.say):
        try:
            reason = trainer.train()
        except NotFiniteError as error:
            run.say(error.message, quiet=True)
            run.record("end", **trainer.where(), reason="not finite", message=error.message)
            raise
        finally:
            trainer.close()
        _finish(job, trainer, reason)
    return TrainResult(run.path, reason, job.plan, trainer.state)


def _checkpoint_to_resume(job: Job, identity: dict[str, str]) -> Path | None:
    """The newest good checkpoint of the run, if it was begun before; what the records say beyond it is cut off.

    Raises:
        MismatchError: it belongs to other data, another tokenizer or other settings.
    """
    run, told = job.run, list[str]()
    if not run.metrics.exists() and not checkpoints(run.checkpoints):
        return None
    found = newest_good(run.checkpoints, told.append)
    if found is not None:
        folder, was = found
        for name, value in identity.items():
            if was.get(name) != value:
                raise MismatchError(
                    _difference(name, str(was.get(name)), value, folder, job),
                    where=str(folder),
                    todo="Resume the run as it was, or start another with --out.",
                )
        step = load_state(folder)[0].step
        told.append(f"Going on from {folder.name}.")
    else:
        step = -1
        told.append("There is no good checkpoint: training begins again.")
    run.cut_records(step)
    for message in told:
        run.say(message)
    for message in told[:-1]:
        run.record("warning", step=max(0, step), message=message)
    return None if found is None else found[0]


def _difference(name: str, was: str, now: str, folder: Path, job: Job) -> str:
    """How what a checkpoint belongs to differs from what is here now, setting by setting where it is the settings."""
    if name == "settings":
        then, present = read_json(folder / "rhapsode.json")["settings"], job.provenance()["settings"]
        differences = [
            f"{key} was {then.get(key)} and is {value} now" for key, value in present.items() if then.get(key) != value
        ]
        if differences:
            return "; ".join(differences)
    return f"its {name} was {was[:12]} and is {now[:12]} now"


def _restore(folder: Path, model: Model, optimizers: Optimizers) -> State:
    """Put a checkpoint into model and optimizers."""
    state, tensors = load_state(folder)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), load_model(folder).parameters(), strict=True):
            ours.copy_(theirs)
    optimizers.load_state(tensors)
    return state


def _finish(job: Job, trainer: Trainer, reason: str) -> None:
    """Put the best model in place as RUN/model, and record the end.

    Raises:
        InputError: the disk is full; the checkpoints are still there.
    """
    run, state = job.run, trainer.state
    go_on = f"`rhapsode train --resume --out {run.path}` goes on from "
    go_on += "the beginning." if trainer.saved_step is None else f"step {trainer.saved_step:,}."
    try:
        _put_model(job, trainer)
    except OSError as error:
        what = f"the model could not be written ({error.strerror or error})"
        run.record("end", **trainer.where(), reason="not saved", message=f"{what}. {go_on}")
        raise InputError(what, where=str(run.model), todo=f"Make space on the disk; then {go_on}") from None
    saved = "saved" if trainer.saved_step == state.step else "not saved"
    message = {
        "done": f"Finished after {state.step:,} steps.",
        "validation turned up": f"Stopped at step {state.step:,}: the validation loss had turned up for good.",
    }.get(reason, f"Stopped by {reason} at step {state.step:,}, {saved}. {go_on}")
    run.record(
        "end",
        **trainer.where(),
        reason=reason,
        message=message,
        best_step=state.best_step,
        loss=state.best_loss,
        bits_per_byte=state.best_bits_per_byte,
    )
    run.say(message)


def _put_model(job: Job, trainer: Trainer) -> None:
    """RUN/model becomes the best checkpoint's model; that of now, where there is no best one or it is damaged.

    Where the run averages, it becomes the mean of the last checkpoints.
    """
    run, state = job.run, trainer.state
    best = run.checkpoints / checkpoint_name(state.best_step)
    averaged = job.settings.average_checkpoints > 1
    try:
        verify_folder(best)
        whole = True
    except DamagedError:
        whole = False
        if state.best_loss is not None and not averaged:
            run.say(f"{best.name}, the best checkpoint, is missing or damaged: the model is that of step {state.step}.")
    with disk_errors(), new_folder(run.model, replace=True) as temporary:
        if averaged:
            _average(run, trainer.model, job.settings.average_checkpoints)
            trainer.write_model(temporary)
        elif whole:
            for file in sorted(best.iterdir()):
                if file.name not in (OPTIMIZER, STATE, MANIFEST):
                    shutil.copyfile(file, temporary / file.name)
        else:
            trainer.write_model(temporary)


def _average(run: RunFolder, model: Model, count: int) -> None:
    """Put the mean of the weights of the last good checkpoints into a model (Vaswani et al. 2017, section 6.1)."""
    good: list[Path] = []
    for folder in reversed(checkpoints(run.checkpoints)):
        try:
            verify_folder(folder)
        except DamagedError:
            continue
        good.append(folder)
        if len(good) == count:
            break
    if not good:
        return
    run.say(f"The model is the mean of {len(good)} checkpoints: {', '.join(folder.name for folder in reversed(good))}.")
    with torch.no_grad():
        for number, folder in enumerate(good, start=1):
            for mean, theirs in zip(model.parameters(), load_model(folder).parameters(), strict=True):
                if number == 1:
                    mean.copy_(theirs)
                else:
                    mean.lerp_(theirs.to(mean.device), 1 / number)
