"""The planner: choices that follow the text and the time, keep what was asked, and leave nothing open."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import write_json
from rhapsode.base.settings import overridden
from rhapsode.training import planner
from rhapsode.training.expectation import Text, compressed, expected_bits_per_byte
from rhapsode.training.planner import DEFAULTS, Plan, choose_tokenizer, make_plan
from rhapsode.training.settings import TrainSettings
from rhapsode.training.shapes import shape

TEXT = Text(tokens=40_000, bytes=41_000, validation_tokens=4000, compressed_bits_per_byte=3.0)
CHARACTERS = TrainSettings(tokenizer="character", vocabulary_size=65)
SMALL = TrainSettings(hidden_size=32, layers=1, context_length=16, batch_size=4)
CHOSEN_ELSEWHERE = {"minutes", "memory", "threads", "tokenizer_folder", "sample_prompt", "decoder_layers"}


def plan_of(chosen: TrainSettings, seconds: float | None = 2.0, text: Text = TEXT) -> Plan:
    settings = overridden(overridden(DEFAULTS, CHARACTERS), chosen)
    return make_plan(settings, text, "as asked", torch.device("cpu"), seconds)


@pytest.mark.parametrize(
    ("text_bytes", "minutes", "kind", "size"),
    [
        (1, 1e6, "character", 0),
        (399_999, 10, "character", 0),
        (400_000, 0.1, "bpe", 512),
        (1_003_854, 10, "bpe", 512),
        (2_500_000, 0.9, "bpe", 512),
        (2_500_000, 1, "bpe", 1024),
        (20_000_000, 5, "bpe", 2048),
        (50_000_000, 10, "bpe", 4096),
        (10**8, 39, "bpe", 4096),
        (10**8, 40, "bpe", 8192),
        (10**9, 240, "bpe", 16_384),
        (10**12, 999, "bpe", 16_384),
        (10**12, 1000, "bpe", 32_768),
    ],
)
def test_tokenizers_grow_with_text_and_time(text_bytes: int, minutes: float, kind: str, size: int) -> None:
    assert choose_tokenizer(TrainSettings(), text_bytes, minutes)[:2] == (kind, size)


@examples(deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 10**11), st.integers(1, 10**11)),
    minutes=st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)),
    kind=st.sampled_from([None, "bpe", "unigram", "word"]),
)
def test_more_text_and_more_time_never_mean_fewer_entries(
    sizes: tuple[int, int], minutes: tuple[float, float], kind: Any
) -> None:
    settings = TrainSettings(tokenizer=kind)
    _, smaller, _ = choose_tokenizer(settings, min(sizes), min(minutes))
    chosen, larger, reason = choose_tokenizer(settings, max(sizes), max(minutes))
    assert smaller <= larger
    assert reason
    if kind:
        assert chosen == kind
        assert smaller >= 512


@examples(deadline=None)
@given(text_bytes=st.integers(1, 10**11), minutes=st.floats(0.01, 1e4))
def test_the_tokenizer_asked_for_is_kept(text_bytes: int, minutes: float) -> None:
    for kind in ("character", "byte"):
        assert choose_tokenizer(TrainSettings(tokenizer=kind), text_bytes, minutes)[:2] == (kind, 0)
    for kind in ("word", "bpe", "unigram"):
        asked = TrainSettings(tokenizer=kind, vocabulary_size=777)
        assert choose_tokenizer(asked, text_bytes, minutes)[:2] == (kind, 777)


def test_compressed_tells_predictable_text_from_noise() -> None:
    digits = "".join(random.Random(0).choices("0123456789abcdef", k=20_000))
    assert compressed("a" * 20_000) < 0.2
    assert 4 <= compressed(digits) < 5  # four bits are in each
    assert compressed("") >= 0


def test_expected_is_its_formula() -> None:
    """Hoffmann et al. 2022, equation 10, on text as compressible as that of the runs it was fitted to."""
    text = replace(TEXT, bytes=10**6, compressed_bits_per_byte=3.14)
    assert expected_bits_per_byte(1e6, 1e6, text) == pytest.approx(1.66 + 23.0 / 1e6**0.35 + 103.7 / 1e6**0.4)
    worth = 1e6 * (1 + 8 * (1 - math.exp(-3 / 8)))  # Muennighoff et al. 2023, equation 5: three repetitions
    assert expected_bits_per_byte(1e6, 4e6, text) == pytest.approx(1.66 + 23.0 / 1e6**0.35 + 103.7 / worth**0.4)


@examples(deadline=None)
@given(
    parameters=st.floats(1e3, 1e10),
    seen=st.floats(1e3, 1e12),
    size=st.integers(10**3, 10**12),
    compression=st.floats(0.1, 8),
    growth=st.floats(1.01, 100),
)
def test_expected_falls_with_parameters_and_bytes(
    parameters: float, seen: float, size: int, compression: float, growth: float
) -> None:
    text = Text(tokens=size, bytes=size, validation_tokens=size, compressed_bits_per_byte=compression)
    expected = expected_bits_per_byte(parameters, seen, text)
    assert expected_bits_per_byte(parameters * growth, seen, text) < expected
    assert expected_bits_per_byte(parameters, seen * growth, text) <= expected
    if seen * growth < 20 * size:  # reading it again is still worth something
        assert expected_bits_per_byte(parameters, seen * growth, text) < expected
    fresh = expected_bits_per_byte(parameters, seen, replace(text, bytes=10**13))
    assert fresh <= expected * (1 + 1e-12)  # nothing is better than text not yet read
    easier = replace(text, compressed_bits_per_byte=compression / 2)
    assert expected_bits_per_byte(parameters, seen, easier) == pytest.approx(expected / 2)


SHAPELESS = replace(DEFAULTS, hidden_size=128, layers=2, context_length=64, tied_embeddings=False)


@pytest.mark.parametrize(
    ("chosen", "heads", "kv_heads", "head_dim", "intermediate"),
    [
        ({}, 2, 2, 64, 352),
        ({"hidden_size": 384}, 6, 6, 64, 1024),
        ({"hidden_size": 16}, 1, 1, 16, 32),
        ({"heads": 4}, 4, 4, 32, 352),
        ({"head_dim": 32}, 4, 4, 32, 352),
        ({"head_dim": 200}, 1, 1, 200, 352),
        ({"heads": 4, "kv_heads": 2}, 4, 2, 32, 352),
        ({"heads": 3, "head_dim": 10, "intermediate_size": 77}, 3, 3, 10, 77),
    ],
)
def test_sizes_follow_from_those_chosen(
    chosen: dict[str, int], heads: int, kv_heads: int, head_dim: int, intermediate: int
) -> None:
    config = shape(replace(SHAPELESS, **chosen), vocabulary_size=99)
    assert (config.heads, config.kv_heads, config.head_dim) == (heads, kv_heads, head_dim)
    assert config.intermediate_size == intermediate
    assert (config.vocabulary_size, config.layers, config.context_length) == (99, 2, 64)
    assert (config.rope.theta, config.tied_embeddings) == (10_000.0, False)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of kv_heads"):
        shape(replace(SHAPELESS, heads=4, kv_heads=3), 99)
    with pytest.raises(InputError, match="head_dim must be even"):
        shape(replace(SHAPELESS, head_dim=7), 99)


def open_fields(settings: TrainSettings) -> set[str]:
    return {name for name, value in asdict(settings).items() if value is None}


def assert_sound(plan: Plan) -> None:
    settings = plan.settings
    assert open_fields(settings) <= CHOSEN_ELSEWHERE
    assert plan.config == shape(settings, settings.vocabulary_size)
    assert 1 <= settings.micro_batch_size <= settings.batch_size
    assert 1 <= settings.validation_tokens <= TEXT.validation_tokens
    for interval in (settings.validation_interval, settings.sample_interval, settings.checkpoint_interval):
        assert 1 <= interval <= settings.steps
    assert settings.warmup_steps < settings.steps
    assert settings.context_length < TEXT.tokens
    assert math.isfinite(plan.expected_bits_per_byte)
    assert f"{plan.expected_bits_per_byte:.2f} bits per byte" in plan.summary
    assert all(choice.name and choice.value and choice.reason for choice in plan.choices)


@pytest.mark.parametrize("seconds", [1.0, 2.0, 8.0])
def test_nothing_is_left_open(seconds: float) -> None:
    plan = plan_of(TrainSettings(), seconds)
    assert_sound(plan)
    assert open_fields(plan.settings) == CHOSEN_ELSEWHERE
    assert plan.timed
    names = [choice.name for choice in plan.choices]
    assert names == [
        "tokenizer",
        "shape",
        "family",
        "parameters",
        "context",
        "batch",
        "horizon",
        "optimizer",
        "compiled",
        "dropout",
    ]
    assert plan.choices[0].reason == "as asked"


def test_more_time_is_more_work() -> None:
    short, long = plan_of(SMALL, 1.0), plan_of(SMALL, 20.0)
    assert long.settings.steps > 5 * short.settings.steps
    assert long.expected_bits_per_byte < short.expected_bits_per_byte


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", 3),
        ("hidden_size", 64),
        ("batch_size", 4),
        ("micro_batch_size", 3),
        ("context_length", 20),
        ("heads", 1),
        ("head_dim", 16),
        ("intermediate_size", 50),
        ("tied_embeddings", True),
        ("optimizer", "adamw"),
        ("optimizer", "sgd"),
        ("learning_rate", 0.0123),
        ("momentum", 0.5),
        ("warmup_steps", 3),
        ("dropout", 0.33),
        ("validation_tokens", 100),
        ("patience", 0),
        ("final_share", 0.25),
    ],
)
def test_one_choice_is_kept_and_the_rest_is_made(name: str, value: Any) -> None:
    plan = plan_of(TrainSettings(**{name: value}), seconds=1.0)
    assert_sound(plan)
    assert getattr(plan.settings, name) == value


def test_every_choice_is_kept() -> None:
    chosen = TrainSettings(
        minutes=7.0,
        memory=3.0,
        device="cpu",
        threads=1,
        seed=9,
        kind="decoder",
        family="llama",
        masked_share=0.2,
        decoder_layers=4,
        label_smoothing=0.3,
        average_checkpoints=2,
        tokenizer="byte",
        tokenizer_folder=Path("there"),
        vocabulary_size=260,
        hidden_size=64,
        layers=3,
        heads=3,
        kv_heads=1,
        head_dim=10,
        intermediate_size=50,
        context_length=24,
        rope_theta=500.0,
        tied_embeddings=True,
        steps=70,
        batch_size=4,
        micro_batch_size=2,
        optimizer="adamw",
        learning_rate=0.011,
        embedding_learning_rate=0.012,
        head_learning_rate=0.013,
        momentum=0.1,
        adam_beta1=0.2,
        adam_beta2=0.3,
        adam_epsilon=1e-5,
        weight_decay=0.4,
        clipping=0.5,
        dropout=0.6,
        schedule="cosine",
        warmup_steps=7,
        decay_share=0.8,
        final_share=0.9,
        compile=True,
        validation_interval=11,
        validation_tokens=1200,
        patience=13,
        checkpoint_interval=14,
        keep_checkpoints=15,
        sample_interval=16,
        sample_prompt="Once",
        tensorboard=True,
    )
    assert {field.name for field in fields(TrainSettings)} == set(asdict(chosen)) - open_fields(chosen)
    plan = plan_of(chosen, seconds=1.0)
    assert plan.settings == chosen
    assert (plan.config.hidden_size, plan.config.layers, plan.config.intermediate_size) == (64, 3, 50)
    assert (plan.config.heads, plan.config.kv_heads, plan.config.head_dim) == (3, 1, 10)
    assert (plan.config.vocabulary_size, plan.config.context_length, plan.config.rope.theta) == (260, 24, 500.0)
    assert plan.config.tied_embeddings
    assert not plan.timed  # steps that were asked for do not follow the clock


@pytest.mark.parametrize(("steps", "dropout"), [(2499, 0.0), (2500, 0.1), (6666, 0.1), (6667, 0.2)])
def test_dropout_by_how_often_the_text_is_read(steps: int, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps given and no time to keep to."""
    monkeypatch.setattr(planner, "step_seconds", lambda *given: (0.01, 0.01))  # which it would measure for a second
    text = replace(TEXT, tokens=53_333)  # a step has 64 tokens
    plan = plan_of(replace(SMALL, steps=steps), None, text)
    assert plan.settings.dropout == dropout
    assert plan.settings.steps == steps
    assert not plan.timed


