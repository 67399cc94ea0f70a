"""A register's numbers against numpy's: whatever few values there are, all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.vectors import (
    add_byte_products,
    add_small_products,
    add_word_products,
    broadcast,
    broadcast_integer,
    bytes_at,
    even_words,
    floats_at,
    fma,
    halves_at,
    has_byte_products,
    high_nibbles,
    integers_to_floats,
    largest_lanes,
    largest_of,
    load_bytes,
    load_floats,
    load_halves,
    load_small,
    low_nibbles,
    magnitudes,
    no_words,
    odd_words,
    powers_of_two,
    repeat_bytes,
    repeat_words,
    rounded,
    signs_of,
    smaller_lanes,
    store_as_bytes,
    store_as_halves,
    store_as_words,
    store_floats,
    sum_of,
    words_to_integers,
)

HALVES = np.arange(1 << 16).astype(np.uint16)
UNUSUAL = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38], np.float32)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, where it is a number; the payload of what is none is nobody's business."""
    none = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), none)
    whole = {2: np.uint16, 4: np.uint32}[expected.itemsize]
    np.testing.assert_array_equal(found.view(whole)[~none], expected.view(whole)[~none])


@compiled
def widen(halves, out):
    for i in range(0, len(out), 8):
        store_floats(out, i, load_halves(halves, i))


@compiled
def narrow(numbers, out):
    for i in range(0, len(out), 8):
        store_as_halves(out, i, load_floats(numbers, i))


def test_halves_are_widened() -> None:
    found = np.empty(len(HALVES), np.float32)
    widen(HALVES, found)
    same(found, HALVES.view(np.float16).astype(np.float32))


def test_floats_are_rounded_to_halves() -> None:
    """All halves, what lies in the middle between two of them, and its neighbours: rounding depends on nothing else."""
    halves = np.sort(HALVES.view(np.float16)[np.isfinite(HALVES.view(np.float16))]).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    beyond = np.array([65519, 65520, 65521, 1e30, 3e38, np.inf, np.nan, 1e-45], np.float32)
    numbers = np.concatenate(
        (halves, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(9e9)), beyond, -beyond)
    )
    numbers = np.pad(numbers, (0, -len(numbers) % 8))
    found = np.empty(len(numbers), np.uint16)
    narrow(numbers, found)
    with np.errstate(over="ignore"):
        same(found.view(np.float16), numbers.astype(np.float16))


