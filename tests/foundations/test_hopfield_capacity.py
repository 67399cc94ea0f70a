"""How much a Hopfield network holds, counted, beside the theory of large networks and the exact law of small ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import special, stats

from rhapsode.base.errors import InputError
from rhapsode.foundations.hopfield_capacity import (
    bit_error,
    error_shares,
    exact_bit_error,
    overlaps,
    random_patterns,
    retrieval_curve,
)

LOADS = (0.05, 0.10, 0.138, 0.185, 0.37)
UNITS = 1000


@pytest.mark.parametrize("load", LOADS)
def test_one_update_errs_as_often_as_the_formula_says(load: float) -> None:
    """Within three standard errors, those of independent units, which are smaller than the true ones.

    Errors are rare at small loads: there more networks make a number of them that can be compared.
    """
    patterns, networks, expected = round(load * UNITS), 50 if load < 0.1 else 4, bit_error(load)
    share = error_shares(units=UNITS, patterns=patterns, networks=networks, seed=0).mean()
    assert abs(share - expected) < 3 * math.sqrt(expected * (1 - expected) / (networks * patterns * UNITS))


@pytest.mark.parametrize(("units", "patterns"), [(60, 8), (61, 9), (100, 14), (200, 100)])
def test_errors_in_small_networks_follow_their_exact_law(units: int, patterns: int) -> None:
    """Here the formula of large networks is wrong by many standard errors, the exact law by none."""
    shares = error_shares(units=units, patterns=patterns, networks=600, seed=1)
    error = shares.std(ddof=1) / math.sqrt(len(shares))
    assert abs(shares.mean() - exact_bit_error(units, patterns)) < 3 * error
    assert abs(shares.mean() - bit_error(patterns / units)) > 5 * error


def test_the_exact_law_is_that_of_a_binomial_sum() -> None:
    for units, patterns in [(2, 1), (2, 2), (2, 3), (5, 4), (60, 8), (61, 9), (1000, 50), (1000, 370)]:
        terms = (patterns - 1) * (units - 1)
        sums = 2 * np.arange(terms + 1) - terms
        below = np.flatnonzero(units - 1 + sums < 0)
        expected = stats.binom.cdf(below[-1], terms, 0.5) if len(below) else 0.0
        assert exact_bit_error(units, patterns) == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: bit_error(0), "load: is 0. It must be more than 0."),
        (lambda: exact_bit_error(5, 0), "patterns: is 0. It must be at least 1."),
        (lambda: retrieval_curve(1.5), "points: 1.5 is not a whole number."),  # type: ignore[arg-type]
        (lambda: random_patterns(-1, 3, seed=0), "patterns: is -1. It must be at least 1."),
        (lambda: random_patterns(1, 3, seed="a"), "seed: 'a' is not a whole number."),  # type: ignore[arg-type]
        (lambda: error_shares(units=5, patterns=2, networks=0, seed=0), "networks: is 0. It must be at least 1."),
        (
            lambda: overlaps("hebbian", units=5, patterns=2, flipped=2, states=1, seed=0),
            "flipped: is 2. It must be at most 1.",
        ),
    ],
)
def test_questions_that_make_no_sense(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        ask()
    assert error.value.message == message


def test_the_formula_is_the_limit_of_the_exact_law() -> None:
    for load in LOADS:
        assert bit_error(load) == pytest.approx(0.5 * (1 - special.erf(1 / math.sqrt(2 * load))), rel=1e-9)
        assert exact_bit_error(10**5, round(load * 10**5)) == pytest.approx(bit_error(load), rel=5e-3)


def test_the_retrieval_curve_solves_the_equations_of_the_theory() -> None:
    """Amit, Gutfreund and Sompolinsky (1985): m, C and r at zero temperature; 0.138 and 0.967 where it ends."""
    loads, overlap = retrieval_curve()
    assert (np.diff(loads) > 0).all()
    assert (np.diff(overlap) < 0).all()
    assert loads[-1] == pytest.approx(0.1379, abs=1e-4)
    assert overlap[-1] == pytest.approx(0.967, abs=1e-3)
    for load, m in zip(loads[loads > 0.02], overlap[loads > 0.02], strict=True):
        y = special.erfinv(m)
        r = np.square(m / y) / (2 * load)
        c = math.sqrt(2 / (math.pi * load * r)) * math.exp(-(m**2) / (2 * load * r))
        assert r == pytest.approx(1 / (1 - c) ** 2, rel=1e-6)


def test_retrieval_breaks_down_near_the_critical_load() -> None:
    """Up to 0.138 patterns keep their valleys, with the overlap of the theory; above it valleys go.

    Theory has them go at once; 1,000 units feel their way through it. The larger the network, the nearer to 0.138.
    """
    found = {
        (units, load): np.concatenate(
            [
                overlaps("hebbian", units=units, patterns=round(load * units), flipped=0, states=20, seed=0, network=n)
                for n in range(3)
            ]
        )
        for units, load in [(250, 0.16), (250, 0.18), *((UNITS, load) for load in (0.10, 0.12, 0.138, 0.16, 0.18, 0.2))]
    }
    theory = dict(zip((0.10, 0.12, 0.138), np.interp((0.10, 0.12, 0.1379), *retrieval_curve()), strict=True))
    for load in (0.10, 0.12):
        assert found[UNITS, load].mean() == pytest.approx(theory[load], abs=0.01)
    assert found[UNITS, 0.138].mean() == pytest.approx(theory[0.138], abs=0.05)
    kept = {case: float(np.mean(overlap > 0.9)) for case, overlap in found.items()}
    assert kept[UNITS, 0.12] >= 0.95
    assert kept[UNITS, 0.138] >= 0.8
    assert kept[UNITS, 0.18] < 0.3
    assert kept[UNITS, 0.2] < 0.1
    for load in (0.16, 0.18):
        assert kept[UNITS, load] < kept[250, load]
