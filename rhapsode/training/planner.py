"""The planner behind the dial: from a text, a machine and a number of minutes to every setting of a run, with reasons.

    rhapsode train mytext.txt --minutes 10 --dry-run

It times a few shapes on this machine and takes the one whose expected loss is lowest.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import read_json
from rhapsode.base.machine import memory_bytes
from rhapsode.base.progress import duration
from rhapsode.base.settings import overridden
from rhapsode.model.config import ModelConfig
from rhapsode.model.functions import rows_at_once
from rhapsode.model.initialization import initialise
from rhapsode.model.model import new_model
from rhapsode.training.expectation import Text, expected_bits_per_byte
from rhapsode.training.gradient import Gradient, workers_for
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.settings import UNSET, TokenizerKind, TrainSettings
from rhapsode.training.shapes import SHAPES, family_of, shape
from rhapsode.training.timing import micro_batch_size, sample_tokens, step_seconds

DEFAULTS = TrainSettings(
    kind="decoder",
    masked_share=0.15,
    average_checkpoints=1,
    seed=0,
    rope_theta=10_000.0,
    optimizer="muon",
    momentum=0.95,
    adam_beta1=0.9,
    adam_epsilon=1e-8,
    weight_decay=0.0,
    clipping=1.0,
    schedule="wsd",
    decay_share=0.6,
    final_share=0.0,
    patience=6,
    keep_checkpoints=2,
    tensorboard=False,
    device="auto",
)
"""What does not depend on text, machine or time."""


@dataclass(frozen=True)
class Choice:
    """One decision, for people to read."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Every setting of a run, why, and what to expect."""

    settings: TrainSettings
    config: ModelConfig
    choices: list[Choice]
    summary: str
    expected_bits_per_byte: float | None
    """What a decoder should reach; None for other kinds."""
    timed: bool
    """Whether the number of steps follows the clock, not --steps."""

    def as_json(self) -> dict[str, Any]:
        """For plan.json."""
        return {
            "summary": self.summary,
            "expected_bits_per_byte": self.expected_bits_per_byte,
            "timed": self.timed,
            "choices": [asdict(choice) for choice in self.choices],
        }

    @staticmethod
    def from_json(path: Path, settings: TrainSettings, vocabulary_size: int, start_id: int | None = None) -> Plan:
        """The plan of a run that was begun before.

        Raises:
            DamagedError: plan.json is not what `as_json` gives.
        """
        values = read_json(path)
        try:
            return Plan(
                settings=settings,
                config=shape(settings, vocabulary_size, start_id),
                choices=[Choice(**choice) for choice in values["choices"]],
                summary=values["summary"],
                expected_bits_per_byte=values["expected_bits_per_byte"],
                timed=values["timed"],
            )
        except (KeyError, TypeError):
            raise DamagedError("is not a plan", where=str(path)) from None

    def with_settings(self, **values: Any) -> Plan:
        """The same plan with some settings replaced."""
        return replace(self, settings=replace(self.settings, **values))


VOCABULARIES = (
    (32_768, 2e9, 1000),
    (16_384, 4e8, 240),
    (8192, 1e8, 40),
    (4096, 3e7, 8),
    (2048, 8e6, 2),
    (1024, 2.5e6, 1),
    (512, 4e5, 0),
)
"""Entries of a BPE vocabulary, the bytes of text it needs, and the minutes."""
RICHER = 8
"""Models that read whole texts at once are better off with words than with their parts: a vocabulary for so many times
the text and the minutes. (At the vocabulary of a decoder, tokens of one or two letters would be masked.)"""


def choose_tokenizer(settings: TrainSettings, text_bytes: int, minutes: float) -> tuple[TokenizerKind, int, str]:
    """Kind, vocabulary size (0 where the kind has its own) and reason, for a training text of so many bytes.

    A token of several bytes makes each step worth more text, but every entry of the vocabulary must be met often
    enough to be learned, and the head costs arithmetic for each.
    """
    if settings.vocabulary_size and settings.tokenizer not in ("character", "byte"):
        size = settings.vocabulary_size
        return settings.tokenizer or "bpe", size, f"as asked; {text_bytes / size:,.0f} bytes of text for each entry"
    if settings.tokenizer in ("character", "byte"):
        return settings.tokenizer, 0, "as asked"
    kind = settings.tokenizer or "bpe"
    richer = RICHER if settings.kind in ("encoder", "encoder-decoder") else 1
    for size, least_bytes, least_minutes in VOCABULARIES:
        if text_bytes * richer >= least_bytes and minutes * richer >= least_minutes:
            return kind, size, f"{text_bytes / size:,.0f} bytes of text for each entry"
    if settings.tokenizer:
        return kind, 512, "as asked; the text is small"
    return "character", 0, "the text is small: every character is met often"


