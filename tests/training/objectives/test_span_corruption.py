"""Span corruption: nothing of the text is lost, lengths are those of the paper's recipe, every cut is as likely."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhapsode.base.errors import InputError
from rhapsode.training.objectives.span_corruption import SpanCorruption, _parts, spans_in

START, END = 500, 501
SENTINELS = range(600, 700)


def objective(context: int, seed: int = 0, share: float = 0.15, sentinels: range = SENTINELS) -> SpanCorruption:
    tokens = np.random.default_rng(0).integers(0, 500, 5000).astype(np.uint16)
    return SpanCorruption(
        tokens,
        tokens[:300],
        context=context,
        seed=seed,
        start_id=START,
        end_id=END,
        sentinels=sentinels,
        share=share,
    )


@settings(deadline=None)
@given(context=st.integers(2, 200), seed=st.integers(0, 10**6), first=st.integers(0, 300), share=st.floats(0.01, 0.9))
def test_both_sides_together_are_the_text(context: int, seed: int, first: int, share: float) -> None:
    corrupting = objective(context, seed, share)
    batch = corrupting.batch(first, 3)
    source, padding, inputs, targets = (tensor.numpy() for tensor in batch.tensors)
    plain = corrupting.windows.batch(first, 3)[:, :-1]
    assert padding.all()  # windows of one length give samples of one length
    assert (targets >= 0).all()
    assert (inputs[:, 0] == START).all()
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    for row in range(3):
        spans: dict[int, list[int]] = {}
        for token in targets[row].tolist():
            if token in SENTINELS:
                spans[token] = []
            elif token != END:
                spans[max(spans)].append(token)
        assert list(spans) == list(SENTINELS[: len(spans)])
        assert all(spans.values()), "no span is empty"
        mended: list[int] = []
        for token in source[row, :-1].tolist():
            mended += spans.get(token, [token])
        assert mended == plain[row].tolist()
        assert source[row, -1] == targets[row, -1] == END
    assert (batch.trained, batch.read) == (targets.size, targets.size + source.size)


def test_lengths_are_those_of_the_recipe() -> None:
    """Raffel et al. 2020, section 3.1.4 and 3.3.4: 15 % of 512 tokens are 77, in spans of 3 on average: 26 of them."""
    source, _, _, targets = objective(512).batch(0, 1).tensors
    assert spans_in(512, 0.15) == 26
    assert source.shape[1] == 512 - 77 + 26 + 1
    assert targets.shape[1] == 77 + 26 + 1


def test_every_way_to_cut_is_as_likely() -> None:
    draw = np.random.default_rng(1)
    seen = Counter(tuple(_parts(6, 3, draw).tolist()) for _ in range(10_000))
    assert len(seen) == 10  # (5 choose 2) ways to write 6 as a sum of three positive numbers
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


def test_too_few_sentinels_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match="26 spans are cut out of a window, and the tokenizer has tokens for 5"):
        objective(512, sentinels=range(5))