@pytest.mark.parametrize(
    ("tokens", "validation_tokens", "context"),
    [(9, 9, 8), (64, 64, 16), (40_000, 100, 16), (200, 40_000, 32), (40_000, 400, 64), (10**6, 10**6, 128)],
)
def test_contexts_fit_the_text(tokens: int, validation_tokens: int, context: int) -> None:
    text = Text(tokens, tokens, validation_tokens, 3.0)
    assert plan_of(replace(SMALL, context_length=None), 1.0, text).settings.context_length == context


@pytest.mark.parametrize(("tokens", "chosen"), [(8, None), (0, None), (256, 256), (5000, 10_000)])
def test_a_text_shorter_than_a_window_is_refused(tokens: int, chosen: int | None) -> None:
    text = Text(tokens, tokens, 4000, 3.0)
    with pytest.raises(InputError, match=f"{tokens:,} tokens for training, too few for one window") as caught:
        plan_of(TrainSettings(context_length=chosen), 1.0, text)
    assert "--context-length" in caught.value.message


@pytest.mark.parametrize("chosen", [{"memory": 0.1}, {"memory": 0.4, "hidden_size": 1024, "layers": 12}])
def test_too_little_memory_is_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--memory: training needs about .* GB, and 0\.[14] GB may be used"):
        plan_of(TrainSettings(**chosen))


