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

import torch

import rhapsode
from rhapsode.base.errors import InputError, MismatchError, NotFiniteError
from rhapsode.base.files import new_folder, write_json
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
    load_state,
    newest_good,
    remove_leftovers,
    verify_folder,
)
from rhapsode.training.horizon import Horizon
from rhapsode.training.loop import Trainer, Validation
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.planner import DEFAULTS, Plan, Text, choose_tokenizer, compressed, make_plan
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.settings import UNSET, TrainSettings

SAMPLE_TOKENS = 120
SECONDS_AFTER_LAST_STEP = 2.5
"""Copying the best model and writing the report."""


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
    settings = settings or TrainSettings()
    run = RunFolder(out or Path("runs") / _name_of(texts))
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="rhapsode-plan-") as folder:
            job = _prepare(RunFolder(Path(folder)), texts, settings, started, reading)
            show_plan(job.plan)
            return TrainResult(run.path, "planned", job.plan, None)
    if run.exists and not (resume or force):
        raise InputError(
            "a run is already here",
            where=str(run.path),
            todo="Go on with it by --resume, replace it by --force, or choose another folder with --out.",
        )
    if not texts and not (resume and run.exists):
        raise InputError("no text was given", todo="Name files, folders or a prepared corpus.")
    if not run.begun and run.path.exists() and any(run.path.iterdir()):
        raise InputError("is not empty and not a run", where=str(run.path), todo="Choose another folder with --out.")
    with run.locked():
        if run.exists and resume:
            job = _reopen(run, texts, settings, reading)
        else:
            _clear(run)
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


def _clear(run: RunFolder) -> None:
    """Delete what a run wrote, and nothing else that may be in its folder."""
    for path in (run.metrics, run.samples, run.log, run.plan, run.horizon, run.report, run.settings):
        path.unlink(missing_ok=True)
    for folder in (run.corpus, run.tokenizer, run.tokens, run.checkpoints, run.model, run.tensorboard):
        shutil.rmtree(folder, ignore_errors=True)
    run.checkpoints.mkdir(exist_ok=True)


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
    settings = overridden(settings, TrainSettings(minutes=minutes))
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
    if plan.settings.sample_prompt is UNSET:
        prompt = next(piece for piece, _ in corpus.pieces("validation"))[:24].rpartition(" ")[0]
        plan = plan.with_settings(sample_prompt=prompt)
    return _Job(run, corpus, tokenizer, stores.train, stores.validation, plan.settings, plan, device)


def _reopen(run: RunFolder, texts: Sequence[str], settings: TrainSettings, reading: dict[str, Any]) -> _Job:
    """An existing run as it was planned.

    Raises:
        MismatchError: what is given now differs from what the run was made with; the message lists the differences.
    """
    saved = validated(TrainSettings, read_yaml(run.settings), str(run.settings))
    differences = [
        f"{name} was {getattr(saved, name)} and is {value} now"
        for name, value in given(settings).items()
        if getattr(saved, name) != value and name not in ("tokenizer_folder", "sample_prompt", "threads", "device")
    ]
    if not Corpus.is_corpus(run.corpus) and not texts:
        raise InputError("its corpus lies elsewhere", where=str(run.path), todo="Name the corpus again.")
    corpus = Corpus.open(run.corpus) if Corpus.is_corpus(run.corpus) else Corpus.open(Path(texts[0]))
    tokenizer = Tokenizer.load(run.tokenizer)
    stores = TokenStore.open(run.tokens / "train"), TokenStore.open(run.tokens / "validation")
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
    plan = Plan.from_json(run.plan, saved, tokenizer.vocabulary_size)
    device = prepare(settings.device or saved.device, settings.threads or saved.threads)
    return _Job(run, corpus, tokenizer, stores[0], stores[1], saved, plan, device)


