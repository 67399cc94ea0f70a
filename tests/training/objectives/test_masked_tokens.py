"""Masked tokens: the shares that are published, gaps that are drawn anew, an examination that stays the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhapsode.base.errors import InputError
from rhapsode.model.encoder import Encoder
from rhapsode.model.families.bert import BERT
from rhapsode.model.initialization import initialise
from rhapsode.training.objectives.masked_tokens import MaskedTokens

VOCABULARY, MASK, END = 1000, 999, 998


def text(length: int, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, END, length).astype(np.uint16)
    tokens[::37] = END
    return tokens


def objective(tokens: np.ndarray, context: int = 40, seed: int = 1, share: float = 0.15) -> MaskedTokens:
    return MaskedTokens(
        tokens,
        text(400, seed=9),
        context=context,
        seed=seed,
        vocabulary_size=VOCABULARY,
        mask_id=MASK,
        never=[END, MASK],
        share=share,
    )


@settings(deadline=None)
@given(context=st.integers(2, 60), seed=st.integers(0, 10**6), first=st.integers(0, 500), share=st.floats(0.01, 0.99))
def test_only_gaps_are_changed_and_only_they_are_targets(context: int, seed: int, first: int, share: float) -> None:
    tokens = text(2000)
    masked = objective(tokens, context, seed, share)
    batch = masked.batch(first, 5)
    inputs, targets = (tensor.numpy() for tensor in batch.tensors)
    plain = masked.windows.batch(first, 5)[:, :-1]
    gaps = targets >= 0
    assert np.array_equal(inputs[~gaps], plain[~gaps])
    assert np.array_equal(targets[gaps], plain[gaps])
    assert not np.isin(targets[gaps], [END, MASK]).any()
    assert inputs.max() < VOCABULARY
    allowed = (~np.isin(plain, [END, MASK])).sum(axis=1)
    expected = np.minimum(allowed, max(1, round(share * context)))
    assert gaps.sum(axis=1).tolist() == expected.tolist()
    assert (batch.trained, batch.read) == (gaps.sum(), 5 * context)


def test_the_shares_are_those_that_are_published() -> None:
    """Devlin et al. 2019: of the 15 %, 80 % become the mask token, 10 % a random one, 10 % stay."""
    batch = objective(text(100_000), context=100).batch(0, 900)
    inputs, targets = (tensor.numpy() for tensor in batch.tensors)
    gaps = targets >= 0
    assert gaps.mean() == pytest.approx(0.15, abs=1e-9)
    masked = (inputs[gaps] == MASK).sum()
    kept = (inputs[gaps] == targets[gaps]).sum()
    others = gaps.sum() - masked - kept
    # A random token is the old one once in a thousand times.
    shares = np.array([0.8, 0.1 * 0.999, 0.1 + 0.1 * 0.001])
    assert stats.chisquare([masked, others, kept], shares * gaps.sum()).pvalue > 0.001
    drawn = inputs[gaps & (inputs != MASK) & (inputs != targets)]
    assert stats.kstest(drawn / VOCABULARY, "uniform").pvalue > 0.001


def test_gaps_are_drawn_anew_and_are_a_function_of_seed_and_number() -> None:
    masked = objective(text(41), context=40)  # one window: every sample is the same text
    first, again = masked.batch(0, 1), masked.batch(1, 1)
    assert not torch.equal(first.tensors[1], again.tensors[1])
    together = masked.batch(0, 2)
    assert torch.equal(together.tensors[0][1:], again.tensors[0])
    assert torch.equal(objective(text(41), context=40).batch(1, 1).tensors[0], again.tensors[0])
    assert not torch.equal(objective(text(41), context=40, seed=2).batch(1, 1).tensors[1], again.tensors[1])


def test_the_examination_counts_every_target_once() -> None:
    config = BERT.config(VOCABULARY, 16, 1, 2, 2, 8, 24, 40)
    model = Encoder(config)
    initialise(model, 0)
    masked = objective(text(2000))
    found = masked.validate(model)
    assert found == masked.validate(model)
    nats, right, count = 0.0, 0, 0
    with torch.no_grad():
        for batch in masked.examination:
            inputs, targets = batch.tensors
            for row in range(len(inputs)):
                for place in torch.nonzero(targets[row] >= 0).flatten().tolist():
                    logits = model(inputs[row : row + 1])[0, place].double()
                    target = int(targets[row, place])
                    nats -= float(logits.log_softmax(-1)[target])
                    right += int(logits.argmax()) == target
                    count += 1
    assert count == 10 * 6  # 400 tokens in windows of 40, of each 15 %
    assert found.loss == pytest.approx(nats / count, rel=1e-5)
    assert found.accuracy == right / count


def test_a_text_to_validate_on_that_is_too_short_is_refused() -> None:
    with pytest.raises(InputError, match="validate on has 1 tokens"):
        MaskedTokens(
            text(100), text(1), context=10, seed=0, vocabulary_size=VOCABULARY, mask_id=MASK, never=[], share=0.15
        )
