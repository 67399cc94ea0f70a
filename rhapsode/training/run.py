"""A whole run, from texts to a model folder: prepare, plan, train, finish. `rhapsode train TEXT...` calls `train`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rhapsode
from rhapsode.base.errors import DamagedError, InputError, MismatchError, NotFiniteError
from rhapsode.base.files import new_folder, read_json, write_json
from rhapsode.base.machine import peak_flops, prepare, processor
from rhapsode.base.settings import given, overridden, read_yaml, validated
from rhapsode.corpus.corpus import Corpus
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.inference.language_model import LanguageModel
from rhapsode.model.decoder import Decoder
from rhapsode.model.folder import load_model
from rhapsode.model.initialization import initialise
from rhapsode.tokenizer.store import TokenStore, build_token_store
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer
from rhapsode.training.batches import Windows
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
from rhapsode.training.loop import Trainer, Validation
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.planner import DEFAULTS, Plan, Text, choose_tokenizer, compressed, make_plan
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.settings import UNSET, TrainSettings

SAMPLE_TOKENS = 120
SECONDS_AFTER_LAST_STEP = 2.5
"""Copying the best model and writing the report."""

MAY_STAY_OPEN = ("minutes", "memory", "tokenizer_folder")
"""Settings that mean something when they are None; every other one of a run is resolved."""

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
            job = _prepare(RunFolder(Path(folder)), texts, settings, started, reading)
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
            job = _reopen(run, texts, settings, reading)
        else:
            _refuse_own_texts(run, [*texts, *reading.get("validation", ()), settings.tokenizer_folder or "-"])
            with run.making_way():
                job = _prepare(run, texts, settings, started, reading)
                job.plan_written()
        show_plan(job.plan)
        return _carry_out(job, started)


@dataclass
class _Job:
    """Everything training needs, prepared or read back."""

    run: RunFolder
    corpus: Corpus
    tokenizer: Tokenizer
    train_tokens: TokenStore
    validation_tokens: TokenStore
    settings: TrainSettings
    plan: Plan
    device: torch.device

    def plan_written(self) -> None:
        write_json(self.run.plan, self.plan.as_json())
        self.run.write_settings(asdict(self.settings))

    def windows(self) -> Windows:
        """The training text as the loop reads it."""
        return Windows(self.train_tokens.tokens, self.settings.context_length, self.settings.seed)

    def validation(self) -> Validation:
        """The first tokens of the validation text, up to the number set.

        Raises:
            InputError: there are too few to predict any.
        """
        tokens = np.array(self.validation_tokens.tokens[: self.settings.validation_tokens])  # (validation_tokens,)
        bytes_of_text = len(self.tokenizer.decode(tokens).encode("utf-8"))
        if len(tokens) < 2 or not bytes_of_text:
            raise InputError(
                f"the text to validate on has {len(tokens)} tokens, too few to predict any",
                todo="Give more text, a larger --validation-fraction, or more --validation-tokens.",
            )
        return Validation(tokens, bytes_of_text)

    def identity(self) -> dict[str, str]:
        """What the checkpoints of this run belong to."""
        chosen = {field.name: getattr(self.settings, field.name) for field in fields(self.settings)}
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode("utf-8")).hexdigest()
        return {
            "settings": digest,
            "data": self.train_tokens.fingerprint,
            "corpus": self.corpus.fingerprint,
            "tokenizer": self.tokenizer.digest,
        }

    def provenance(self) -> dict[str, Any]:
        """What the model folders say of where they come from."""
        return {
            "made_by": f"rhapsode {rhapsode.__version__}",
            "objective": "next token",
            "data": {"corpus": self.corpus.fingerprint, "tokens": self.train_tokens.fingerprint},
            "tokenizer": {"kind": self.tokenizer.kind, "sha256": self.tokenizer.digest},
            "settings": {name: value for name, value in asdict(self.settings).items() if not isinstance(value, Path)},
            "versions": versions(),
            "parent": None,
        }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import numpy
    import tokenizers

    return {
        "rhapsode": rhapsode.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
    }


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


def _read_corpus(run: RunFolder, texts: Sequence[str], reading: dict[str, Any]) -> Corpus:
    if len(texts) == 1 and texts[0] != "-" and Corpus.is_corpus(Path(texts[0])):
        if reading:
            raise InputError(
                f"{', '.join(sorted(reading))}: a prepared corpus has been read already",
                where=texts[0],
                todo="Give these to `rhapsode corpus`.",
            )
        return Corpus.open(Path(texts[0]))
    return prepare_corpus(texts, run.corpus, force=True, **reading)


def _prepare(
    run: RunFolder, texts: Sequence[str], settings: TrainSettings, started: float, reading: dict[str, Any]
) -> _Job:
    """Corpus, tokenizer, token stores and plan of a new run."""
    device = prepare(settings.device or "auto", settings.threads)
    minutes = settings.minutes or (UNSET if settings.steps else 10.0)
    settings = overridden(settings, TrainSettings(minutes=minutes, threads=torch.get_num_threads()))
    run.say(f"Reading {', '.join(texts)}")
    corpus = _read_corpus(run, texts, reading)
    kind, size, reason = choose_tokenizer(settings, corpus.bytes("train"), minutes or 10.0)
    if settings.tokenizer_folder:
        tokenizer = Tokenizer.load(settings.tokenizer_folder)
        reason = f"read from {settings.tokenizer_folder}"
    else:
        tokenizer = train_tokenizer((piece for piece, _ in corpus.pieces("train")), kind, size or None)
    if tokenizer.end_of_text_id is None or tokenizer.padding_id is None:
        raise InputError("has no end-of-text or padding token", where=str(settings.tokenizer_folder))
    tokenizer.save(run.tokenizer)
    stores = build_token_store(corpus, tokenizer, run.tokens)
    sample = next(piece for piece, _ in corpus.pieces("train"))
    text = Text(
        tokens=len(stores.train.tokens),
        bytes=corpus.bytes("train"),
        validation_tokens=len(stores.validation.tokens),
        compressed_bits_per_byte=compressed(sample[:200_000]),
    )
    settings = overridden(overridden(DEFAULTS, settings), TrainSettings(vocabulary_size=tokenizer.vocabulary_size))
    if not settings.tokenizer:
        settings = overridden(settings, TrainSettings(tokenizer=kind))
    seconds = None
    if minutes:
        seconds = 60 * minutes - (time.time() - started) - SECONDS_AFTER_LAST_STEP
        if seconds < 1:
            raise InputError(
                f"reading and preparing the text took {time.time() - started:.0f} s; nothing is left of the "
                f"{minutes:g} minutes to train in",
                todo="Ask for more --minutes, or prepare the text first with `rhapsode corpus`.",
            )
    plan = make_plan(settings, text, reason, device, seconds)
    context = plan.settings.context_length
    if plan.settings.sample_prompt is UNSET:
        prompt = next(piece for piece, _ in corpus.pieces("validation"))[:24].rpartition(" ")[0]
        while len(tokenizer.encode(prompt)) > context // 2:
            prompt = prompt[:-1]
        plan = plan.with_settings(sample_prompt=prompt)
    elif (length := len(tokenizer.encode(plan.settings.sample_prompt))) > context:
        raise InputError(f"has {length} tokens; the model's context has {context}", where="--sample-prompt")
    job = _Job(run, corpus, tokenizer, stores.train, stores.validation, plan.settings, plan, device)
    job.windows()  # texts that are too short are refused before there is a run
    job.validation()
    return job


def _reopen(run: RunFolder, texts: Sequence[str], settings: TrainSettings, reading: dict[str, Any]) -> _Job:
    """An existing run as it was planned.

    Raises:
        MismatchError: what is given now differs from what the run was made with; the message lists the differences.
    """
    saved = validated(TrainSettings, read_yaml(run.settings), str(run.settings))
    if missing := [name for name, value in asdict(saved).items() if value is None and name not in MAY_STAY_OPEN]:
        raise DamagedError(f"a value is missing for {', '.join(missing)}", where=str(run.settings))
    if reading and not texts:
        raise InputError(
            f"{', '.join(sorted(reading))}: no text is read, as none was given",
            todo="Name the texts of the run again, or leave these out.",
        )
    differences = [
        f"{name} was {getattr(saved, name)} and is {value} now"
        for name, value in given(settings).items()
        if getattr(saved, name) != value and name not in ("tokenizer_folder", "threads", "device")
    ]
    if not Corpus.is_corpus(run.corpus) and not texts:
        raise InputError("its corpus lies elsewhere", where=str(run.path), todo="Name the corpus again.")
    corpus = Corpus.open(run.corpus) if Corpus.is_corpus(run.corpus) else Corpus.open(Path(texts[0]))
    tokenizer = Tokenizer.load(run.tokenizer)
    if texts:
        with tempfile.TemporaryDirectory(prefix="rhapsode-compare-") as folder:
            now = _read_corpus(RunFolder(Path(folder)), texts, reading)
            if now.fingerprint != corpus.fingerprint:
                differences.append(
                    f"the text had {corpus.bytes('train'):,} bytes for training with fingerprint "
                    f"{corpus.fingerprint[:12]} and has {now.bytes('train'):,} with {now.fingerprint[:12]} now"
                )
    if settings.tokenizer_folder and (other := Tokenizer.load(settings.tokenizer_folder)).digest != tokenizer.digest:
        differences.append(f"the tokenizer was {tokenizer.digest[:12]} and is {other.digest[:12]} now")
    if differences:
        raise MismatchError(
            f"this run was made otherwise: {'; '.join(differences)}",
            where=str(run.path),
            todo="Resume it as it was, or start another run with --out.",
        )
    if settings.threads and settings.threads != saved.threads:
        run.say(f"Computing with {settings.threads} threads, not {saved.threads}: the last bits will differ.")
    train_tokens, validation_tokens = (
        TokenStore.open(run.tokens / split, tokenizer=tokenizer, corpus=corpus) for split in ("train", "validation")
    )
    for store in (train_tokens, validation_tokens):
        store.verify()
    plan = Plan.from_json(run.plan, saved, tokenizer.vocabulary_size)
    device = prepare(settings.device or saved.device, settings.threads or saved.threads)
    return _Job(run, corpus, tokenizer, train_tokens, validation_tokens, saved, plan, device)


def _carry_out(job: _Job, started: float) -> TrainResult:
    """Train a job from where it stands to its end, and put the model in place."""
    run, settings, identity = job.run, job.settings, job.identity()
    found = _checkpoint_to_resume(job, identity)
    model = Decoder(job.plan.config).to(job.device)
    initialise(model, settings.seed)
    optimizers = Optimizers(model, settings)
    state = FRESH if found is None else _restore(found, model, optimizers)
    resumed_from = None if found is None else state.step
    seconds = 60 * settings.minutes if job.plan.timed else None
    horizon = Horizon(run.horizon, settings.steps, seconds, SECONDS_AFTER_LAST_STEP)
    peak = peak_flops(job.device)
    writer = LanguageModel(model, job.tokenizer)
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
        command=" ".join(Path(word).name if index == 0 else word for index, word in enumerate(sys.argv)),
        resumed_from=resumed_from,
    )
    trainer = Trainer(
        model=model,
        tokenizer=job.tokenizer,
        windows=job.windows(),
        validation=job.validation(),
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
        draw_sample=lambda prompt, temperature: (
            writer.generate(prompt, temperature=temperature, max_new_tokens=SAMPLE_TOKENS, seed=settings.seed).text
        ),
        gradient=Gradient(
            model,
            torch.compile(model.loss) if settings.compile else None,
            workers=workers_for(job.device, settings.compile, torch.get_num_threads()),
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


def _checkpoint_to_resume(job: _Job, identity: dict[str, str]) -> Path | None:
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


def _difference(name: str, was: str, now: str, folder: Path, job: _Job) -> str:
    """How what a checkpoint belongs to differs from what is here now, setting by setting where it is the settings."""
    if name == "settings":
        then, present = read_json(folder / "rhapsode.json")["settings"], job.provenance()["settings"]
        differences = [
            f"{key} was {then.get(key)} and is {value} now" for key, value in present.items() if then.get(key) != value
        ]
        if differences:
            return "; ".join(differences)
    return f"its {name} was {was[:12]} and is {now[:12]} now"


def _restore(folder: Path, model: Decoder, optimizers: Optimizers) -> State:
    """Put a checkpoint into model and optimizers."""
    state, tensors = load_state(folder)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), load_model(folder).parameters(), strict=True):
            ours.copy_(theirs)
    optimizers.load_state(tensors)
    return state


def _finish(job: _Job, trainer: Trainer, reason: str) -> None:
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


def _put_model(job: _Job, trainer: Trainer) -> None:
    """RUN/model becomes the best checkpoint's model; that of now, where there is no best one or it is damaged."""
    run, state = job.run, trainer.state
    best = run.checkpoints / checkpoint_name(state.best_step)
    try:
        verify_folder(best)
        whole = True
    except DamagedError:
        whole = False
        if state.best_loss is not None:
            run.say(f"{best.name}, the best checkpoint, is missing or damaged: the model is that of step {state.step}.")
    with disk_errors(), new_folder(run.model, replace=True) as temporary:
        if whole:
            for file in sorted(best.iterdir()):
                if file.name not in (OPTIMIZER, STATE, MANIFEST):
                    shutil.copyfile(file, temporary / file.name)
        else:
            trainer.write_model(temporary)