def _carry_out(job: _Job, started: float) -> TrainResult:
    """Train a job from where it stands to its end, and put the model in place."""
    run, settings, identity = job.run, job.settings, job.identity()
    for name in remove_leftovers(run.checkpoints) + remove_leftovers(run.path):
        run.say(f"Removed {name}, left by a save that was cut short.")
    model = Decoder(job.plan.config).to(job.device)
    initialise(model, settings.seed)
    optimizers = Optimizers(model, settings)
    state = State(step=0, tokens=0, seconds=0.0, best_loss=None, best_step=0, evaluations_since_best=0)
    resumed_from = None
    if run.metrics.exists():
        state, resumed_from = _restore(job, model, optimizers, state, identity)
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
        windows=Windows(job.train_tokens.tokens, settings.context_length, settings.seed),
        validation=_validation(job),
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
        draw_sample=lambda prompt, temperature: (
            writer.generate(prompt, temperature=temperature, max_new_tokens=SAMPLE_TOKENS, seed=settings.seed).text
        ),
        forward_loss=torch.compile(model.loss) if settings.compile else model.loss,
    )
    try:
        reason = trainer.train()
    except NotFiniteError as error:
        run.say(error.message, quiet=True)
        run.record(
            "end", step=trainer.state.step, seconds=trainer.elapsed(), reason="not finite", message=error.message
        )
        raise
    _finish(job, trainer, reason)
    return TrainResult(run.path, reason, job.plan, trainer.state)


def _restore(
    job: _Job, model: Decoder, optimizers: Optimizers, fresh: State, identity: dict[str, str]
) -> tuple[State, int | None]:
    """Put the newest good checkpoint into model and optimizers; from the beginning if there is none."""
    run = job.run
    folder = newest_good(run.checkpoints, lambda text: run.say(text))
    if folder is None:
        run.say("There is no good checkpoint: training begins again.")
        run.cut_records(-1)
        return fresh, None
    found = verify_folder(folder)
    for name, value in identity.items():
        if found.get(name) != value:
            raise MismatchError(
                f"its {name} was {str(found.get(name))[:12]} and is {value[:12]} now",
                where=str(folder),
                todo="Resume the run as it was, or start another with --out.",
            )
    state, tensors = load_state(folder)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), load_model(folder).parameters(), strict=True):
            ours.copy_(theirs)
    optimizers.load_state(tensors)
    for later in checkpoints(run.checkpoints):
        if later.name > folder.name:
            shutil.rmtree(later, ignore_errors=True)
    run.cut_records(state.step)
    run.say(f"Going on from {folder.name}.")
    return state, state.step


def _validation(job: _Job) -> Validation:
    """The first tokens of the validation text, up to the number set."""
    tokens = job.validation_tokens.tokens[: job.settings.validation_tokens]
    return Validation(tokens, len(job.tokenizer.decode(tokens).encode("utf-8")))


def _finish(job: _Job, trainer: Trainer, reason: str) -> None:
    """Put the best model in place as RUN/model, and record the end."""
    run, state = job.run, trainer.state
    best = run.checkpoints / checkpoint_name(state.best_step)
    with new_folder(run.model, replace=True) as temporary:
        if best.is_dir():
            for file in sorted(best.iterdir()):
                if file.name not in (OPTIMIZER, STATE, MANIFEST):
                    shutil.copyfile(file, temporary / file.name)
        else:
            trainer.write_model(temporary)
    found = trainer.last_evaluation
    message = {
        "done": f"Finished after {state.step:,} steps.",
        "validation turned up": f"Stopped at step {state.step:,}: the validation loss had turned up for good.",
    }.get(reason, f"Stopped by {reason} at step {state.step:,}; saved. `--resume` goes on from there.")
    run.record(
        "end",
        step=state.step,
        tokens=state.tokens,
        seconds=round(trainer.elapsed(), 3),
        reason=reason,
        message=message,
        best_step=state.best_step,
        loss=state.best_loss,
        bits_per_byte=None if found is None else found.bits_per_byte,
    )
    run.say(message)
    os.sync() if hasattr(os, "sync") else None
