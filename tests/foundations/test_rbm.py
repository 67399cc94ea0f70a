"""Restricted Boltzmann machines: energies and likelihoods written out state by state, gradients against torch's."""

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
from sklearn.neural_network import BernoulliRBM

from rhapsode.base.errors import DamagedError, InputError, NotFiniteError
from rhapsode.foundations.binary_units import numbers_of, states
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine


def machine(inputs: int, hidden: int, *, scale: float = 1.0, seed: int = 0, **more: Any) -> RestrictedBoltzmannMachine:
    """One with random parameters."""
    random = np.random.default_rng(seed)
    ours = RestrictedBoltzmannMachine(hidden=hidden, seed=seed, epochs=1, **more)
    ours.fit(random.integers(0, 2, (4, inputs)))
    ours.weights_ = random.normal(0, scale, (inputs, hidden)).astype(np.float32)
    ours.visible_biases_ = random.normal(0, scale, inputs).astype(np.float32)
    ours.hidden_biases_ = random.normal(0, scale, hidden).astype(np.float32)
    if ours.visible == "gaussian":
        ours.variances_ = random.uniform(0.3, 2, inputs).astype(np.float32)
    return ours


def energy(ours: RestrictedBoltzmannMachine, v: Array, h: Array) -> float:
    """As it is defined, of one state."""
    b, c, w, s = (
        array.astype(float) for array in (ours.visible_biases_, ours.hidden_biases_, ours.weights_, ours.variances_)
    )
    if ours.visible == "gaussian":
        return float(((v - b) ** 2 / (2 * s)).sum() - c @ h - (v / s) @ w @ h)
    return float(-b @ v - c @ h - v @ w @ h)


def exact(visible: str, parameters: dict[str, torch.Tensor], x: Array) -> torch.Tensor:
    """The mean log-likelihood of the rows of x, in torch, every hidden state written out."""
    v = torch.tensor(x, dtype=torch.float64)
    b, c, w, z = (parameters[name] for name in ("visible_biases", "hidden_biases", "weights", "log_variances"))
    every = torch.tensor(list(product((0.0, 1.0), repeat=len(c))), dtype=torch.float64)  # (states, hidden)
    if visible == "gaussian":
        s = z.exp()
        joint = -((v - b) ** 2 / (2 * s)).sum(1)[:, None] + every @ c + (v / s) @ w @ every.T
        mean = b + every @ w.T
        log_z = (
            torch.logsumexp(every @ c + ((mean**2 - b**2) / (2 * s)).sum(1), 0) + 0.5 * (2 * math.pi * s).log().sum()
        )
    else:
        joint = (v @ b)[:, None] + every @ c + v @ w @ every.T
        log_z = torch.logsumexp(every @ c + torch.nn.functional.softplus(b + every @ w.T).sum(1), 0)
    return (torch.logsumexp(joint, 1) - log_z).mean()


def in_torch(ours: RestrictedBoltzmannMachine) -> dict[str, torch.Tensor]:
    arrays = {
        "weights": ours.weights_,
        "visible_biases": ours.visible_biases_,
        "hidden_biases": ours.hidden_biases_,
        "log_variances": np.log(ours.variances_.astype(float)),
    }
    return {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}


def gradient(ours: RestrictedBoltzmannMachine, x: Array) -> dict[str, Array]:
    """The exact one, of the mean log-likelihood."""
    parameters = in_torch(ours)
    exact(ours.visible, parameters, x).backward()
    return {name: np.zeros(p.shape) if p.grad is None else p.grad.numpy() for name, p in parameters.items()}


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_binary_probabilities_are_those_of_the_energy(visible: int, hidden: int, seed: int) -> None:
    ours = machine(visible, hidden, seed=seed)
    of_states = np.array([[energy(ours, v, h) for h in states(hidden)] for v in states(visible)])
    unnormalised = np.exp(-of_states).sum(axis=1)
    np.testing.assert_allclose(-ours.free_energy(states(visible)), np.log(unnormalised), atol=1e-10)
    assert ours.log_partition() == pytest.approx(np.log(unnormalised.sum()), abs=1e-10)
    np.testing.assert_allclose(np.exp(ours.log_likelihood(states(visible))).sum(), 1, atol=1e-10)
    on = np.exp(-of_states) @ states(hidden) / unnormalised[:, None]
    np.testing.assert_allclose(ours.transform(states(visible)), on, atol=1e-10)