@dataclass(frozen=True)
class _Candidate:
    """A shape, and how fast it trains here."""

    settings: TrainSettings
    config: ModelConfig
    seconds_per_token: float
    expected: float


def make_plan(
    settings: TrainSettings,
    text: Text,
    tokenizer_reason: str,
    device: torch.device,
    seconds: float | None,
    *,
    start_id: int | None = None,
) -> Plan:
    """Choose everything that is still open.

    Args:
        settings: chosen so far, the defaults among them; `vocabulary_size` is the tokenizer's.
        start_id: the token that a decoder of two towers begins with.
        tokenizer_reason: why the tokenizer is as it is.
        seconds: what is left for planning and training; None when the number of steps is given.

    Raises:
        InputError: the text is too short, or the shape does not fit in memory.
    """
    began = time.perf_counter()
    settings = overridden(_context(settings, text, seconds), settings)
    settings = overridden(TrainSettings(family=family_of(settings).name), settings)
    if text.pairs is None and text.tokens < settings.context_length + 1:
        raise InputError(
            f"the text has {text.tokens:,} tokens for training, too few for one window of {settings.context_length} "
            "and its next token",
            todo="Give more text, or a smaller --context-length.",
        )
    candidates = [_sized(settings, width, layers, start_id) for width, layers in _open_shapes(settings)]
    memory = settings.memory * 1e9 if settings.memory else memory_bytes() / 2
    workers = workers_for(device, compiled=False, threads=torch.get_num_threads())
    needs = [_memory(chosen, config, text, device, workers) for chosen, config in candidates]
    fitting = [candidate for candidate, needed in zip(candidates, needs, strict=True) if needed <= memory]
    if not fitting:
        raise InputError(
            f"training needs about {needs[0] / 1e9:.1f} GB, and {memory / 1e9:.1f} GB may be used",
            where="--memory",
            todo="Choose a smaller --hidden-size, --layers or --micro-batch-size, or allow more.",
        )
    worth = _worth_timing(fitting, text, seconds)
    timed = [_timed(chosen, config, text, device, workers, seconds) for chosen, config in worth]
    best = min(timed, key=lambda candidate: candidate.expected)
    compiling = _compiling(best, text, device, workers, seconds)
    if seconds is not None:
        seconds -= time.perf_counter() - began
    return _written(best, timed, text, tokenizer_reason, compiling, 1 if compiling[0] else workers, seconds)


