"""Boltzmann machines: the learning rule against torch's gradient of the likelihood written out."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.foundations.binary_units import numbers_of, states
from rhapsode.foundations.boltzmann import BoltzmannMachine
from rhapsode.foundations.estimator import Array

EVEN = np.array([state for state in product((0, 1), repeat=3) if sum(state) % 2 == 0])
"""Three bits of which an even number is 1: each pair of bits is independent, the three together are not."""


def machine(visible: int, hidden: int = 0, *, scale: float = 1.0, seed: int = 0, **settings: Any) -> BoltzmannMachine:
    """One with random weights."""
    units, random = visible + hidden, np.random.default_rng(seed)
    upper = np.triu(random.normal(0, scale, (units, units)), 1)
    return BoltzmannMachine.with_weights(
        upper + upper.T, random.normal(0, scale, units), hidden=hidden, seed=seed, **settings
    )


def examples(count: int, visible: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(0, 2, (count, visible))


def log_likelihood(x: Array, weights: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    """The mean over rows, every state written out; a pair's weight is the one above the diagonal."""
    every = torch.tensor(list(product((0.0, 1.0), repeat=len(biases))), dtype=torch.float64)
    scores = ((every @ torch.triu(weights, 1)) * every).sum(1) + every @ biases
    log_probabilities = scores - torch.logsumexp(scores, 0)
    rows = torch.tensor(x, dtype=torch.float64)
    fits = (every[None, :, : rows.shape[1]] == rows[:, None]).all(2)  # (examples, states)
    return torch.stack([torch.logsumexp(log_probabilities[row], 0) for row in fits]).mean()


@pytest.mark.parametrize(("visible", "hidden"), [(2, 0), (5, 0), (12, 0), (3, 2), (4, 5), (6, 6), (1, 11), (11, 1)])
def test_the_two_phase_rule_is_the_gradient_of_the_likelihood(visible: int, hidden: int) -> None:
    for seed in range(3):
        ours = machine(visible, hidden, seed=seed)
        x = examples(20, visible, seed)
        weights = torch.tensor(ours.weights_, requires_grad=True)
        biases = torch.tensor(ours.biases_, requires_grad=True)
        likelihood = log_likelihood(x, weights, biases)
        likelihood.backward()
        assert weights.grad is not None
        assert biases.grad is not None
        upper = weights.grad.numpy()
        expected = upper + upper.T + np.diag(biases.grad.numpy())
        np.testing.assert_allclose(ours.gradient(x), expected, rtol=0, atol=1e-10)
        assert ours.score(x) == pytest.approx(likelihood.item(), abs=1e-10)


def test_an_exact_update_goes_along_the_gradient() -> None:
    ours = BoltzmannMachine(hidden=3, phases="exact", learning_rate=0.25)
    x = examples(10, 4)
    ours.partial_fit(x)
    weights, biases, slope = ours.weights_.copy(), ours.biases_.copy(), ours.gradient(x)
    ours.partial_fit(x)
    np.testing.assert_allclose(ours.biases_ - biases, 0.25 * slope.diagonal(), atol=1e-15)
    np.testing.assert_allclose(ours.weights_ - weights, 0.25 * (slope - np.diag(slope.diagonal())), atol=1e-15)
    assert ours.updates_ == 2


@pytest.mark.parametrize("annealing", [[], [4.0, 2.0, 1.5]])
def test_sampled_phases_estimate_the_exact_rule(annealing: list[float]) -> None:
    ours = machine(4, 2, chains=4000, sweeps=50, annealing=annealing)
    x = examples(400, 4)
    # 4,000 chains of 50 dependent sweeps, 400 rows: standard errors of at most 0.008
    np.testing.assert_allclose(ours.sampled_gradient(x), ours.gradient(x), rtol=0, atol=0.03)


@pytest.mark.parametrize(("visible", "hidden", "seed"), [(5, 0, 0), (6, 0, 1), (3, 3, 2)])
def test_frequencies_of_one_long_chain_are_the_exact_distribution(visible: int, hidden: int, seed: int) -> None:
    ours = machine(visible, hidden, seed=seed)
    chain = ours.gibbs(np.ones(100_000))[:, 0, :visible]
    frequencies = np.bincount(numbers_of(chain), minlength=2**visible) / len(chain)
    assert 0.5 * np.abs(frequencies - ours.distribution()).sum() < 0.02


