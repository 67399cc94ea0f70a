"""What is done between matrices, against the same in fp64; and what is no number never becomes one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.elementwise import (
    GELU,
    GELU_TANH,
    HIGHEST,
    LOWEST,
    RELU,
    SILU,
    WORDS_TOO,
    activated,
    error_function,
    exponential,
    normalise,
    to_bytes,
)
from rhapsode.inference.kernels.vectors import load_floats, store_floats

from .oracles import BLOCK, EPSILON, Small

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@compiled
def exponentials(x, out):
    for i in range(0, len(x), 8):
        store_floats(out, i, exponential(load_floats(x, i)))


@compiled
def error_functions(x, out):
    for i in range(0, len(x), 8):
        store_floats(out, i, error_function(load_floats(x, i)))


@compiled
def activations(x, activation, out):
    for i in range(0, len(x), 8):
        store_floats(out, i, activated(load_floats(x, i), activation))


def everywhere(largest: float) -> Floats:
    """Numbers of all sizes up to a largest one, of both signs, their number a multiple of 8."""
    top = int(np.float32(largest).view(np.uint32))
    positive = np.arange(0, top, 8191).astype(np.uint32).view(np.float32)
    x = np.concatenate((positive, -positive, [np.float32(largest), np.float32(-largest)]))
    return np.pad(x, (0, -len(x) % 8)).astype(np.float32)


ERF = np.vectorize(math.erf, otypes=[np.float64])


def right(x: Doubles, activation: int) -> Doubles:
    """The activation's formula in fp64."""
    with np.errstate(over="ignore"):
        if activation == RELU:
            return np.maximum(x, 0)
        if activation == SILU:
            return x / (1 + np.exp(-x))
        if activation == GELU:
            return x / 2 * (1 + ERF(x / math.sqrt(2)))
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_exponential() -> None:
    x = everywhere(87.0)
    out = np.empty_like(x)
    exponentials(x, out)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(out / expected - 1) < 2 * EPSILON).all()
    assert out[x == 0].tolist() == [1] * (x == 0).sum()


def test_exponential_beyond_what_floats_hold() -> None:
    out = np.empty(8, np.float32)
    exponentials(np.array([-88, -1e3, -3e38, -np.inf, 89, 1e3, 3e38, np.inf], np.float32), out)
    assert (out[:4] < 2e-38).all() and (out[:4] >= 0).all()
    assert (out[4:] > 1e38).all()
    assert LOWEST < -86 and HIGHEST > 87


def test_error_function() -> None:
    x = everywhere(20.0)
    out = np.empty_like(x)
    error_functions(x, out)
    assert np.abs(out - ERF(x.astype(np.float64))).max() < 6e-7
    error_functions(-x, negative := np.empty_like(x))
    np.testing.assert_array_equal(negative, -out)


@pytest.mark.parametrize("activation", [SILU, GELU, GELU_TANH, RELU])
def test_activations(activation: int) -> None:
    x = everywhere(30.0)
    out = np.empty_like(x)
    activations(x, activation, out)
    expected = right(x.astype(np.float64), activation)
    assert (np.abs(out - expected) <= 1e-6 * np.abs(expected) + 4e-7 * np.abs(x) + 1e-44).all()
    x = everywhere(1e12)
    activations(x, activation, out := np.empty_like(x))
    assert (np.abs(out - right(x.astype(np.float64), activation)) <= 1e-6 * np.abs(x) + 1e-44).all()


@pytest.mark.parametrize("activation", [SILU, GELU, GELU_TANH, RELU])
def test_activations_of_what_is_not_finite(activation: int) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1, -1, 0, 2, -2], np.float32)
    out = np.empty(8, np.float32)
    activations(x, activation, out)
    assert np.isnan(out[0]) and not np.isfinite(out[1])
    assert out[2] == 0 if activation == RELU else not np.isfinite(out[2])
    expected = right(x[3:].astype(np.float64), activation)
    assert np.abs(out[3:] - expected).max() < 1e-6


@pytest.mark.parametrize("function", [exponentials, error_functions])
def test_functions_of_what_is_no_number(function: object) -> None:
    out = np.zeros(8, np.float32)
    function(np.array([0, 1, np.nan, -np.nan, 2, 3, 4, 5], np.float32), out)  # type: ignore[operator]
    assert np.isnan(out).tolist() == [False, False, True, True, False, False, False, False]