def test_gaussian_densities_are_those_of_the_energy_and_integrate_to_one() -> None:
    ours = machine(2, 3, visible="gaussian")
    axis = np.linspace(-15, 15, 601)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = np.exp(ours.log_likelihood(grid))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-6)
    for v in grid[::40_000]:
        written_out = np.log(sum(np.exp(-energy(ours, v, h)) for h in states(3)))
        assert -ours.free_energy(v[None])[0] == pytest.approx(written_out, abs=1e-9)


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_likelihood_is_torchs(visible: Any) -> None:
    ours = machine(5, 4, visible=visible)
    x = np.random.default_rng(1).random((30, 5))
    assert ours.score(x) == pytest.approx(exact(visible, in_torch(ours), x).item(), abs=1e-10)


def test_scikit_learn_agrees_on_features_and_free_energies() -> None:
    ours, x = machine(6, 4), np.random.default_rng(0).integers(0, 2, (10, 6)).astype(float)
    theirs = BernoulliRBM(n_components=4, n_iter=1).fit(x)
    theirs.components_ = ours.weights_.T.astype(float)
    theirs.intercept_hidden_, theirs.intercept_visible_ = ours.hidden_biases_, ours.visible_biases_
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-12)
    np.testing.assert_allclose(ours.free_energy(x), theirs._free_energy(x), atol=1e-12)


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
@pytest.mark.parametrize("persistent", [True, False])
def test_long_chains_estimate_the_exact_gradient(visible: Any, persistent: bool) -> None:
    count = 40_000
    ours = machine(3, 4, scale=0.6, visible=visible, steps=60, persistent=persistent, batch_size=count)
    x = np.random.default_rng(2).normal(0.5, 1, (8, 3)) if visible == "gaussian" else states(3)
    estimate = ours.sampled_gradient(np.repeat(x, count // len(x), axis=0))
    expected = gradient(ours, x)
    for name in ("weights", "visible_biases", "hidden_biases") + ("log_variances",) * (visible == "gaussian"):
        # the numbers averaged over 40,000 chains have standard deviations of at most 3
        np.testing.assert_allclose(getattr(estimate, name), expected[name], atol=0.06)


def after_steps(ours: RestrictedBoltzmannMachine, x: Array, steps: int) -> Array:
    """(2^visible,): where k steps of Gibbs sampling from the rows of x lead to, by the transition matrix."""
    v, h = states(len(ours.visible_biases_)), states(ours.hidden)
    joint = np.exp(-np.array([[energy(ours, a, b) for b in h] for a in v]))  # (2^visible, 2^hidden)
    step = (joint / joint.sum(axis=1, keepdims=True)) @ (joint / joint.sum(axis=0)).T
    start = np.bincount(numbers_of(x), minlength=len(v)) / len(x)
    return start @ np.linalg.matrix_power(step, steps)


def test_contrastive_divergence_is_what_its_steps_make_it_and_less_biased_with_more(bars_and_stripes: Array) -> None:
    x, h_of = bars_and_stripes, RestrictedBoltzmannMachine.transform
    ours = RestrictedBoltzmannMachine(hidden=6, persistent=False, batch_size=14, epochs=2000, seed=1).fit(x)
    biases = {}
    for ours.steps in (1, 10):
        estimate = ours.sampled_gradient(np.tile(x, (4000, 1))).weights
        dreamt = states(9) * after_steps(ours, x, ours.steps)[:, None]
        expected = x.T @ h_of(ours, x) / len(x) - dreamt.T @ h_of(ours, states(9))
        np.testing.assert_allclose(estimate, expected, atol=0.01)  # 56,000 chains
        biases[ours.steps] = np.linalg.norm(expected - gradient(ours, x)["weights"])
    assert biases[10] < 0.5 * biases[1]


@pytest.mark.parametrize(("steps", "persistent"), [(5, True), (10, False)])
def test_bars_and_stripes_are_learned(bars_and_stripes: Array, steps: int, persistent: bool) -> None:
    ours = RestrictedBoltzmannMachine(
        hidden=20, learning_rate=0.3, batch_size=140, epochs=2500, steps=steps, persistent=persistent
    )
    ours.fit(np.tile(bars_and_stripes, (10, 1)))
    assert math.log(14) < -ours.score(bars_and_stripes) < math.log(14) + 0.2


def test_a_mixture_of_gaussians_is_learned() -> None:
    random = np.random.default_rng(0)
    centres = np.array([[0, 0], [2, 0], [0, 2], [2, 2]]) - 1.0
    draws = [centres[random.integers(4, size=2000)] + 0.3 * random.normal(size=(2000, 2)) for _ in range(2)]
    ours = RestrictedBoltzmannMachine(
        hidden=4, visible="gaussian", learning_rate=0.3, epochs=50, batch_size=50, steps=5, persistent=False
    ).fit(draws[0])
    away = ((draws[1][:, None] - centres) ** 2).sum(axis=2)
    true = np.log(np.exp(-away / (2 * 0.09)).mean(axis=1) / (2 * math.pi * 0.09)).mean()
    one_gaussian = -0.5 * np.log(2 * math.pi * np.e * draws[0].var(axis=0)).sum()
    assert ours.score(draws[1]) > one_gaussian + 0.95 * (true - one_gaussian)
    np.testing.assert_allclose(ours.variances_, 0.09, atol=0.02)


def test_it_does_not_matter_in_what_unit_real_numbers_are_measured() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)) @ np.random.default_rng(1).normal(size=(3, 4))
    fits = [
        RestrictedBoltzmannMachine(hidden=5, visible="gaussian", epochs=5).fit(scale * x) for scale in (1.0, 1024.0)
    ]
    np.testing.assert_allclose(fits[0].transform(x), fits[1].transform(1024 * x), atol=1e-4)


