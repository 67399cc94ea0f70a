"""Attention over blocks in any order, in all that a cache keeps numbers in, against a softmax in fp64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.kernels.attention import POSITIONS, keep, load_kept, mix, score, soften
from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.vectors import store_floats
from rhapsode.model.block_cache import BLOCK

from .oracles import EPSILON

TYPES: dict[CacheType, type] = {"float32": np.float32, "float16": np.uint16, "int8": np.int8}
KEPT: list[CacheType] = ["float32", "float16", "int8"]

Floats = npt.NDArray[np.float32]


@compiled
def keep_one(row, kept, at, apart, size, factors, place, spare):
    keep(row, kept, at, apart, size, factors, place, spare)


@compiled
def look(kept, at, out):
    store_floats(out, 0, load_kept(kept, at))


def kept_again(x: Floats, kind: CacheType) -> npt.NDArray[np.float64]:
    """What a cache gives back of vectors (vectors, size)."""
    if kind == "float32":
        return x.astype(np.float64)
    if kind == "float16":
        return x.astype(np.float16).astype(np.float64)
    largest = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 1e-36)
    return np.rint(x * inverse).astype(np.float64) * (largest / np.float32(127))


class Cache:
    """Keys and values of one layer and one head, in so many blocks; what was never written is no number."""

    def __init__(self, kind: CacheType, blocks: int, width: int) -> None:
        self.width, self.kind = width, kind
        none = {"float32": np.nan, "float16": 0x7E00, "int8": 77}[kind]
        self.keys = np.full(blocks * POSITIONS * width, none, TYPES[kind])
        self.values = self.keys.copy()
        count = blocks * POSITIONS if kind == "int8" else 0
        self.key_factors, self.value_factors = np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32)

    def write(self, block: int, inside: int, key: Floats, value: Floats) -> None:
        """As the program does."""
        begin, spare = block * POSITIONS * self.width, np.empty(self.width, np.uint16)
        place = block * POSITIONS + inside
        keep_one(key.copy(), self.keys, begin + inside, POSITIONS, self.width, self.key_factors, place, spare)
        at = begin + inside * self.width
        keep_one(value.copy(), self.values, at, 1, self.width, self.value_factors, place, spare)

    def attend(self, query: Floats, head_dim: int, blocks: list[int], begin: int, end: int, scale: float) -> Floats:
        """What a query sees of the positions from `begin` to `end`."""
        first, last = begin // POSITIONS, (end - 1) // POSITIONS
        scores = np.full((last - first + 1) * POSITIONS + 8, 55, np.float32)
        for number in range(first, last + 1):
            at, block = 8 + (number - first) * POSITIONS, blocks[number]
            of = block * POSITIONS * self.width
            arguments = (self.keys, of, self.key_factors, block * POSITIONS, np.float32(scale))
            score(query, 0, head_dim, *arguments, scores, at)
        share = np.float32(soften(scores, 8, begin, end))  # as a number of Python it comes back
        if self.kind == "int8":
            for number in range(first, last + 1):
                at, block = 8 + (number - first) * POSITIONS, blocks[number]
                scores[at : at + POSITIONS] *= self.value_factors[block * POSITIONS : (block + 1) * POSITIONS]
        out, table = np.full(self.width + 16, 55, np.float32), np.array(blocks, np.int64)
        mix(scores, 8, begin, end, self.values, 0, table, POSITIONS * self.width, self.width, share, out, 8)
        assert (out[:8] == 55).all() and (out[8 + self.width :] == 55).all()
        return out[8 : 8 + head_dim]


def filled(
    draw: np.random.Generator, kind: CacheType, length: int, head_dim: int
) -> tuple[Cache, list[int], Floats, Floats]:
    """A cache with a text in it, in what order its blocks lie, and its keys and values (length, padded head_dim)."""
    width, count = -(-head_dim // 8) * 8, -(-length // POSITIONS)
    cache, blocks = Cache(kind, count + 2, width), draw.permutation(count + 2)[:count].tolist()
    keys, values = np.zeros((2, length, width), np.float32)
    keys[:, :head_dim], values[:, :head_dim] = draw.standard_normal((2, length, head_dim))
    keys[draw.random(length) < 0.1] = 0
    for position in range(length):
        block = blocks[position // POSITIONS]
        cache.write(block, position % POSITIONS, keys[position], values[position])
    return cache, blocks, keys, values


def test_a_block_is_as_long_as_the_models() -> None:
    assert POSITIONS == BLOCK


@pytest.mark.parametrize("kind", KEPT)
@given(
    seed=st.integers(0, 2**32 - 1),
    head_dim=st.integers(1, 80),
    length=st.integers(1, 100),
    window=st.integers(0, 120),
    sharpness=st.sampled_from([0.1, 1.0, 20.0]),
)
def test_attention(kind: CacheType, seed: int, head_dim: int, length: int, window: int, sharpness: float) -> None:
    draw = np.random.default_rng(seed)
    cache, blocks, keys, values = filled(draw, kind, length, head_dim)
    end = int(draw.integers(1, length + 1))
    begin = max(0, end - window) if window else 0
    query = (sharpness * draw.standard_normal(head_dim)).astype(np.float32)
    scale = 1 / math.sqrt(head_dim)
    found = cache.attend(query, head_dim, blocks, begin, end, scale)
    seen = slice(begin, end)
    scores = scale * kept_again(keys, kind)[seen, :head_dim] @ query.astype(np.float64)
    weights = np.exp(scores - scores.max())
    mixed = weights @ kept_again(values, kind)[seen, :head_dim] / weights.sum()
    # A score is off by its roundings; its weight by as much, relatively.
    off = EPSILON * (8 + np.abs(scale * keys[seen, :head_dim] * query).sum(axis=1).max() * (2 + head_dim / 8))
    assert np.abs(found - mixed).max() <= (off + EPSILON * (length / 8 + 4)) * np.abs(values[seen]).max()


@pytest.mark.parametrize("kind", KEPT)
def test_what_lies_where_does_not_change_a_bit(kind: CacheType) -> None:
    draw = np.random.default_rng(0)
    cache, blocks, keys, values = filled(draw, kind, 70, 20)
    other, moved = Cache(kind, 9, 24), [5, 8, 0]
    for position in range(70):
        other.write(moved[position // POSITIONS], position % POSITIONS, keys[position], values[position])
    query = draw.standard_normal(20).astype(np.float32)
    for begin, end in ((0, 70), (0, 1), (31, 33), (64, 70), (69, 70)):
        found = cache.attend(query, 20, blocks, begin, end, 0.3)
        np.testing.assert_array_equal(other.attend(query, 20, moved, begin, end, 0.3), found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of", ["query", "key", "value"])
@pytest.mark.parametrize("kind", KEPT)
def test_what_is_no_number_stays_none(kind: CacheType, of: str, value: float) -> None:
    """It is seen by whoever sees its position, and by nobody else."""
    draw = np.random.default_rng(1)
    cache, blocks, keys, values = filled(draw, kind, 60, 44)
    query = draw.standard_normal(44).astype(np.float32)
    others = [(0, 40), (0, 45), (46, 60), (50, 55)]
    before = [cache.attend(query, 44, blocks, *seen, 0.2) for seen in others]
    if of == "query":
        query[3] = value
        assert np.isnan(cache.attend(query, 44, blocks, 0, 40, 0.2)).all()
        return
    (keys if of == "key" else values)[45, [3, 42]] = value
    cache.write(blocks[1], 13, keys[45], values[45])
    for seen, expected in zip(others, before, strict=True):
        np.testing.assert_array_equal(cache.attend(query, 44, blocks, *seen, 0.2), expected)
    for begin, end in ((0, 60), (45, 46), (20, 46), (45, 60)):
        found = cache.attend(query, 44, blocks, begin, end, 0.2)
        if of == "value":
            assert not np.isfinite(found[[3, 42]]).any()
        elif np.isnan(value) or (value * query[[3, 42]] > 0).any():  # a score of -inf is one that is not seen
            assert np.isnan(found).all()


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-30, 1e4])
def test_vectors_of_any_size_are_kept(kind: CacheType, size: float) -> None:
    draw = np.random.default_rng(2)
    row = (size * draw.uniform(-1, 1, 16)).astype(np.float32)
    cache = Cache(kind, 1, 16)
    cache.write(0, 3, row, row)
    expected, found = kept_again(row[None], kind)[0], np.empty((2, 8), np.float32)
    factor = float(cache.value_factors[3]) if kind == "int8" else 1.0
    for half in range(2):
        look(cache.values, 3 * 16 + 8 * half, found[half])
        np.testing.assert_array_equal(found[half].astype(np.float64) * factor, expected[8 * half : 8 * half + 8])
    if kind == "int8" and size > 1e-36:
        assert np.abs(expected - row).max() <= np.abs(row).max() / 254 * 1.0001


def test_scores_far_apart_leave_one_position() -> None:
    scores = np.full(64, np.nan, np.float32)
    scores[5:37] = np.linspace(-3e38, 3e38, 32)
    share = np.float32(soften(scores, 0, 5, 37))
    weights = scores * share
    assert weights[36] == 1 and weights[:36].max() < 1e-37 and weights[37:].max() < 1e-37
