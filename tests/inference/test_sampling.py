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
from rhapsode.inference.sampling import Sampling, distribution, draw, steps

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
    typical_p=st.sampled_from([0.2, 0.9, 1.0]),
    penalty=st.sampled_from([0.8, 1.0, 1.3]),
    bias=st.sampled_from([{}, {"0": 2.5, "1": -100.0}]),
)
def test_equals_transformers(
    *,
    seed: int,
    size: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    penalty: float,
    bias: dict[str, float],
) -> None:
    from transformers.generation import logits_process as theirs

    noise = np.random.default_rng(seed)
    logits = noise.normal(0, 3, size)
    previous = noise.integers(0, size, 7)
    chain: list[Any] = [theirs.SequenceBiasLogitsProcessor({(int(id),): b for id, b in bias.items()})] if bias else []
    chain += [theirs.RepetitionPenaltyLogitsProcessor(penalty), theirs.TemperatureLogitsWarper(temperature)]
    chain += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    chain += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [theirs.MinPLogitsWarper(min_p)] if min_p else []
    chain += [theirs.TypicalLogitsWarper(typical_p)] if typical_p < 1 else []
    scores = torch.from_numpy(logits)[None]
    for step in chain:
        scores = step(torch.from_numpy(previous)[None], scores)
    expected = scores.softmax(-1)[0].numpy()
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=penalty,
        logit_bias=bias,
    )
    np.testing.assert_allclose(distribution(logits, sampling, previous.tolist()), expected, atol=1e-9)


def test_presence_and_frequency_count_what_was_written_but_not_the_prompt() -> None:
    logits, text = np.array([1.0, 2.0, -1.0, 0.5]), [0, 1, 1, 2, 1]
    sampling = Sampling(**PLAIN, presence_penalty=0.5, frequency_penalty=0.25)
    expected = np.exp([1.0, 2.0 - 0.5 - 2 * 0.25, -1.0 - 0.5 - 0.25, 0.5])
    got = distribution(logits, sampling, text, prompt_length=2)
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-12)


def test_what_is_not_allowed_is_never_drawn_whatever_its_bias() -> None:
    sampling = Sampling(temperature=5.0, top_p=1.0, logit_bias={"0": 100.0, "1": 3.0})
    got = distribution(THREE, sampling, allowed=np.array([False, True, True]))
    assert got[0] == 0.0 and got[1] > got[2] > 0.0
    with pytest.raises(InputError, match="no token may be written"):
        distribution(THREE, sampling, allowed=np.zeros(3, dtype=bool))
    with pytest.raises(InputError, match="none of them is 3"):
        distribution(THREE, Sampling(logit_bias={"3": 1.0}))
    for name in ("the", "-1", "²", "1.5"):
        with pytest.raises(InputError, match="not the id of a token, in digits"):
            Sampling(logit_bias={name: 1.0})


def test_each_step_that_is_on_is_shown_in_its_order() -> None:
    everything = Sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.9,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"0": 1.0},
    )
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04])
    shown = list(steps(logits, everything, [0, 1], prompt_length=1, allowed=np.ones(5, dtype=bool)))
    names = ["model", "bans and limits", "logit bias", "repetition penalty", "presence penalty", "frequency penalty"]
    assert [name for name, _ in shown] == [*names, "temperature", "top-k", "top-p", "min-p", "typical"]
    assert all(probabilities.sum() == pytest.approx(1.0) for _, probabilities in shown)
    assert shown[0][1].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.06, 0.04])
    np.testing.assert_array_equal(shown[-1][1], distribution(logits, everything, [0, 1], prompt_length=1))
    off = Sampling(temperature=1.0, top_p=1.0)
    assert [name for name, _ in steps(logits, off, [0, 1])] == ["model", "temperature"]


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