def _context(settings: TrainSettings, text: Text, seconds: float | None) -> TrainSettings:
    """The context length: longer pays only when there is time to learn from what is far away."""
    minutes = math.inf if seconds is None else seconds / 60
    tied = settings.kind != "decoder" or settings.vocabulary_size > 16_384
    if text.pairs is not None:
        return TrainSettings(context_length=min(1024, -(-text.pairs.longest // 16) * 16), tied_embeddings=tied)
    character = settings.tokenizer in ("character", "byte")
    wanted = (128 if minutes < 2 else 256) if character else (128 if minutes < 8 else 256 if minutes < 60 else 512)
    if settings.kind != "decoder" and minutes < 60:
        wanted = 128  # a gap is filled from what is near
    shortest = min(text.tokens, text.validation_tokens)
    while wanted > 8 and wanted * 4 > shortest:
        wanted //= 2
    return TrainSettings(context_length=wanted, tied_embeddings=tied)


def _open_shapes(settings: TrainSettings) -> list[tuple[int, int]]:
    """The widths and depths that agree with what was chosen."""
    shapes = [
        (settings.hidden_size or width, settings.layers or layers)
        for width, layers in SHAPES
    ]  # fmt: skip
    return sorted(set(shapes))


def _sized(settings: TrainSettings, width: int, layers: int, start_id: int | None) -> tuple[TrainSettings, ModelConfig]:
    head_dim = 32 if width < 256 else 64
    heads = settings.heads or max(1, width // (settings.head_dim or head_dim))
    chosen = overridden(TrainSettings(hidden_size=width, layers=layers, heads=heads), settings)
    config = shape(chosen, settings.vocabulary_size, start_id)
    sizes = TrainSettings(
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        decoder_layers=config.decoder.layers if config.decoder else UNSET,
    )
    return overridden(sizes, chosen), config


def _memory(settings: TrainSettings, config: ModelConfig, text: Text, device: torch.device, workers: int) -> float:
    """Bytes that training takes, roughly: weights, two moments, and a gradient and activations for each worker."""
    tokens = micro_batch_size(settings, text, workers) * sample_tokens(settings, text)
    vocabulary = config.vocabulary_size
    activations = config.layers * (14 * config.hidden_size + 5 * config.intermediate_size) * tokens
    # Logits, their softmax and its gradient; on a CPU one after another in one place, and never of all tokens.
    logits = vocabulary * (min(tokens, rows_at_once(vocabulary)) if device.type == "cpu" else 3 * tokens)
    return 300e6 + 16.0 * config.parameters + workers * 4.0 * (config.parameters + activations + logits)


def _flops(config: ModelConfig, settings: TrainSettings) -> float:
    return config.training_flops_per_token(settings.context_length)


def _worth_timing(
    shapes: list[tuple[TrainSettings, ModelConfig]], text: Text, seconds: float | None
) -> list[tuple[TrainSettings, ModelConfig]]:
    """The three shapes that look best if every one ran at the same share of a guessed peak."""
    if seconds is None or len(shapes) <= 3:
        return shapes[:3]
    guessed_peak = 6e10

    def expected(index: int) -> float:
        chosen, config = shapes[index]
        tokens = seconds * guessed_peak / _flops(config, chosen)
        return expected_bits_per_byte(config.matrix_parameters, tokens * text.bytes / text.tokens, text)

    middle = min(range(len(shapes)), key=expected)
    middle = min(max(middle, 1), len(shapes) - 2)
    return shapes[middle - 1 : middle + 2]


def _timed(
    settings: TrainSettings,
    config: ModelConfig,
    text: Text,
    device: torch.device,
    workers: int,
    seconds: float | None,
) -> _Candidate:
    """Train a shape on nonsense for a moment, a fiftieth of the time at most, and say what it would reach."""
    model = new_model(config).to(device)
    initialise(model, 0)
    optimizers = Optimizers(model, overridden(_rates(settings, config, 1000), settings))
    budget = 1.0 if seconds is None else min(3.0, seconds / 50)
    gradient = Gradient(model, workers=workers)
    compute, update = step_seconds(gradient, optimizers, settings, text, budget)
    per_sample = sample_tokens(settings, text)
    per_token = compute / (workers * micro_batch_size(settings, text, workers) * per_sample)
    if seconds is None:
        tokens = int(settings.steps * (settings.batch_size or 8) * per_sample)
    else:
        tokens = int(USABLE * seconds / per_token)
        tokens = int(USABLE * seconds / (per_token + update / _batch_tokens(tokens)))
    per_token += update / _batch_tokens(tokens)
    expected = expected_bits_per_byte(config.matrix_parameters, tokens * text.bytes / text.tokens, text)
    return _Candidate(settings, config, per_token, expected)


LEAST_SECONDS_TO_COMPILE = 1800
"""Of a run: compiling takes up to a minute, here and once more in the run, and gains a fifth at most."""


def _compiling(
    best: _Candidate, text: Text, device: torch.device, workers: int, seconds: float | None
) -> tuple[bool, str]:
    """Whether torch.compile pays within the run, its own time counted, and why."""
    settings = best.settings
    if settings.compile is not UNSET:
        return settings.compile, "as asked"
    if settings.kind != "decoder":
        return False, "not tried for this kind of model"
    if seconds is None or seconds < LEAST_SECONDS_TO_COMPILE:
        return False, "it takes up to a minute and gains a fifth at most: not for a run of this length"
    model = new_model(best.config).to(device)
    initialise(model, 0)
    optimizers = Optimizers(model, overridden(_rates(settings, best.config, 1000), settings))
    eager, _ = step_seconds(Gradient(model, workers=workers), optimizers, settings, text, 3.0)
    eager /= workers
    began = time.perf_counter()
    try:
        compiled = Gradient(model, torch.compile(model.loss), workers=1)
        step_seconds(compiled, optimizers, settings, text, 0.0)
        took = time.perf_counter() - began
        faster, _ = step_seconds(compiled, optimizers, settings, text, 3.0)
    except Exception as error:  # no compiler, no support: whatever it is, the run does without
        return False, f"torch.compile does not work here ({type(error).__name__})"
    gain = 1 - faster / eager
    return gain * (seconds - took) > took, f"measured: {took:.0f} s to compile, {gain:.0%} faster steps"


USABLE = 0.93
"""Share of the time that goes into steps; evaluations, samples and checkpoints take the rest."""


def _batch_tokens(tokens: int) -> int:
    """Tokens in a step: more as the run gets longer, because the gradient's noise matters more near the end."""
    return int(min(65_536, max(1024, 1.4 * math.sqrt(tokens))))


def _rates(settings: TrainSettings, config: ModelConfig, steps: int) -> TrainSettings:
    """Learning rates and momentum for a run of so many steps. Norms after each block, as in the first transformers,
    carry every change on to all layers above: BERT learns nothing at 0.04 (docs/lab.md)."""
    after = config.order == "post"
    return TrainSettings(
        learning_rate=0.008 if after else 0.04,
        embedding_learning_rate=(0.004 if after else 0.005) if settings.tied_embeddings else 0.05,
        head_learning_rate=0.01,
        adam_beta2=0.98 if after else 0.95,
        warmup_steps=min(20, max(1, steps // 20)),
        momentum=0.9 if steps < 1000 else 0.95,
    )


ADAMW_RATE, SGD_RATE = 2e-3, 0.1


def _written(
    best: _Candidate,
    timed: list[_Candidate],
    text: Text,
    tokenizer_reason: str,
    compiling: tuple[bool, str],
    workers: int,
    seconds: float | None,
) -> Plan:
    """The plan around the shape chosen: batch, horizon, rates, intervals, and every reason."""
    settings, config = best.settings, best.config
    context, per_sample = settings.context_length, sample_tokens(settings, text)
    if settings.steps:
        batch = settings.batch_size or max(1, round(2048 / per_sample))
        steps = settings.steps
    else:
        assert seconds is not None
        total = int(USABLE * max(0.0, seconds) / best.seconds_per_token)
        batch = settings.batch_size or max(1, round(_batch_tokens(total) / per_sample))
        steps = max(10, int(total / (batch * per_sample)))
    tokens = int(steps * batch * per_sample)
    rates = _rates(settings, config, steps)
    if settings.optimizer != "muon":
        rates = replace(rates, learning_rate=ADAMW_RATE if settings.optimizer == "adamw" else SGD_RATE, momentum=0.9)
    evaluated = settings.validation_tokens or min(text.validation_tokens, max(8192, tokens // 250))
    evaluations = max(4, min(25, int(0.09 * tokens / evaluated)))
    epochs = tokens / text.tokens
    open_choices = TrainSettings(
        steps=steps,
        dropout=0.0 if epochs < 3 else 0.1 if epochs < 8 else 0.2,
        batch_size=batch,
        micro_batch_size=micro_batch_size(overridden(settings, TrainSettings(batch_size=batch)), text, workers),
        label_smoothing=0.1 if text.pairs is not None else 0.0,
        validation_tokens=evaluated,
        validation_interval=max(1, steps // evaluations),
        sample_interval=max(1, steps // 5),
        checkpoint_interval=max(1, steps // 10),
        compile=compiling[0],
    )
    settings = overridden(overridden(rates, open_choices), settings)
    minutes = "" if seconds is None else f" in {duration(seconds)}"
    decoder = settings.kind == "decoder"
    others = "; ".join(
        f"{c.settings.hidden_size} x {c.settings.layers}: {1 / c.seconds_per_token:,.0f} tokens/s"
        + (f", {c.expected:.2f} expected" if decoder else "")
        for c in timed
    )
    entries = f"{settings.tokenizer}, {settings.vocabulary_size:,} entries"
    sizes = f"{config.hidden_size} wide, {config.layers} layers, {config.heads} heads"
    if config.decoder:
        sizes = f"{config.hidden_size} wide, {config.layers} + {config.decoder.layers} layers, {config.heads} heads"
    samples = "windows" if text.pairs is None else "pairs"
    about = f"about {context * text.bytes / text.tokens:,.0f} bytes of text"
    if text.pairs is not None:
        about = "all but one in a thousand sides are shorter"
    choices = [
        Choice("tokenizer", entries, tokenizer_reason),
        Choice("shape", sizes, f"timed here: {others}"),
        Choice("family", f"{settings.family} ({settings.kind})", "the form in which others read it"),
        Choice("parameters", f"{config.parameters:,}", f"{tokens / config.parameters:,.1f} tokens for each"),
        Choice("context", f"{context} tokens", about),
        Choice("batch", f"{batch} {samples}, {batch * per_sample:,.0f} tokens", "about the square root of all tokens"),
        Choice("horizon", f"{steps:,} steps, {tokens:,} tokens", f"the text {epochs:,.1f} times{minutes}"),
        Choice("optimizer", settings.optimizer, f"learning rate {settings.learning_rate:g}"),
        Choice("compiled", "yes" if settings.compile else "no", compiling[1]),
        Choice("dropout", f"{settings.dropout:g}", f"the text is read {epochs:,.1f} times"),
    ]
    expected = best.expected if decoder else None
    summary = f"{config.parameters / 1e6:.2f} million parameters, {tokens / 1e6:.2f} million tokens{minutes}"
    summary += f"; expected: about {expected:.2f} bits per byte." if expected is not None else "."
    return Plan(settings, config, choices, summary, expected, timed=seconds is not None and not best.settings.steps)
