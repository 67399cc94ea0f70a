"""Annealed importance sampling against exact sums over the hidden states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rhapsode.base.errors import InputError
from rhapsode.foundations.ais import estimate_log_partition
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine


@pytest.fixture(scope="module")
def pictures() -> Array:
    """(600, 49): bright blobs at random places."""
    random = np.random.default_rng(0)
    at, places = random.uniform(1, 6, (600, 2)), np.stack(np.meshgrid(np.arange(7), np.arange(7)), axis=-1)
    away = ((places[None] - at[:, None, None]) ** 2).sum(axis=-1)
    return np.exp(-away / 3).reshape(600, -1)


@pytest.fixture(scope="module")
def trained(pictures: Array) -> RestrictedBoltzmannMachine:
    """20 hidden units, and connections far from zero."""
    rbm = RestrictedBoltzmannMachine(hidden=20, epochs=40, seed=1).fit(pictures)
    assert np.abs(rbm.weights_).max() > 1
    return rbm


@pytest.mark.parametrize("near", [True, False])
def test_the_estimate_is_within_three_standard_errors_of_the_sum(
    trained: RestrictedBoltzmannMachine, pictures: Array, near: bool
) -> None:
    exact = trained.log_partition()
    found = [estimate_log_partition(trained, pictures if near else None, seed=seed) for seed in range(5)]
    for estimate in found:
        assert abs(estimate.log_partition - exact) < 3 * estimate.standard_error
        assert estimate.standard_error < 0.2
    mean = np.mean([estimate.log_partition for estimate in found])
    assert trained.score(pictures, log_partition=float(mean)) == pytest.approx(trained.score(pictures), abs=0.1)


def test_gaussian_units_too() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 3)) @ random.normal(size=(3, 10)) + random.normal(0, 0.5, (500, 10))
    rbm = RestrictedBoltzmannMachine(hidden=12, visible="gaussian", learning_rate=0.01, epochs=20).fit(x)
    for start in (x, None):
        estimate = estimate_log_partition(rbm, start, seed=3)
        assert abs(estimate.log_partition - rbm.log_partition()) < 3 * estimate.standard_error
        assert estimate.standard_error < 0.3


def test_one_machine_on_the_way_is_plain_importance_sampling() -> None:
    random = np.random.default_rng(0)
    rbm = RestrictedBoltzmannMachine(hidden=3, epochs=1).fit(random.integers(0, 2, (9, 4)))
    rbm.weights_ = random.normal(0, 0.5, (4, 3)).astype(np.float32)
    estimate = estimate_log_partition(rbm, chains=20_000, temperatures=1)
    assert abs(estimate.log_partition - rbm.log_partition()) < 3 * estimate.standard_error < 0.03


def test_a_machine_without_connections_is_known_exactly() -> None:
    rbm = RestrictedBoltzmannMachine(hidden=3, epochs=1).fit(np.eye(4))
    rbm.weights_[:], rbm.hidden_biases_[:] = 0, 0
    estimate = estimate_log_partition(rbm, chains=2, temperatures=5)
    assert estimate.log_partition == pytest.approx(rbm.log_partition(), abs=1e-9)
    assert estimate.standard_error < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [[0, 1]]}, r"x: has the shape \(1, 2\), not \(examples, 4\)"),
        ({"chains": 1}, "chains: is 1. It must be at least 2"),
        ({"temperatures": 0}, "temperatures: is 0"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    rbm = RestrictedBoltzmannMachine(hidden=3, epochs=1).fit(np.eye(4))
    with pytest.raises(InputError, match=message):
        estimate_log_partition(rbm, **arguments)
    with pytest.raises(InputError, match="has learned nothing yet"):
        estimate_log_partition(RestrictedBoltzmannMachine())
