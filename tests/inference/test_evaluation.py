"""Evaluation against one token at a time: each token is predicted exactly once, from the promised context."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.inference.evaluation import continuations, evaluate, windows
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.initialization import initialise

CONTEXT = 12
VOCABULARY = 17


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = QWEN3.config(VOCABULARY, 16, 2, 2, 1, 8, 24, CONTEXT)
    model = Decoder(config)
    initialise(model, 0)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.2)
    return model


def text(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, VOCABULARY, length).astype(np.uint16)


def one_by_one(model: Decoder, tokens: np.ndarray, context: int, stride: int) -> float:
    """Mean nats, each token asked for alone from the first window that holds it and its predecessors."""
    total = 0.0
    for target in range(1, len(tokens)):
        start = 0
        while start + context < target:
            start += stride
        ids = torch.from_numpy(tokens[start:target].astype(np.int64))[None]
        with torch.no_grad():
            total -= model(ids)[0, -1].double().log_softmax(-1)[int(tokens[target])].item()
    return total / (len(tokens) - 1)


@given(st.integers(2, 60), st.integers(1, CONTEXT), st.data())
def test_windows_count_each_token_once_after_enough_others(tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    counted: list[int] = []
    for number, (start, end, first) in enumerate(windows(tokens, context, stride)):
        assert start == number * stride
        assert end - start <= context
        for target in range(first, end + 1):
            counted.append(target)
            assert target - start >= min(target, context - stride + 1)
    assert counted == list(range(1, tokens))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 45), st.integers(1, CONTEXT), st.integers(1, 5), st.data())
def test_equals_one_by_one(model: Decoder, length: int, context: int, batch: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    tokens = text(length)
    result = evaluate(model, tokens, context=context, stride=stride, bytes_of_text=length, batch=batch)
    assert result.nats_per_token == pytest.approx(one_by_one(model, tokens, context, stride), rel=1e-5)
    assert result.tokens == length - 1


def test_more_overlap_means_more_context_and_full_stride_means_none(model: Decoder) -> None:
    tokens = text(40)
    apart = evaluate(model, tokens, context=CONTEXT, stride=CONTEXT, bytes_of_text=40)
    overlapping = evaluate(model, tokens, context=CONTEXT, stride=1, bytes_of_text=40)
    assert apart.nats_per_token != pytest.approx(overlapping.nats_per_token, rel=1e-4)


def test_a_uniform_model_costs_log_vocabulary_for_every_token_the_first_included() -> None:
    config = QWEN3.config(VOCABULARY, 16, 1, 2, 1, 8, 24, CONTEXT, tied_embeddings=False)
    uniform = Decoder(config)
    initialise(uniform, 0)  # an untied head starts at zero
    result = evaluate(uniform, text(30), context=CONTEXT, stride=5, bytes_of_text=77)
    assert result.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(30 * math.log2(VOCABULARY) / 77, rel=1e-6)
    assert result.bytes == 77


def test_blocks_of_logits_do_not_change_the_result(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(model, text(50), context=CONTEXT, stride=7, bytes_of_text=50)
    monkeypatch.setattr("rhapsode.inference.evaluation.LOGITS_AT_ONCE", 3 * VOCABULARY)
    assert evaluate(model, text(50), context=CONTEXT, stride=7, bytes_of_text=50).nats_per_token == pytest.approx(
        whole.nats_per_token, rel=1e-6
    )


def test_training_goes_on_as_before(model: Decoder) -> None:
    fresh = Decoder(model.config)
    initialise(fresh, 1)
    fresh.train()
    evaluate(fresh, text(20), context=CONTEXT, stride=CONTEXT, bytes_of_text=20)
    assert fresh.training
    ids = torch.from_numpy(text(10).astype(np.int64))[None]
    fresh.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert all(parameter.grad is not None for parameter in fresh.parameters())


@pytest.mark.parametrize(
    ("length", "context", "stride", "words"),
    [
        (1, 4, 4, "too short"),
        (10, 13, 4, "between 1 and the model's 12"),
        (10, 0, 1, "between 1 and the model's 12"),
        (10, 4, 5, "between 1 and the context of 4"),
        (10, 4, 0, "between 1 and the context of 4"),
    ],
)
def test_refuses_what_cannot_be_evaluated(model: Decoder, length: int, context: int, stride: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(model, text(length), context=context, stride=stride, bytes_of_text=length)


IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=CONTEXT // 2)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12), st.booleans())
def test_continuations_equal_one_token_at_a_time(
    model: Decoder, pairs: list[tuple[list[int], list[int]]], twice: bool
) -> None:
    if twice:  # the same contexts with other last tokens, which are read together
        pairs = pairs + [(context, [*following[:-1], (following[-1] + 1) % VOCABULARY]) for context, following in pairs]
    for (context, following), found in zip(pairs, continuations(model, pairs), strict=True):
        total, greedy = 0.0, True
        for place, token in enumerate(following):
            with torch.no_grad():
                logits = model(torch.tensor([context + following[:place]]))[0, -1].double()
            total += logits.log_softmax(-1)[token].item()
            greedy &= int(logits.argmax()) == token
        assert found.log_probability == pytest.approx(total, rel=1e-5)
        assert found.greedy == greedy


def test_continuations_that_greedy_search_writes_are_greedy(model: Decoder) -> None:
    context, written = [3, 1, 4], list[int]()
    for _ in range(5):
        with torch.no_grad():
            written.append(int(model(torch.tensor([context + written]))[0, -1].argmax()))
    other = [*written[:3], (written[3] + 1) % VOCABULARY, written[4]]
    assert [one.greedy for one in continuations(model, [(context, written), (context, other)])] == [True, False]


def test_blocks_of_logits_do_not_change_continuations(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [([number, 2], [5, number, 1][: 1 + number % 3]) for number in range(VOCABULARY)]
    whole = continuations(model, pairs)
    monkeypatch.setattr("rhapsode.inference.evaluation.LOGITS_AT_ONCE", 2 * VOCABULARY)
    monkeypatch.setattr("rhapsode.inference.evaluation.TOKENS_AT_ONCE", 7)
    for one, other in zip(whole, continuations(model, pairs), strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-5)
        assert one.greedy == other.greedy


def test_the_last_token_of_a_continuation_need_not_be_read(model: Decoder) -> None:
    assert continuations(model, [([1] * 7, [2] * (CONTEXT - 6))])[0].log_probability < 0
    with pytest.raises(InputError, match=f"pair 2: 8 tokens and 6 that follow are more than .* {CONTEXT} and one"):
        continuations(model, [([1], [2]), ([1] * 8, [2] * (CONTEXT - 6))])


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_continuations_of_nothing_are_refused(model: Decoder, pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(InputError, match="pair 2: neither"):
        continuations(model, [([1], [2]), pair])


def test_continuations_of_a_damaged_model_are_refused() -> None:
    damaged = Decoder(QWEN3.config(VOCABULARY, 16, 1, 2, 1, 8, 24, CONTEXT))
    initialise(damaged, 0)
    with torch.no_grad():
        damaged.embedding.weight[3] = float("nan")
    with pytest.raises(NotFiniteError):
        continuations(damaged, [([1], [2]), ([3], [2])])
