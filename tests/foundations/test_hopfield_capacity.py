"""How much a Hopfield network holds, counted, beside the theory of large networks and the exact law of small ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from rhapsode.foundations.hopfield_capacity import bit_error, count_errors, exact_bit_error, overlaps, retrieval_curve

LOADS = (0.05, 0.10, 0.138, 0.185, 0.37)
UNITS = 1000


@pytest.mark.parametrize("load", LOADS)
def test_one_update_errs_as_often_as_the_formula_says(load: float) -> None:
    """Errors are rare at small loads: there more networks make a number of them that can be compared."""
    wrong, bits = count_errors(units=UNITS, patterns=round(load * UNITS), networks=60 if load < 0.1 else 3, seed=0)
    expected = bit_error(load)
    assert abs(wrong / bits - expected) < 3 * math.sqrt(expected * (1 - expected) / bits)


@pytest.mark.parametrize(("units", "patterns"), [(60, 8), (61, 9), (100, 14), (200, 100)])
def test_errors_in_small_networks_follow_their_exact_law(units: int, patterns: int) -> None:
    """Here the formula of large networks is wrong by many standard errors, the exact law by none."""
    wrong, bits = count_errors(units=units, patterns=patterns, networks=1000, seed=1)
    expected = exact_bit_error(units, patterns)
    error = math.sqrt(expected * (1 - expected) / bits)
    assert abs(wrong / bits - expected) < 3 * error
    assert abs(bit_error(patterns / units) - expected) > 3 * error


def test_the_exact_law_is_that_of_a_binomial_sum() -> None:
    for units, patterns in [(2, 1), (2, 2), (2, 3), (5, 4), (60, 8), (61, 9), (1000, 50), (1000, 370)]:
        terms = (patterns - 1) * (units - 1)
        sums = 2 * np.arange(terms + 1) - terms
        below = np.flatnonzero(units - 1 + sums < 0)
        expected = stats.binom.cdf(below[-1], terms, 0.5) if len(below) else 0.0
        assert exact_bit_error(units, patterns) == pytest.approx(float(expected), rel=1e-7)


def test_the_formula_is_the_limit_of_the_exact_law() -> None:
    for load in LOADS:
        assert bit_error(load) == pytest.approx(0.5 * (1 - special.erf(1 / math.sqrt(2 * load))), rel=1e-9)
        assert exact_bit_error(10**6, round(load * 10**6)) == pytest.approx(bit_error(load), rel=1e-3)


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
    """Below 0.138 a pattern is at the bottom of a valley, above it its valley has gone."""
    kept = {
        patterns: float(
            np.mean(
                [
                    overlaps("hebbian", units=UNITS, patterns=patterns, flipped=0, states=20, seed=0, network=network)
                    > 0.9
                    for network in range(2)
                ]
            )
        )
        for patterns in (100, 120, 130, 150, 160, 180)
    }
    assert kept[100] == kept[120] == 1.0
    assert kept[130] > 0.8
    assert kept[150] < 0.5
    assert kept[160] < 0.2
    assert kept[180] == 0.0