def test_a_learning_rate_that_is_too_large_is_told() -> None:
    x = np.random.default_rng(0).normal(size=(200, 30)) @ np.ones((30, 30))
    with pytest.raises(NotFiniteError, match=r"pass [0-9]+: the weights are no numbers any more\. Lower the learning"):
        RestrictedBoltzmannMachine(visible="gaussian", learning_rate=100.0).fit(x)
    good = RestrictedBoltzmannMachine(visible="gaussian", epochs=1).fit(x)
    before, good.learning_rate = good.transform(x), 1e9
    with pytest.raises(NotFiniteError):
        good.partial_fit(x)
    assert np.array_equal(good.transform(x), before)  # what was learned stays


def test_chains_visit_states_as_often_as_they_are_probable() -> None:
    ours = machine(4, 3, seed=2)
    v, means = ours.sample(40_000, steps=30)
    frequencies = np.bincount(numbers_of(v), minlength=16) / len(v)
    np.testing.assert_allclose(frequencies, np.exp(ours.log_likelihood(states(4))), atol=0.01)
    np.testing.assert_allclose(means.mean(axis=0), v.mean(axis=0), atol=0.01)


def test_gaussian_chains_have_the_moments_of_the_density() -> None:
    ours = machine(2, 3, visible="gaussian", scale=0.7)
    v, _ = ours.sample(40_000, steps=50)
    hidden = states(3)
    centres = ours.visible_biases_ + hidden @ ours.weights_.T
    shares = np.array(
        [np.exp(-ours.log_partition()) * np.exp(-energy(ours, c, h)) for c, h in zip(centres, hidden, strict=True)]
    )
    shares *= np.sqrt(2 * math.pi * ours.variances_.astype(float)).prod()  # the peak of each Gaussian to its mass
    assert shares.sum() == pytest.approx(1)
    mean = shares @ centres
    np.testing.assert_allclose(v.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(v.var(axis=0), shares @ (centres - mean) ** 2 + ours.variances_, rtol=0.05)


def test_reconstruction_goes_up_and_down() -> None:
    ours, x = machine(6, 4), np.random.default_rng(0).random((5, 6))
    expected = 1 / (1 + np.exp(-(ours.transform(x) @ ours.weights_.T + ours.visible_biases_)))
    np.testing.assert_allclose(ours.reconstruct(x), expected, atol=1e-12)


def test_layers_of_either_size_can_be_the_smaller_one() -> None:
    wide = machine(25, 3)
    narrow = machine(3, 25)
    narrow.weights_, narrow.visible_biases_, narrow.hidden_biases_ = (
        wide.weights_.T,
        wide.hidden_biases_,
        wide.visible_biases_,
    )
    assert wide.log_partition() == pytest.approx(narrow.log_partition(), abs=1e-9)


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
@pytest.mark.parametrize("persistent", [True, False])
def test_what_was_saved_goes_on_with_the_same_bits(tmp_path: Path, visible: Any, persistent: bool) -> None:
    x = np.random.default_rng(0).random((23, 5))
    whole = RestrictedBoltzmannMachine(hidden=3, visible=visible, persistent=persistent, epochs=2, seed=4).fit(x)
    whole.save(tmp_path / "rbm")
    again = RestrictedBoltzmannMachine.load(tmp_path / "rbm")
    assert again.settings() == whole.settings()
    for ours in (whole, again):
        ours.partial_fit(x).partial_fit(x)
    for name in whole.learned:
        assert np.array_equal(getattr(whole, name), getattr(again, name)), name
    assert np.array_equal(whole.transform(x), again.transform(x))


def test_damaged_shapes_are_refused(tmp_path: Path) -> None:
    ours = machine(3, 2)
    ours.hidden_biases_ = np.zeros(5, dtype=np.float32)
    ours.save(tmp_path / "rbm")
    with pytest.raises(DamagedError, match=r"hidden_biases_: has the shape \(5,\)"):
        RestrictedBoltzmannMachine.load(tmp_path / "rbm")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: RestrictedBoltzmannMachine().fit([[0, 0.5, 2]]),
            r"x\[0, 2\]: is 2.0. It must be a number from 0 to 1.",
        ),
        (lambda: RestrictedBoltzmannMachine(visible="gaussian").fit([[0, np.inf]]), r"x\[0, 1\]: is inf."),
        (lambda: RestrictedBoltzmannMachine().fit([[0, np.nan]]), r"x\[0, 1\]: is not a number"),
        (lambda: RestrictedBoltzmannMachine().fit([0, 1]), r"x: has the shape \(2,\), not \(examples, visible\)"),
        (lambda: RestrictedBoltzmannMachine().transform([[0]]), "has learned nothing yet"),
        (lambda: machine(3, 2).transform([[0, 1]]), r"x: has the shape \(1, 2\), not \(examples, 3\)"),
        (lambda: machine(3, 2).partial_fit([[0, 1]]), r"x: has the shape \(1, 2\)"),
        (lambda: machine(3, 2).inverse_transform([[0, 1, 1]]), r"h: has the shape \(1, 3\), not \(examples, 2\)"),
        (lambda: machine(3, 2).score([[0, 1, 1]], log_partition=math.nan), "log_partition: nan is not a number"),
        (lambda: RestrictedBoltzmannMachine(persistent=1), "persistent: is 1"),  # type: ignore[arg-type]
        (lambda: machine(21, 22).log_partition(), r"21 units in the smaller layer have 2\^21 states"),
        (lambda: machine(2, 21, visible="gaussian").log_partition(), r"21 hidden units have 2\^21 states"),
        (lambda: RestrictedBoltzmannMachine(visible="real"), "visible: is 'real'"),  # type: ignore[arg-type]
        (lambda: RestrictedBoltzmannMachine(steps=0), "steps: is 0. It must be at least 1"),
        (lambda: machine(3, 2).sample(0), "count: is 0"),
        (lambda: machine(3, 2).gibbs([[0, 1, 1]], 0), "steps: is 0"),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
