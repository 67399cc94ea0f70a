"""The planner behind the dial: from a text, a machine and a number of minutes to every setting of a run, with reasons.

    rhapsode train mytext.txt --minutes 10 --dry-run

It times a few shapes on this machine and takes the one whose expected loss is lowest. The constants come from runs
whose numbers stand in docs/lab.md.
"""

from __future__ import annotations

import lzma
import math
import statistics
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
from rhapsode.model.config import ModelConfig, Rope
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.initialization import initialise
from rhapsode.training.gradient import Gradient, workers_for
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.settings import UNSET, TokenizerKind, TrainSettings

SHAPES = (
    (64, 2),
    (96, 3),
    (128, 4),
    (192, 4),
    (256, 5),
    (320, 6),
    (384, 6),
    (512, 8),
    (640, 10),
    (768, 12),
    (1024, 16),
    (1536, 20),
    (2048, 24),
)
"""Widths and depths to choose from: deeper as they get wider, as published families are."""

DEFAULTS = TrainSettings(
    seed=0,
    rope_theta=10_000.0,
    optimizer="muon",
    momentum=0.95,
    adam_beta1=0.9,
    adam_beta2=0.95,
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
    expected_bits_per_byte: float
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
    def from_json(path: Path, settings: TrainSettings, vocabulary_size: int) -> Plan:
        """The plan of a run that was begun before.

        Raises:
            DamagedError: plan.json is not what `as_json` gives.
        """
        values = read_json(path)
        try:
            return Plan(
                settings=settings,
                config=shape(settings, vocabulary_size),
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


@dataclass(frozen=True)
class Text:
    """What the planner knows of the tokenized text."""

    tokens: int
    """Training tokens."""
    bytes: int
    """Bytes of UTF-8 they stand for."""
    validation_tokens: int
    compressed_bits_per_byte: float
    """What a general compressor reaches on a piece of it; see `compressed`."""


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


def compressed(sample: str) -> float:
    """Bits per byte that xz needs for a piece of text: how predictable it is before any learning."""
    data = sample.encode("utf-8")
    return 8.0 * len(lzma.compress(data, preset=1)) / max(1, len(data))


REFERENCE_COMPRESSED = 3.14
"""Bits per byte of xz on the texts of the runs that the constants come from."""
FLOOR, SIZE_FACTOR, SIZE_POWER, TEXT_FACTOR, TEXT_POWER = 1.66, 23.0, 0.35, 103.7, 0.4
REPEATS_WORTH = 8.0
"""How many repetitions of a text are worth something, roughly; 15 in the source, for models that regularise better."""


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
    for size, least_bytes, least_minutes in VOCABULARIES:
        if text_bytes >= least_bytes and minutes >= least_minutes:
            return kind, size, f"{text_bytes / size:,.0f} bytes of text for each entry"
    if settings.tokenizer:
        return kind, 512, "as asked; the text is small"
    return "character", 0, "the text is small: every character is met often"


def expected_bits_per_byte(parameters: float, bytes_seen: float, text: Text) -> float:
    """What a run should reach: a floor, and powers of the model's size and of the text it reads.

    The form is Hoffmann et al. 2022, equation 10, in bytes; its constants are fitted to the runs in docs/lab.md, and
    scaled by how well xz compresses the text compared with theirs. Text read again is worth less each time
    (Muennighoff et al. 2023, equation 5).
    """
    fresh = min(bytes_seen, text.bytes)
    repeats = max(0.0, bytes_seen / text.bytes - 1)
    effective = fresh * (1 + REPEATS_WORTH * (1 - math.exp(-repeats / REPEATS_WORTH)))
    scale = text.compressed_bits_per_byte / REFERENCE_COMPRESSED
    return float(scale * (FLOOR + SIZE_FACTOR / parameters**SIZE_POWER + TEXT_FACTOR / effective**TEXT_POWER))


def shape(settings: TrainSettings, vocabulary_size: int) -> ModelConfig:
    """The model's shape from settings in which every size is chosen, or follows from those that are."""
    heads = settings.heads or max(1, settings.hidden_size // (settings.head_dim or 64))
    return QWEN3.config(
        vocabulary_size=vocabulary_size,
        hidden_size=settings.hidden_size,
        layers=settings.layers,
        heads=heads,
        kv_heads=settings.kv_heads or heads,
        head_dim=settings.head_dim or settings.hidden_size // heads,
        intermediate_size=settings.intermediate_size or max(1, round(settings.hidden_size * 8 / 3 / 32)) * 32,
        context_length=settings.context_length,
        rope=Rope(settings.rope_theta),
        tied_embeddings=settings.tied_embeddings,
    )


@dataclass(frozen=True)
class _Candidate:
    """A shape, and how fast it trains here."""

    settings: TrainSettings
    config: ModelConfig
    seconds_per_token: float
    expected: float


def make_plan(
    settings: TrainSettings, text: Text, tokenizer_reason: str, device: torch.device, seconds: float | None
) -> Plan:
    """Choose everything that is still open.

    Args:
        settings: chosen so far, the defaults among them; `vocabulary_size` is the tokenizer's.
        tokenizer_reason: why the tokenizer is as it is.
        seconds: what is left for planning and training; None when the number of steps is given.

    Raises:
        InputError: the text is too short, or the shape does not fit in memory.
    """
    began = time.perf_counter()
    settings = overridden(_context(settings, text, seconds), settings)
    if text.tokens < settings.context_length + 1:
        raise InputError(
            f"the text has {text.tokens:,} tokens for training, too few for one window of {settings.context_length} "
            "and its next token",
            todo="Give more text, or a smaller --context-length.",
        )
    candidates = [_sized(settings, width, layers) for width, layers in _open_shapes(settings)]
    memory = settings.memory * 1e9 if settings.memory else memory_bytes() / 2
    workers = workers_for(device, compiled=False, threads=torch.get_num_threads())
    fitting = [(chosen, config) for chosen, config in candidates if _memory(chosen, config, workers) <= memory]
    if not fitting:
        chosen, config = candidates[0]
        needed = _memory(chosen, config, workers)
        raise InputError(
            f"training needs about {needed / 1e9:.1f} GB, and {memory / 1e9:.1f} GB may be used",
            where="--memory",
            todo="Choose a smaller --hidden-size, --layers or --micro-batch-size, or allow more.",
        )
    worth = _worth_timing(fitting, text, seconds)
    timed = [_timed(chosen, config, text, device, workers, seconds) for chosen, config in worth]
    best = min(timed, key=lambda candidate: candidate.expected)
    compiling = _compiling(best, device, workers, seconds)
    if seconds is not None:
        seconds -= time.perf_counter() - began
    return _written(best, timed, text, tokenizer_reason, compiling, 1 if compiling[0] else workers, seconds)


def _context(settings: TrainSettings, text: Text, seconds: float | None) -> TrainSettings:
    """The context length: longer pays only when there is time to learn from what is far away."""
    minutes = math.inf if seconds is None else seconds / 60
    character = settings.tokenizer in ("character", "byte")
    wanted = (128 if minutes < 2 else 256) if character else (128 if minutes < 8 else 256 if minutes < 60 else 512)
    shortest = min(text.tokens, text.validation_tokens)
    while wanted > 8 and wanted * 4 > shortest:
        wanted //= 2
    return TrainSettings(context_length=wanted, tied_embeddings=settings.vocabulary_size > 16_384)


def _open_shapes(settings: TrainSettings) -> list[tuple[int, int]]:
    """The widths and depths that agree with what was chosen."""
    shapes = [
        (settings.hidden_size or width, settings.layers or layers)
        for width, layers in SHAPES
    ]  # fmt: skip
    return sorted(set(shapes))


def _sized(settings: TrainSettings, width: int, layers: int) -> tuple[TrainSettings, ModelConfig]:
    head_dim = 32 if width < 256 else 64
    heads = settings.heads or max(1, width // (settings.head_dim or head_dim))
    chosen = overridden(TrainSettings(hidden_size=width, layers=layers, heads=heads), settings)
    config = shape(chosen, settings.vocabulary_size)
    sizes = TrainSettings(
        kv_heads=config.kv_heads, head_dim=config.head_dim, intermediate_size=config.intermediate_size
    )
    return overridden(sizes, chosen), config


def _micro_windows(settings: TrainSettings, workers: int) -> int:
    """Windows of a micro-batch: a worker's share of the batch, as far as 2,048 tokens go (1,024 beside others)."""
    if settings.micro_batch_size:
        return settings.micro_batch_size
    most = max(1, 2048 // settings.context_length)
    return min(most, math.ceil((settings.batch_size or most) / workers))


def _memory(settings: TrainSettings, config: ModelConfig, workers: int) -> float:
    """Bytes that training takes, roughly: weights, two moments, and a gradient and activations for each worker."""
    widths = config.layers * (14 * config.hidden_size + 5 * config.intermediate_size) + 3 * config.vocabulary_size
    tokens = _micro_windows(settings, workers) * settings.context_length
    return 300e6 + 16.0 * config.parameters + workers * 4.0 * (config.parameters + widths * tokens)


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
    model = Decoder(config).to(device)
    initialise(model, 0)
    optimizers = Optimizers(model, overridden(_rates(1000), settings))
    budget = 1.0 if seconds is None else min(3.0, seconds / 50)
    gradient = Gradient(model, workers=workers)
    compute, update = _step_seconds(gradient, optimizers, settings, budget)
    per_token = compute / (workers * _micro_windows(settings, workers) * settings.context_length)
    if seconds is None:
        tokens = settings.steps * (settings.batch_size or 8) * settings.context_length
    else:
        tokens = int(USABLE * seconds / per_token)
        tokens = int(USABLE * seconds / (per_token + update / _batch_tokens(tokens)))
    per_token += update / _batch_tokens(tokens)
    expected = expected_bits_per_byte(config.matrix_parameters, tokens * text.bytes / text.tokens, text)
    return _Candidate(settings, config, per_token, expected)


def _step_seconds(
    gradient: Gradient, optimizers: Optimizers, settings: TrainSettings, budget: float
) -> tuple[float, float]:
    """Seconds of the gradient of a micro-batch for each worker, and of the optimizers: medians over about `budget`."""
    model, workers = gradient.model, len(gradient.losses)
    windows = _micro_windows(settings, workers)
    ids = torch.arange(windows * settings.context_length, device=model.device) * 7919
    ids = (ids % model.config.vocabulary_size).view(windows, settings.context_length)
    computes: list[float] = []
    updates: list[float] = []
    begin = time.perf_counter()
    while len(computes) < 2 or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        gradient.compute([(ids, ids, None)] * workers, workers * ids.numel())
        middle = time.perf_counter()
        optimizers.step()
        model.embedding.weight[0, 0].item()  # waits for the device
        computes.append(middle - start)
        updates.append(time.perf_counter() - middle)
    return statistics.median(computes[1:]), statistics.median(updates[1:])


LEAST_SECONDS_TO_COMPILE = 1800
"""Of a run: compiling takes up to a minute, here and once more in the run, and gains a fifth at most."""


def _compiling(best: _Candidate, device: torch.device, workers: int, seconds: float | None) -> tuple[bool, str]:
    """Whether torch.compile pays within the run, its own time counted, and why."""
    settings = best.settings
    if settings.compile is not UNSET:
        return settings.compile, "as asked"
    if seconds is None or seconds < LEAST_SECONDS_TO_COMPILE:
        return False, "it takes up to a minute and gains a fifth at most: not for a run of this length"
    model = Decoder(best.config).to(device)
    initialise(model, 0)
    optimizers = Optimizers(model, overridden(_rates(1000), settings))
    eager, _ = _step_seconds(Gradient(model, workers=workers), optimizers, settings, 3.0)
    eager /= workers
    began = time.perf_counter()
    try:
        compiled = Gradient(model, torch.compile(model.loss), workers=1)
        _step_seconds(compiled, optimizers, settings, 0.0)
        took = time.perf_counter() - began
        faster, _ = _step_seconds(compiled, optimizers, settings, 3.0)
    except Exception as error:  # no compiler, no support: whatever it is, the run does without
        return False, f"torch.compile does not work here ({type(error).__name__})"
    gain = 1 - faster / eager
    return gain * (seconds - took) > took, f"measured: {took:.0f} s to compile, {gain:.0%} faster steps"


USABLE = 0.93
"""Share of the time that goes into steps; evaluations, samples and checkpoints take the rest."""


def _batch_tokens(tokens: int) -> int:
    """Tokens in a step: more as the run gets longer, because the gradient's noise matters more near the end."""
    return int(min(65_536, max(1024, 1.4 * math.sqrt(tokens))))


def _rates(steps: int) -> TrainSettings:
    """Learning rates and momentum for a run of so many steps."""
    return TrainSettings(
        learning_rate=0.04,
        embedding_learning_rate=0.05,
        head_learning_rate=0.01,
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
    context = settings.context_length
    if settings.steps:
        batch = settings.batch_size or max(1, 2048 // context)
        steps = settings.steps
    else:
        assert seconds is not None
        total = int(USABLE * max(0.0, seconds) / best.seconds_per_token)
        batch = settings.batch_size or max(1, round(_batch_tokens(total) / context))
        steps = max(10, total // (batch * context))
    tokens = steps * batch * context
    rates = _rates(steps)
    if settings.optimizer != "muon":
        rates = replace(rates, learning_rate=ADAMW_RATE if settings.optimizer == "adamw" else SGD_RATE, momentum=0.9)
    evaluated = settings.validation_tokens or min(text.validation_tokens, max(8192, tokens // 250))
    evaluations = max(4, min(25, int(0.09 * tokens / evaluated)))
    epochs = tokens / text.tokens
    open_choices = TrainSettings(
        steps=steps,
        dropout=0.0 if epochs < 3 else 0.1 if epochs < 8 else 0.2,
        batch_size=batch,
        micro_batch_size=_micro_windows(overridden(settings, TrainSettings(batch_size=batch)), workers),
        validation_tokens=evaluated,
        validation_interval=max(1, steps // evaluations),
        sample_interval=max(1, steps // 5),
        checkpoint_interval=max(1, steps // 10),
        compile=compiling[0],
    )
    settings = overridden(overridden(rates, open_choices), settings)
    minutes = "" if seconds is None else f" in {duration(seconds)}"
    others = "; ".join(
        f"{c.settings.hidden_size} x {c.settings.layers}: {1 / c.seconds_per_token:,.0f} tokens/s, "
        f"{c.expected:.2f} expected"
        for c in timed
    )
    entries = f"{settings.tokenizer}, {settings.vocabulary_size:,} entries"
    sizes = f"{config.hidden_size} wide, {config.layers} layers, {config.heads} heads"
    bytes_per_token = text.bytes / text.tokens
    choices = [
        Choice("tokenizer", entries, tokenizer_reason),
        Choice("shape", sizes, f"timed here: {others}"),
        Choice("parameters", f"{config.parameters:,}", f"{tokens / config.parameters:,.1f} tokens for each"),
        Choice("context", f"{context} tokens", f"about {context * bytes_per_token:,.0f} bytes of text"),
        Choice("batch", f"{batch} windows, {batch * context:,} tokens", "about the square root of all tokens"),
        Choice("horizon", f"{steps:,} steps, {tokens:,} tokens", f"the text {epochs:,.1f} times{minutes}"),
        Choice("optimizer", settings.optimizer, f"learning rate {settings.learning_rate:g}"),
        Choice("compiled", "yes" if settings.compile else "no", compiling[1]),
        Choice("dropout", f"{settings.dropout:g}", f"the text is read {epochs:,.1f} times"),
    ]
    summary = (
        f"{config.parameters / 1e6:.2f} million parameters, {tokens / 1e6:.2f} million tokens{minutes}; "
        f"expected: about {best.expected:.2f} bits per byte."
    )
    return Plan(
        settings, config, choices, summary, best.expected, timed=seconds is not None and not best.settings.steps
    )
