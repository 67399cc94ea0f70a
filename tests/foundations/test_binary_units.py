"""Tables over all states, against states written out one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.foundations.binary_units import (
    check_enumerable,
    correlations,
    draw,
    linear_table,
    log_sum_exp,
    numbers_of,
    quadratic_table,
    softplus,
    states,
)

units = st.integers(1, 8)
seeds = st.integers(0, 2**32 - 1)


def written_out(count: int) -> list[tuple[int, ...]]:
    """Every state, unit 0 changing fastest."""
    return [bits[::-1] for bits in product((0, 1), repeat=count)]


@given(units)
def test_states_stand_in_the_order_of_their_numbers(count: int) -> None:
    assert states(count).astype(int).tolist() == [list(state) for state in written_out(count)]
    assert numbers_of(states(count)).tolist() == list(range(2**count))


@given(units, seeds)
def test_tables_are_the_sums_written_out(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    biases, upper = random.normal(size=count), np.triu(random.normal(size=(count, count)), 1)
    linear, quadratic = linear_table(biases, 0.5), quadratic_table(upper + upper.T, biases)
    for number, state in enumerate(written_out(count)):
        alone = sum(bias * unit for bias, unit in zip(biases, state, strict=True))
        pairs = sum(upper[i, j] * state[i] * state[j] for i in range(count) for j in range(i + 1, count))
        assert linear[number] == pytest.approx(0.5 + alone, abs=1e-12)
        assert quadratic[number] == pytest.approx(alone + pairs, abs=1e-12)


@given(units, seeds)
def test_correlations_are_sums_over_states(count: int, seed: int) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(2**count))
    expected = sum(p * np.outer(state, state) for p, state in zip(probabilities, written_out(count), strict=True))
    np.testing.assert_allclose(correlations(probabilities), expected, atol=1e-13)


def test_large_numbers_do_not_overflow() -> None:
    assert log_sum_exp(np.array([1000.0, 1000.0])) == pytest.approx(1000 + np.log(2))
    assert log_sum_exp(np.array([[-2000.0, 0.0], [-2000.0, 0.0]]), axis=1).tolist() == [0.0, 0.0]
    assert softplus(np.array([-1000.0, 0.0, 1000.0])).tolist() == [0.0, pytest.approx(np.log(2)), 1000.0]


def test_a_draw_has_the_chances_and_the_type_it_was_given() -> None:
    chances = np.tile(np.array([0.0, 0.1, 0.7, 1.0], dtype=np.float32), (100_000, 1))
    drawn = draw(chances, np.random.default_rng(0))
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(axis=0), [0, 0.1, 0.7, 1], atol=0.006)


def test_too_many_states_are_refused() -> None:
    check_enumerable(20, "units")
    with pytest.raises(InputError, match=r"21 hidden units have 2\^21 states\. An exact answer"):
        check_enumerable(21, "hidden units")
