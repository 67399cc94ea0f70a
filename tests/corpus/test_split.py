"""Which documents validate: the share is met, both sides have some, names and order do not matter."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.corpus.split import characters_for_training, choose_validation, rank

SIZES = st.lists(st.integers(1, 10_000), min_size=2, max_size=60)
SHARES = st.floats(0.001, 0.999)


def choose(sizes: list[int], share: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    ranks = [rank(seed, hashlib.sha256(str(number).encode()).digest()) for number in range(len(sizes))]
    return choose_validation(np.array(sizes, np.int64), np.array(ranks, np.uint64), share)


@settings(deadline=None)
@given(SIZES, SHARES, st.integers())
def test_each_side_has_documents_and_no_further_one_would_bring_validation_nearer(
    sizes: list[int], share: float, seed: int
) -> None:
    taken = choose(sizes, share, seed)
    assert 0 < taken.sum() < len(sizes)
    wanted = share * sum(sizes)
    chosen = sum(size for size, validates in zip(sizes, taken, strict=True) if validates)
    if chosen < wanted and taken.sum() < len(sizes) - 1:
        others = [size for size, validates in zip(sizes, taken, strict=True) if not validates]
        assert all(abs(chosen + size - wanted) >= abs(chosen - wanted) * (1 - 1e-9) for size in others)


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=200, max_size=300), st.floats(0.05, 0.5))
def test_the_share_of_many_documents_is_met(sizes: list[int], share: float) -> None:
    taken = choose(sizes, share)
    assert abs(np.array(sizes)[taken].sum() - share * sum(sizes)) <= 50


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [([9, 1], 0.1, [False, True]), ([5, 5_000], 0.1, [True, False]), ([1, 5_000], 0.9999, [False, True])],
)
def test_few_documents_of_unequal_size(sizes: list[int], share: float, expected: list[bool]) -> None:
    for seed in range(20):
        assert choose(sizes, share, seed).tolist() == expected


@settings(deadline=None)
@given(SIZES, SHARES, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(sizes: list[int], share: float, random: object) -> None:
    ranks = np.array([rank(0, str(number).encode()) for number in range(len(sizes))], np.uint64)
    taken = choose_validation(np.array(sizes, np.int64), ranks, share)
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(sizes))  # type: ignore[attr-defined]
    assert np.array_equal(choose_validation(np.array(sizes, np.int64)[order], ranks[order], share), taken[order])


def test_seeds_choose_differently() -> None:
    chosen = {tuple(choose([10] * 100, 0.1, seed).tolist()) for seed in range(10)}
    assert len(chosen) == 10
    assert all(sum(taken) == 10 for taken in chosen)


def test_the_split_of_one_text_is_that_of_nanogpt() -> None:
    assert characters_for_training(1_115_394, 0.1) == 1_003_854
    for characters in range(2000):
        assert characters_for_training(characters, 0.1) == int(characters * 0.9)
