"""Units that are 0 or 1: their chances, their draws, and sums over all the states that some of them can be in.

A state of n units has the number sum of s_i 2^i: unit i is bit i. Tables over all states are in the order of these
numbers. They are made by doubling, one unit after the other, so that 2^n numbers cost about 2^n additions and no
matrix of states.
"""

from __future__ import annotations

import numpy as np

from rhapsode.base.errors import InputError
from rhapsode.foundations.estimator import Array

ENUMERABLE = 20
"""The most units whose states are enumerated: a million states."""


def softplus(x: Array) -> Array:
    """log(1 + exp(x)): what a unit with the input `x` adds to the logarithm of a sum over its two states."""
    result: Array = np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)
    return result


def log_sum_exp(x: Array, axis: int | None = None) -> Array:
    """log of the sum of exp(x) along `axis`, of numbers that may be large."""
    top = x.max(axis=axis, keepdims=True)
    result: Array = np.log(np.exp(x - top).sum(axis=axis)) + top.squeeze(axis)
    return result


def draw(chances: Array, random: np.random.Generator) -> Array:
    """A state for each unit, 1 with its chance. In the type of `chances`."""
    drawn: Array = (random.random(chances.shape, dtype=chances.dtype) < chances).astype(chances.dtype)
    return drawn


def check_enumerable(units: int, what: str) -> None:
    """
    Raises:
        InputError: `units` have too many states to go through all of them.
    """
    if units > ENUMERABLE:
        raise InputError(
            f"{units} {what} have 2^{units} states",
            todo=f"An exact answer goes through all of them, for at most {ENUMERABLE} units.",
        )


def states(units: int) -> Array:
    """(2^units, units): every state, in the order of the numbers."""
    numbers = np.arange(2**units)
    return (numbers[:, None] >> np.arange(units) & 1).astype(float)


def numbers_of(patterns: Array) -> Array:
    """(patterns,): the number of the state in each row of (patterns, units)."""
    numbers: Array = patterns.astype(np.int64) @ (1 << np.arange(patterns.shape[1]))
    return numbers


def linear_table(weights: Array, constant: float = 0.0) -> Array:
    """(2^units,): constant + weights . s for every state s of the units."""
    table: Array = np.array([constant], dtype=float)
    for weight in weights:
        table = np.concatenate([table, table + weight])
    return table


def quadratic_table(weights: Array, biases: Array) -> Array:
    """(2^units,): 1/2 s . weights s + biases . s for every state s; `weights` are symmetric with a zero diagonal."""
    table: Array = np.zeros(1)
    for unit in range(len(biases)):
        table = np.concatenate([table, table + linear_table(weights[unit, :unit], biases[unit])])
    return table


def correlations(probabilities: Array) -> Array:
    """(units, units): the probability that both of two units are 1; on the diagonal, that one is.

    Args:
        probabilities: (2^units,), of every state.
    """
    units = len(probabilities).bit_length() - 1
    result = np.empty((units, units))
    for first in range(units):
        # what is left over the lower bits, where bit `first` is 1
        lower = probabilities.reshape(-1, 2, 2**first)[:, 1].sum(axis=0)
        result[first, first] = lower.sum()
        for second in range(first):
            result[first, second] = result[second, first] = lower.reshape(-1, 2, 2**second)[:, 1].sum()
    return result
