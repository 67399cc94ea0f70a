"""The loop of `rhapsode.foundations.skip_gram` over the words of a text, compiled for this processor by Numba.

It is kept on disk where Numba may write, so that it is compiled once. It holds no lock of the interpreter: threads run
it side by side on the same vectors, without waiting for each other (Recht et al. 2011, "Hogwild!").
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., object])

# SplitMix64 (Steele, Lea and Flood 2014). Every constant is unsigned: Numba makes the sum of a signed and an unsigned
# number a float.
STEP, FIRST_FACTOR, SECOND_FACTOR = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
U27, U30, U31, U32, LOW = (np.uint64(n) for n in (27, 30, 31, 32, 0xFFFFFFFF))

LEAST_CHANCE = 1e-9  # for the logarithm only: a probability in float32 may be zero
SMALL = 1e-200  # a product of chances that is smaller may become zero with the next ones


def compiled(function: Function) -> Function:
    """A function for the processor. Sums may be taken in any order, which lets it add eight or sixteen at a time."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
    try:
        done: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        done = numba.njit(**options)(function)
    return done


def is_kept() -> bool:
    """Whether the loop was compiled before, in this process or another."""
    folder = train.stats.cache_path  # type: ignore[attr-defined]  # Numba's
    return bool(train.signatures) or (folder is not None and any(Path(folder).glob("skip_gram_loop.train-*.nbi")))  # type: ignore[attr-defined]


@compiled
def drawn(state: Any) -> Any:
    """A random number of 64 bits from a state, which the caller moves on by STEP before each."""
    state = (state ^ (state >> U30)) * FIRST_FACTOR
    state = (state ^ (state >> U27)) * SECOND_FACTOR
    return state ^ (state >> U31)


@compiled
def train(
    words: Any,
    begins: Any,
    first: int,
    last: int,
    vectors: Any,
    outputs: Any,
    kept_share: Any,
    threshold: Any,
    alias: Any,
    window: int,
    negatives: int,
    rate: float,
    state: Any,
) -> tuple[float, int]:
    """One pass over the sentences from `first` to before `last`; changes `vectors` and `outputs` where they lie.

    Args:
        words: (words,) int32, of all sentences one after another.
        begins: (sentences + 1,) int64, where each begins, and the end.
        vectors, outputs: (vocabulary, dimension) float32.
        kept_share: (vocabulary,) float64, the probability that a word is kept when it is met.
        threshold, alias: (vocabulary,) uint64 and int32: in a column drawn evenly, its own word is the negative when 32
            more bits are below the threshold, else the alias (Walker 1977).
        window, negatives, rate: as in `SkipGram`.
        state: uint64, where the random numbers begin.

    Returns: the sum of the log-likelihoods in nats, each before its update, and of how many pairs.
    """
    dimension = vectors.shape[1]
    vocabulary = np.uint64(len(threshold))
    longest = 0
    for sentence in range(first, last):
        longest = max(longest, begins[sentence + 1] - begins[sentence])
    kept = np.empty(longest, np.int32)
    change = np.empty(dimension, np.float32)
    total, pairs = 0.0, 0
    for sentence in range(first, last):
        count = 0
        for place in range(begins[sentence], begins[sentence + 1]):
            state += STEP
            if np.float64(drawn(state) >> U32) < kept_share[words[place]] * 4294967296.0:
                kept[count] = words[place]
                count += 1
        for middle in range(count):
            vector = vectors[kept[middle]]
            state += STEP
            reach: Any = 1 + np.int64(((drawn(state) >> U32) * np.uint64(window)) >> U32)
            for place in range(max(0, middle - reach), min(count, middle + reach + 1)):
                if place == middle:
                    continue
                company = kept[place]
                change[:] = 0
                likelihood = 1.0  # of the pair and what is drawn against it: one logarithm for all of them
                for number in range(negatives + 1):
                    target = company
                    if number > 0:
                        state += STEP
                        random = drawn(state)
                        column = ((random >> U32) * vocabulary) >> U32
                        target = np.int32(column) if (random & LOW) < threshold[column] else alias[column]
                        if target == company:
                            continue
                    output = outputs[target]
                    score = np.float32(0)
                    for axis in range(dimension):
                        score += vector[axis] * output[axis]
                    probability = np.float32(1) / (np.float32(1) + np.exp(-score))
                    if number == 0:
                        step = np.float32(rate) * (np.float32(1) - probability)
                        likelihood *= max(probability, LEAST_CHANCE)
                    else:
                        step = -np.float32(rate) * probability
                        likelihood *= max(np.float32(1) - probability, LEAST_CHANCE)
                    if likelihood < SMALL:
                        total += np.log(likelihood)
                        likelihood = 1.0
                    for axis in range(dimension):
                        change[axis] += step * output[axis]
                        output[axis] += step * vector[axis]
                for axis in range(dimension):
                    vector[axis] += change[axis]
                total += np.log(likelihood)
                pairs += 1
    return total, pairs