def test_clamped_chains_follow_the_conditional_distribution() -> None:
    ours = machine(4, 3, seed=5)
    held = np.array([1, 0, 1, 1])
    chain = ours.gibbs(np.ones(300), chains=400, clamped=held)
    assert (chain[:, :, :4] == held).all()
    np.testing.assert_allclose(chain[50:, :, 4:].mean(axis=(0, 1)), ours.transform(held[None])[0], atol=0.01)


def test_samples_have_the_distribution() -> None:
    ours = machine(4, 2, seed=3)
    sample = ours.sample(20_000, sweeps=50)
    frequencies = np.bincount(numbers_of(sample), minlength=16) / len(sample)
    assert 0.5 * np.abs(frequencies - ours.distribution()).sum() < 0.02


@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_probability_is_what_the_energy_says(visible: int, hidden: int, seed: int) -> None:
    ours = machine(visible, hidden, seed=seed)
    boltzmann = np.exp(-ours.energy(states(visible + hidden)) - ours.log_partition())
    np.testing.assert_allclose(boltzmann.reshape(2**hidden, -1).sum(axis=0), ours.distribution(), atol=1e-12)
    assert ours.distribution().sum() == pytest.approx(1)


@given(st.integers(2, 10), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_without_heat_the_energy_never_rises(units: int, seed: int) -> None:
    ours = machine(units, seed=seed)
    chains = ours.gibbs(np.zeros(8), chains=5)
    energies = np.array([ours.energy(sweep) for sweep in chains])
    assert (np.diff(energies, axis=0) <= 1e-12).all()


def test_cooling_slowly_finds_lower_energies_than_cooling_at_once() -> None:
    slowly = np.append(np.geomspace(5, 0.1, 100), 0)
    small, large = (machine(units, scale=3) for units in (14, 60))
    found = small.energy(small.gibbs(slowly, chains=50)[-1])
    np.testing.assert_allclose(found, small.energy(states(14)).min())  # every one of 50
    means = [large.energy(large.gibbs(way, chains=50)[-1]).mean() for way in (slowly, np.zeros(101))]
    assert means[0] < 1.02 * means[1] < 0


def test_pairs_alone_cannot_learn_parity_and_hidden_units_can() -> None:
    alone = BoltzmannMachine(phases="exact", learning_rate=1.0, epochs=500).fit(EVEN)
    assert -alone.score(EVEN) == pytest.approx(3 * math.log(2), abs=1e-6)  # what it knows after learning: nothing
    for phases in ("exact", "sampled"):
        helped = BoltzmannMachine(hidden=3, phases=phases, learning_rate=1.0, epochs=2500, first_weights=1.0, seed=1)
        assert -helped.fit(np.tile(EVEN, (50, 1))).score(EVEN) < math.log(4) + 0.1


@pytest.mark.parametrize("annealing", [(), (4, 3, 2)])
def test_dreams_teach_what_sums_over_all_states_teach(annealing: tuple[float, ...]) -> None:
    x = machine(5, seed=4).sample(400, sweeps=50)
    exact = BoltzmannMachine(phases="exact", learning_rate=1.0, epochs=1000).fit(x)
    dreamer = BoltzmannMachine(learning_rate=0.5, epochs=1000, annealing=annealing).fit(x)
    assert exact.score(x) > dreamer.score(x) > exact.score(x) - 0.01


def test_what_was_saved_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    x = examples(10, 4)
    whole = BoltzmannMachine(hidden=2, epochs=1, chains=7, annealing=[2.0], seed=3).fit(x)
    whole.save(tmp_path / "machine")
    again = BoltzmannMachine.load(tmp_path / "machine")
    assert again.settings() == whole.settings()
    for ours in (whole, again):
        ours.partial_fit(x).partial_fit(x)
    assert np.array_equal(whole.weights_, again.weights_)
    assert np.array_equal(whole.dreams_, again.dreams_)
    assert whole.updates_ == again.updates_ == 3


def test_damaged_shapes_are_refused(tmp_path: Path) -> None:
    ours = BoltzmannMachine(hidden=1, epochs=1).fit(EVEN)
    ours.hidden = 4
    ours.save(tmp_path / "machine")
    with pytest.raises(DamagedError, match="leave none visible"):
        BoltzmannMachine.load(tmp_path / "machine")


def test_arrays_of_another_type_are_made_right(tmp_path: Path) -> None:
    x = examples(10, 4)
    ours = BoltzmannMachine(hidden=1, epochs=1, chains=3).fit(x)
    ours.weights_, ours.biases_ = np.zeros((5, 5), np.int8), [0, 0, 0, 0, 0]  # type: ignore[assignment]
    ours.dreams_ = ours.dreams_.astype(np.float32)
    ours.save(tmp_path / "machine")
    again = BoltzmannMachine.load(tmp_path / "machine").partial_fit(x)
    assert (again.weights_.dtype, again.biases_.dtype, again.dreams_.dtype) == (np.float64, np.float64, np.uint8)


def test_the_same_seed_gives_the_same_machine() -> None:
    fits = [BoltzmannMachine(hidden=1, epochs=5, seed=seed).fit(EVEN).weights_ for seed in (1, 1, 2)]
    assert np.array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BoltzmannMachine().fit([[0, 1, 2]]), r"x\[0, 2\]: is 2. It must be 0 or 1."),
        (lambda: BoltzmannMachine().fit([0, 1]), r"x: has the shape \(2,\)"),
        (lambda: BoltzmannMachine().fit([[0.0, float("nan")]]), r"x\[0, 1\]: is not a number"),
        (lambda: BoltzmannMachine().score(EVEN), "has learned nothing yet"),
        (lambda: machine(3).score([[0, 1]]), r"x: has the shape \(1, 2\), not \(examples, 3\)"),
        (lambda: machine(3).partial_fit([[0, 1]]), r"x: has the shape \(1, 2\)"),
        (lambda: BoltzmannMachine(hidden=18, phases="exact").fit(EVEN), r"21 units have 2\^21 states"),
        (lambda: machine(21).log_partition(), r"21 units have 2\^21 states"),
        (lambda: BoltzmannMachine(phases="guessed"), "phases: is 'guessed'"),  # type: ignore[arg-type]
        (lambda: BoltzmannMachine(annealing=[2, 0]), "annealing: is 0. It must be more than 0"),
        (lambda: BoltzmannMachine(hidden=-1), "hidden: is -1"),
        (lambda: BoltzmannMachine.with_weights([[0, 1], [2, 0]], [0, 0]), "weights: are not symmetric"),
        (lambda: BoltzmannMachine.with_weights([[1]], [0]), "weights: are not symmetric with a zero diagonal"),
        (lambda: BoltzmannMachine.with_weights([[0]], [0], hidden=1), "biases: 1 units, 1 of them hidden"),
        (lambda: machine(2).gibbs([1.0, -1.0]), "temperatures: holds a negative temperature"),
        (lambda: machine(2).gibbs([1.0], start=[[0.5, 1]]), r"start\[0, 0\]: is 0.5. It must be 0 or 1."),
        (lambda: machine(2).gibbs([1.0], clamped=[0, 1, 1]), r"clamped: has the shape \(3,\), not \(2,\)"),
        (lambda: machine(2).energy([[0, 1, 1]]), r"states: has the shape \(1, 3\)"),
        (lambda: machine(2).gibbs([1.0], seed="a"), "seed: 'a' is not a whole number"),  # type: ignore[arg-type]
        (lambda: machine(2).sample(1, sweeps=1, seed=0.5), "seed: 0.5 is not a whole number"),  # type: ignore[arg-type]
        (lambda: BoltzmannMachine(annealing=3.0), "annealing: is 3.0 and no list"),  # type: ignore[arg-type]
        (lambda: BoltzmannMachine.with_weights([[0]], [1e300]), r"biases\[0\]: is 1e\+300"),
        (lambda: BoltzmannMachine().begin(-3), "visible: is -3. It must be at least 1"),
        (lambda: BoltzmannMachine().begin("x"), "visible: 'x' is not a whole number"),  # type: ignore[arg-type]
        (lambda: BoltzmannMachine().units, "has learned nothing yet"),
        (lambda: BoltzmannMachine().visible, "has learned nothing yet"),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