@compiled
def picked(packed, choice, out):
    """Of each 2 bytes and each of their halves, the ones that `choice` (2 words) picks: low, high; even, odd."""
    zero = broadcast_integer(np.int32(0))
    for i in range(0, len(packed), 32):
        both, word = load_bytes(packed, i), repeat_words(choice, 0)
        low, high = low_nibbles(both), high_nibbles(both)
        store_floats(out, i // 2, integers_to_floats(add_word_products(zero, even_words(low), word)))
        store_floats(out, i // 2 + 8, integers_to_floats(add_word_products(zero, odd_words(low), word)))
        store_floats(out, len(packed) + i // 2, integers_to_floats(add_word_products(zero, even_words(high), word)))
        store_floats(out, len(packed) + i // 2 + 8, integers_to_floats(add_word_products(zero, odd_words(high), word)))


def test_nibbles_of_every_byte() -> None:
    packed = np.arange(256).astype(np.uint8)
    for place in range(2):
        out = np.empty(512, np.float32)
        picked(packed, np.array([1 - place, place], np.int16), out)
        low, high = out.reshape(2, 16, 2, 8)[:, :8]  # (32 bytes at a time, even or odd, 8)
        quads = packed.reshape(8, 8, 2, 2)  # (32 bytes at a time, lane, word, even or odd)
        np.testing.assert_array_equal(low, (quads[:, :, place] & 15).transpose(0, 2, 1))
        np.testing.assert_array_equal(high, (quads[:, :, place] >> 4).transpose(0, 2, 1))


@compiled
def quads_by_words(weights, numbers, words, out):
    """8 rows of 4 bytes times 4 whole numbers, by products of 16 bits."""
    store_as_words(words, 0, load_floats(numbers, 0))
    total = broadcast_integer(np.int32(7))
    total = add_word_products(total, even_words(load_bytes(weights, 0)), repeat_words(words, 0))
    total = add_word_products(total, odd_words(load_bytes(weights, 0)), repeat_words(words, 2))
    store_floats(out, 0, integers_to_floats(total))


@compiled
def quads_by_bytes(weights, numbers, signed, out):
    """The same by products of bytes."""
    store_as_bytes(signed, 0, load_floats(numbers, 0))
    total = add_byte_products(broadcast_integer(np.int32(7)), load_bytes(weights, 0), repeat_bytes(signed, 0))
    store_floats(out, 0, integers_to_floats(total))


@compiled
def small_quads(weights, numbers, signed, out):
    """The same where weights are below 16, in 16 bits."""
    store_as_bytes(signed, 0, load_floats(numbers, 0))
    total = add_small_products(no_words(), low_nibbles(load_bytes(weights, 0)), repeat_bytes(signed, 0))
    store_floats(out, 0, integers_to_floats(words_to_integers(total)))


@pytest.mark.parametrize("largest", [False, True])
def test_products_of_four_are_exact(largest: bool) -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        weights = draw.integers(0, 256, 32).astype(np.uint8)
        numbers = np.zeros(8, np.float32)
        numbers[:] = draw.integers(-127, 128, 8)
        if largest:
            weights[:], numbers[:] = 255, draw.choice([-127, 127], 8)
        out = np.empty(8, np.float32)
        rows, vector = weights.reshape(8, 4).astype(int), numbers[:4].astype(int)
        quads_by_words(weights, numbers, np.empty(8, np.int16), out)
        np.testing.assert_array_equal(out, rows @ vector + 7)
        if has_byte_products():
            quads_by_bytes(weights, numbers, np.empty(8, np.int8), out)
            np.testing.assert_array_equal(out, rows @ vector + 7)
        small_quads(weights, numbers, np.empty(8, np.int8), out)
        np.testing.assert_array_equal(out, (rows & 15) @ vector)


@compiled
def through_bytes(numbers, signed, out):
    for i in range(0, len(numbers), 8):
        store_as_bytes(signed, i, load_floats(numbers, i))
        store_floats(out, i, load_small(signed, i))


def test_whole_numbers_go_through_bytes() -> None:
    numbers = np.arange(-128, 128).astype(np.float32)
    signed, out = np.empty(256, np.int8), np.empty(256, np.float32)
    through_bytes(numbers, signed, out)
    np.testing.assert_array_equal(signed, numbers)
    np.testing.assert_array_equal(out, numbers)


@compiled
def reduced(numbers, out):
    out[0], out[1] = sum_of(load_floats(numbers, 0)), largest_of(load_floats(numbers, 0))


def test_sums_are_rounded_in_one_order() -> None:
    draw = np.random.default_rng(1)
    out = np.empty(2, np.float32)
    for _ in range(300):
        x = (draw.standard_normal(8) * 10.0 ** draw.integers(-9, 9, 8)).astype(np.float32)
        reduced(x, out)
        four = x[:4] + x[4:]
        two = four[:2] + four[2:]
        assert out[0] == two[0] + two[1] and out[1] == x.max()


@pytest.mark.parametrize("place", range(8))
def test_a_sum_with_what_is_no_number_is_none(place: int) -> None:
    x, out = np.ones(8, np.float32), np.empty(2, np.float32)
    for value in (np.nan, np.inf, -np.inf):
        x[place] = value
        reduced(x, out)
        assert not np.isfinite(out[0])


@compiled
def of_two(a, b, out):
    x, y = load_floats(a, 0), load_floats(b, 0)
    store_floats(out, 0, x + y)
    store_floats(out, 8, x - y)
    store_floats(out, 16, x * y)
    store_floats(out, 24, x / y)
    store_floats(out, 32, signs_of(x, y))
    store_floats(out, 40, magnitudes(x))
    store_floats(out, 48, largest_lanes(x, y))
    store_floats(out, 56, smaller_lanes(x, y))
    store_floats(out, 64, rounded(x))


def test_lanes_are_computed_as_numpy_does() -> None:
    a, b = (grid.ravel() for grid in np.meshgrid(UNUSUAL, UNUSUAL))
    a, b = np.pad(a, (0, -len(a) % 8)), np.pad(b, (0, -len(b) % 8))
    for start in range(0, len(a), 8):
        x, y, out = a[start : start + 8], b[start : start + 8], np.empty((9, 8), np.float32)
        of_two(x, y, out.reshape(-1))
        with np.errstate(all="ignore"):
            expected = (x + y, x - y, x * y, x / y, np.copysign(x, y), np.abs(x))
            for found, right in zip(out, expected, strict=False):
                same(found, right)
            numbers = ~np.isnan(x) & ~np.isnan(y)
            np.testing.assert_array_equal(out[6][numbers], np.maximum(x, y)[numbers])
            np.testing.assert_array_equal(out[7][numbers], np.minimum(x, y)[numbers])
            same(out[8], np.rint(x))


@compiled
def multiplied_and_added(a, b, c, out):
    store_floats(out, 0, fma(broadcast(a), broadcast(b), broadcast(c)))


def test_fma_rounds_once() -> None:
    a, c, out = np.float32(1 + 2**-12), np.float32(-1 - 2**-11), np.empty(8, np.float32)
    assert a * a + c == 0
    multiplied_and_added(a, a, c, out)
    np.testing.assert_array_equal(out, np.full(8, 2**-24))


@compiled
def powers(exponents, out):
    for i in range(0, len(out), 8):
        store_floats(out, i, powers_of_two(load_floats(exponents, i)))


def test_every_power_of_two() -> None:
    exponents = np.pad(np.arange(-126, 128), (0, 2)).astype(np.float32)
    out = np.empty(256, np.float32)
    powers(exponents, out)
    assert out.tolist() == [math.ldexp(1, int(exponent)) for exponent in exponents]


@compiled
def at_addresses(floats, many, halves, out):
    """The first numbers of arrays that are known by their addresses alone."""
    store_floats(out, 0, load_floats(floats_at(floats, 8), 0))
    store_floats(out, 8, load_halves(halves_at(halves, 8), 0))
    array = bytes_at(many, 32)
    for i in range(32):
        out[16 + i] = array[i]
    word = even_words(load_bytes(array, 0))
    store_floats(out, 48, integers_to_floats(words_to_integers(word)))
    return len(floats_at(floats, 5)) + len(halves_at(halves, 0)) + len(array)


@pytest.mark.parametrize("offset", range(8))
def test_memory_need_not_be_aligned(offset: int) -> None:
    draw = np.random.default_rng(offset)
    numbers = draw.standard_normal(8).astype(np.float32)
    many, halves = draw.integers(0, 256, 32).astype(np.uint8), draw.standard_normal(8).astype(np.float16)
    rooms = [np.zeros(64 + offset, np.uint8) for _ in range(3)]
    addresses = []
    for room, values in zip(rooms, (numbers, many, halves), strict=True):
        room[offset : offset + values.nbytes] = values.view(np.uint8)
        addresses.append(room.ctypes.data + offset)
    out = np.empty(56, np.float32)
    assert at_addresses(*addresses, out) == 5 + 0 + 32
    np.testing.assert_array_equal(out[:8], numbers)
    np.testing.assert_array_equal(out[8:16], halves.astype(np.float32))
    np.testing.assert_array_equal(out[16:48], many)
    np.testing.assert_array_equal(out[48:], many.reshape(8, 2, 2)[:, :, 0].sum(axis=1))
