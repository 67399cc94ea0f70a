"""Sampling against the formulas, against transformers' own steps, and against what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.inference.sampling import Sampling, distribution, draw

PLAIN = {"temperature": 1.0, "top_p": 1.0}
THREE = np.log([0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [0.6, 0.3, 0.1]), (2.0, [0.473, 0.334, 0.193]), (0.1, [0.999, 0.001, 0.000])]
)
def test_temperature_by_the_formula(temperature: float, expected: list[float]) -> None:
    got = distribution(THREE, Sampling(temperature=temperature, top_p=1.0))
    assert got.round(3).tolist() == expected
    shifted = distribution(THREE + 5.0, Sampling(temperature=temperature, top_p=1.0))  # logits, not log probabilities
    np.testing.assert_allclose(shifted, got, rtol=1e-12)


@pytest.mark.parametrize("temperature", [2.0, 0.1, 0.7])
def test_frequencies_agree_with_the_formula(temperature: float) -> None:
    logits = np.log([0.6, 0.3, 0.1])
    power = np.exp(logits / temperature)
    expected = power / power.sum()
    probabilities = distribution(logits, Sampling(temperature=temperature, top_p=1.0))
    drawn = [draw(probabilities, 1, position) for position in range(8000)]
    counts = np.bincount(drawn, minlength=3)
    common = expected * len(drawn) >= 5  # the test's own condition
    assert counts[~common].sum() <= 5
    assert chisquare(counts[common], expected[common] * counts[common].sum() / expected[common].sum()).pvalue > 0.001
    for other in ([0.5, 0.3, 0.2], [0.34, 0.33, 0.33]):  # the test can fail
        assert chisquare(counts, np.array(other) * len(drawn)).pvalue < 1e-6


def test_zero_is_the_most_likely_token_whatever_else_is_set() -> None:
    logits = np.array([0.1, 2.0, 2.0, -1.0])
    assert distribution(logits, Sampling(temperature=0.0)).tolist() == [0, 1, 0, 0]
    assert {draw(distribution(logits, Sampling(temperature=0.0, top_k=3)), 0, p) for p in range(50)} == {1}


def test_each_step_keeps_what_it_says() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04])

    def kept(**fields: Any) -> list[float]:
        return distribution(logits, Sampling(**PLAIN | fields)).round(4).tolist()

    assert kept(top_k=2) == [0.5714, 0.4286, 0, 0, 0]
    assert kept(top_p=0.7) == [0.5714, 0.4286, 0, 0, 0]
    assert kept(top_p=0.7001) == [0.4444, 0.3333, 0.2222, 0, 0]
    assert kept(top_p=1e-9) == [1, 0, 0, 0, 0]
    assert kept(min_p=0.5) == [0.4444, 0.3333, 0.2222, 0, 0]
    assert kept(min_p=1.0) == [1, 0, 0, 0, 0]


def test_the_order_of_the_steps() -> None:
    # Temperature before top-p: at a high temperature more tokens are needed to reach the share.
    flat = distribution(THREE, Sampling(temperature=100.0, top_p=0.65))
    assert (flat > 0).tolist() == [True, True, False]
    assert (distribution(THREE, Sampling(temperature=0.1, top_p=0.65)) > 0).tolist() == [True, False, False]
    # Top-k before top-p: the share is one of what top-k left, 0.6 / 0.9.
    assert (distribution(THREE, Sampling(temperature=1.0, top_k=2, top_p=0.65)) > 0).tolist() == [True, False, False]
    # The penalty before temperature 0: it can change which token is the most likely one.
    assert distribution(np.array([2.0, 1.9]), Sampling(temperature=0, repetition_penalty=1.2), [0]).tolist() == [0, 1]


def test_repetition_penalty_makes_seen_tokens_less_likely_once() -> None:
    logits = np.array([2.0, -2.0, 1.0])
    got = distribution(logits, Sampling(**PLAIN, repetition_penalty=2.0), [0, 0, 1])
    expected = np.exp([1.0, -4.0, 1.0])
    np.testing.assert_allclose(got, expected / expected.sum())
    assert logits.tolist() == [2.0, -2.0, 1.0]  # the caller's logits stay as they were


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 300),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([0.1, 0.55, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
def test_equals_transformers(
    *, seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    from transformers.generation import logits_process as theirs

    noise = np.random.default_rng(seed)
    logits = noise.normal(0, 3, size)
    previous = noise.integers(0, size, 7)
    steps: list[Any] = [theirs.RepetitionPenaltyLogitsProcessor(penalty), theirs.TemperatureLogitsWarper(temperature)]
    steps += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    steps += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [theirs.MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.from_numpy(logits)[None]
    for step in steps:
        scores = step(torch.from_numpy(previous)[None], scores)
    expected = scores.softmax(-1)[0].numpy()
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    np.testing.assert_allclose(distribution(logits, sampling, previous.tolist()), expected, atol=1e-9)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.floats(1e-300, 1e6), st.floats(1e-6, 1))
def test_always_a_distribution_that_keeps_the_best(logits: list[int], temperature: float, top_p: float) -> None:
    got = distribution(np.array(logits), Sampling(temperature=temperature, top_p=top_p))
    assert got.sum() == pytest.approx(1.0)
    assert (got >= 0).all()
    assert got[int(np.argmax(logits))] == got.max()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 2**63), st.integers(0, 10**6))
def test_only_possible_tokens_are_drawn(weights: list[float], seed: int, position: int) -> None:
    probabilities = np.array(weights)
    if probabilities.sum() < 1e-300:
        probabilities[0] = 1.0
    token = draw(probabilities, seed, position)
    assert probabilities[token] > 0
    assert token == draw(probabilities, seed, position)


def test_seeds_and_positions_draw_independently() -> None:
    half = np.array([0.5, 0.5])
    rows = np.array([[draw(half, seed, position) for position in range(400)] for seed in range(2)])
    assert 150 < rows[0].sum() < 250
    assert 140 < (rows[0] == rows[1]).sum() < 260


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("max_new_tokens", 0),
        ("stop", ("a", "")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        Sampling(**{field: value})


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFiniteError, match="not finite"):
        distribution(np.array([0.0, np.nan]), Sampling())