def test_memory_keeps_the_model_small() -> None:
    plan = plan_of(TrainSettings(memory=0.34), seconds=10.0)
    assert_sound(plan)
    assert (plan.config.hidden_size, plan.config.layers) == (64, 2)
    assert len(plan.choices[1].reason.split(";")) == 1  # no other fits


def test_a_plan_is_read_back_as_written(tmp_path: Path) -> None:
    plan = plan_of(SMALL, 1.0)
    path = tmp_path / "plan.json"
    write_json(path, plan.as_json())
    assert Plan.from_json(path, plan.settings, plan.config.vocabulary_size) == plan
    prompted = plan.with_settings(sample_prompt="Once")
    assert prompted.settings == replace(plan.settings, sample_prompt="Once")
    assert replace(prompted, settings=plan.settings) == plan


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"choices": 3}', '{"choices": [{"name": "x"}]}'])
def test_a_damaged_plan_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DamagedError, match=r"plan\.json"):
        Plan.from_json(path, overridden(SHAPELESS, CHARACTERS), 65)


@examples(deadline=None, max_examples=8)
@given(seconds=st.floats(1, 10), tokens=st.integers(9, 10**7), validation=st.integers(2, 10**6))
def test_plans_are_sound_for_texts_of_any_size(seconds: float, tokens: int, validation: int) -> None:
    plan = plan_of(replace(SMALL, context_length=None, batch_size=None), seconds, Text(tokens, tokens, validation, 3.0))
    settings = plan.settings
    assert open_fields(settings) == CHOSEN_ELSEWHERE
    assert settings.context_length < tokens
    assert 1 <= settings.validation_tokens <= validation
    assert max(settings.validation_interval, settings.checkpoint_interval, settings.sample_interval) <= settings.steps