def normed(x: Floats, gain: Floats, bias: Floats | None, centred: bool, epsilon: float) -> Floats:
    """By the kernel, from the middle of an array into the middle of another one."""
    size, width = len(x), -(-len(x) // 8) * 8
    room, out = np.full(width + 16, 7, np.float32), np.full(width + 24, 9, np.float32)
    room[8 : 8 + width] = np.pad(x, (0, width - size))
    parts = [
        np.pad(part, (0, width - len(part))) if part is not None else np.zeros(0, np.float32) for part in (gain, bias)
    ]
    normalise(room, 8, size, *parts, centred, np.float32(epsilon), out, 16)
    assert (out[:16] == 9).all() and (out[16 + width :] == 9).all()
    assert (out[16 + size : 16 + width] == 0).all()
    return out[16 : 16 + size]


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 90),
    centred=st.booleans(),
    biased=st.booleans(),
    epsilon=st.sampled_from([1e-12, 1e-6, 1e-5]),
    mean=st.sampled_from([0.0, 1.0, -30.0, 1000.0]),
    spread=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_norms(seed: int, size: int, centred: bool, biased: bool, epsilon: float, mean: float, spread: float) -> None:
    draw = np.random.default_rng(seed)
    x = (mean + spread * draw.standard_normal(size)).astype(np.float32)
    gain = draw.standard_normal(size).astype(np.float32)
    bias = draw.standard_normal(size).astype(np.float32) if biased else None
    found = normed(x, gain, bias, centred, epsilon)
    exact = x.astype(np.float64)
    shifted = exact - exact.mean() if centred else exact
    deviation = math.sqrt((shifted**2).mean() + epsilon)
    expected = shifted / deviation * gain + (0 if bias is None else bias)
    # The mean, rounded to fp32, is taken away: beyond that nothing may be lost.
    lost = 4 * EPSILON * np.abs(exact).max() / deviation if centred else 0
    assert (np.abs(found - expected) <= (1e-6 * np.abs(shifted / deviation) + lost * 2) * np.abs(gain) + 1e-6).all()


@pytest.mark.parametrize("size", [1, 7, 8, 9, 33])
def test_the_norm_of_equal_numbers_is_nothing(size: int) -> None:
    x = np.full(size, 1000.1, np.float32)
    found = normed(x, np.ones(size, np.float32), None, True, 1e-5)
    assert np.abs(found).max() < 0.05


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [5, 8, 19])
def test_the_norm_of_what_is_no_number_is_none(size: int, value: float, centred: bool) -> None:
    x, place = np.ones(size, np.float32), size // 2
    x[place] = value
    width = -(-size // 8) * 8
    out = np.zeros(width, np.float32)
    gain = np.pad(np.ones(size, np.float32), (0, width - size))
    normalise(np.pad(x, (0, width - size)), 0, size, gain, np.zeros(0, np.float32), centred, np.float32(1e-6), out, 0)
    assert not np.isfinite(out[place])


@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 5), tokens=st.integers(1, 3))
def test_vectors_in_bytes(seed: int, blocks: int, tokens: int) -> None:
    """To the bit what numpy makes in fp32."""
    draw = np.random.default_rng(seed)
    sizes = 10.0 ** draw.integers(-45, 38, (tokens, blocks, 1))
    x = (draw.standard_normal((tokens, blocks, BLOCK)) * sizes).astype(np.float32)
    x[draw.random((tokens, blocks)) < 0.2] = 0
    x[draw.random((tokens, blocks)) < 0.2, 5] = draw.choice([np.nan, np.inf, -np.inf])
    x = x.reshape(tokens, -1)
    check_bytes(x)


def test_halves_in_bytes_become_even() -> None:
    x = np.zeros((1, BLOCK), np.float32)
    x[0, :9] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5, -127]
    check_bytes(x)


def check_bytes(x: Floats) -> None:
    """The kernel's bytes of x (tokens, padded columns) are those of the oracle."""
    tokens, width = x.shape
    blocks = width // BLOCK
    signed, words = np.empty(x.size, np.int8), np.empty(x.size if WORDS_TOO else 0, np.int16)
    factors, sums = np.empty(tokens * blocks, np.float32), np.empty(tokens * blocks, np.float32)
    offsets = np.empty(tokens * blocks, np.int32)
    for token in range(tokens):
        to_bytes(x.reshape(-1), token * width, blocks, signed, words, factors, offsets, sums, token)
    expected = Small.of(x)
    np.testing.assert_array_equal(factors, expected.factors.ravel())
    real = ~np.isnan(factors)
    np.testing.assert_array_equal(
        signed.reshape(-1, BLOCK)[real], expected.numbers.astype(np.float32).reshape(-1, BLOCK)[real]
    )
    assert (offsets[real] == -128 * expected.sums.ravel()[real]).all()
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(sums, factors * expected.sums.ravel().astype(np.float32))
    if WORDS_TOO:
        order = [0, 2, 1, 3, 4, 6, 5, 7]
        np.testing.assert_array_equal(words.reshape(-1, 8)[:, np.argsort(order)], signed.reshape(-1, 8))
