"""Parallel text: every pair once an epoch, batches of one length, padding that nobody sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.model.config import StackSizes
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.families.marian import MARIAN
from rhapsode.training.objectives.objective import Batch
from rhapsode.training.objectives.parallel_text import STEPS_IN_A_POOL, Pairs, ParallelText, side_by_side

END, PADDING = 90, 91
MARIAN_SECOND = StackSizes(layers=2, heads=2, kv_heads=2, head_dim=8, intermediate_size=24)


def pairs_of(sides: list[tuple[list[int], list[int]]]) -> Pairs:
    tokens: list[int] = []
    documents = [0]
    for source, target in sides:
        tokens += [*source, END, *target, END]
        documents.append(len(tokens))
    return Pairs(np.array(tokens, dtype=np.uint16), np.array(documents, dtype=np.int64), END)


def some_sides(count: int, seed: int = 0, longest: int = 12) -> list[tuple[list[int], list[int]]]:
    draw = np.random.default_rng(seed)

    def side() -> list[int]:
        return draw.integers(0, 90, draw.integers(0, longest)).tolist()  # type: ignore[no-any-return]

    return [(side(), side()) for _ in range(count)]


def objective(count: int, batch_size: int, seed: int = 0, context: int = 20) -> ParallelText:
    return ParallelText(
        pairs_of(some_sides(count)),
        pairs_of(some_sides(7, seed=5)),
        batch_size=batch_size,
        context=context,
        seed=seed,
        start_id=PADDING,
        padding_id=PADDING,
    )


def test_pairs_are_taken_apart_as_they_were_put_together() -> None:
    sides = some_sides(50)
    pairs = pairs_of(sides)
    for number, (source, target) in enumerate(sides):
        got = pairs.pair(number)
        assert (got[0].tolist(), got[1].tolist()) == ([*source, END], [*target, END])
    first, second = pairs.lengths()
    assert [(a - 1, b - 1) for a, b in zip(first, second, strict=True)] == [(len(a), len(b)) for a, b in sides]


def test_tokens_that_are_no_pairs_are_refused() -> None:
    tokens = np.array([1, 2, END, 3, END], dtype=np.uint16)
    with pytest.raises(InputError, match="not those of pairs"):
        Pairs(tokens, np.array([0, 3, 5]), END)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 90), batch_size=st.integers(1, 9), seed=st.integers(0, 10**6), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_pair_once(count: int, batch_size: int, seed: int, epoch: int) -> None:
    training = objective(count, batch_size, seed)
    pool = STEPS_IN_A_POOL * batch_size
    pools = range(epoch * count // pool, ((epoch + 1) * count - 1) // pool + 1)
    drawn = np.concatenate([np.sort(training._drawn(number).reshape(-1)) for number in pools])
    visits = np.bincount(drawn, minlength=count)
    whole = (len(pools) * pool) // count  # epochs that lie in these pools, wholly or in part
    assert visits.min() >= 1
    assert visits.max() <= whole + 2


@settings(deadline=None, max_examples=30)
@given(batch_size=st.integers(2, 9), step=st.integers(0, 200), cut=st.integers(1, 8))
def test_a_step_is_the_same_however_it_is_cut(batch_size: int, step: int, cut: int) -> None:
    cut = min(cut, batch_size - 1)
    whole = objective(60, batch_size).batch(step * batch_size, batch_size)
    fresh = objective(60, batch_size)
    second = fresh.batch(step * batch_size + cut, batch_size - cut)
    first = fresh.batch(step * batch_size, cut)
    for all_of_it, a, b in zip(whole.tensors, first.tensors, second.tensors, strict=True):
        assert torch.equal(all_of_it, torch.cat((a, b)))  # padded alike
    assert (first.trained + second.trained, first.read + second.read) == (whole.trained, whole.read)


def share_that_is_real(batches: list[Batch]) -> float:
    room = sum(batch.tensors[0].numel() + batch.tensors[2].numel() for batch in batches)
    return sum(batch.read for batch in batches) / room


def test_batches_are_of_about_one_length() -> None:
    """Both sides of a pair count, and they are drawn apart here: padding is halved, not gone."""
    training = objective(2000, batch_size=16)
    by_length = share_that_is_real([training.batch(16 * step, 16) for step in range(64)])
    at_random = share_that_is_real(
        [
            side_by_side([training.pairs.pair(number) for number in range(first, first + 16)], start_id=0, padding_id=0)
            for first in range(0, 1024, 16)
        ]
    )
    assert by_length > at_random + 0.07


def test_sides_that_are_too_long_are_left_out_and_counted() -> None:
    training = objective(300, batch_size=4, context=8)
    first, second = training.pairs.lengths()
    assert training.too_long == int(((first > 8) | (second > 8)).sum()) > 0
    for step in range(100):
        assert max(tensor.shape[1] for tensor in training.batch(4 * step, 4).tensors) <= 8
    with pytest.raises(InputError, match="no pair of texts is short enough for a context of 0"):
        objective(10, batch_size=2, context=0)


def test_the_loss_is_that_of_each_pair_alone() -> None:
    """Padding changes nothing, and what is written is predicted from the start and what stands before it."""
    model = EncoderDecoder(MARIAN.config(100, 16, 2, 2, 2, 8, 24, 20, decoder=MARIAN_SECOND, start_id=PADDING))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2 + (parameter.dim() == 1))
    training = objective(40, batch_size=6)
    batch = training.batch(0, 6)
    alone = 0.0
    with torch.no_grad():
        for number in training._numbers(0).tolist():
            source, target = (torch.from_numpy(side)[None] for side in training.pairs.pair(number))
            inputs = torch.cat((torch.tensor([[PADDING]]), target[:, :-1]), dim=1)
            logits = model(inputs, model.encode(source)).double().log_softmax(-1)
            alone -= float(logits.gather(-1, target[..., None]).sum())
        together = float(model.loss(*batch.tensors))
        found = training.validate(model)
    assert together == pytest.approx(alone, rel=1e-5)
    assert found == training.validate(model)
    assert found.accuracy is not None
