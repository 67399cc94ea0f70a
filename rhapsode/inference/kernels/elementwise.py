"""What is done to one vector between two matrices: norms, activations, 8 bits for the next product.

Vectors are padded with zeros to a multiple of 32, and stay so.
"""

from __future__ import annotations

import math

import numpy as np

from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.products import BLOCK
from rhapsode.inference.kernels.vectors import (
    broadcast,
    fma,
    has_byte_products,
    largest_lanes,
    largest_of,
    load_floats,
    magnitudes,
    powers_of_two,
    rounded,
    signs_of,
    smaller_lanes,
    store_as_bytes,
    store_as_words,
    store_floats,
    sum_of,
)

SILU, GELU, GELU_TANH, RELU = range(4)
"""Activations, as `ModelConfig.activation` names them."""

WORDS_TOO = not has_byte_products()
"""Whether vectors are needed in 16 bits beside the 8."""

LOWEST, HIGHEST = np.float32(-87.0), np.float32(88.0)
"""What the exponential is taken of; beyond, it is as good as nothing or infinite."""
SMALLEST = np.float32(1e-36)
"""Of the largest number of those that share a factor: the inverse of a smaller one would be infinite; they become 0."""
PER_LN2 = np.float32(1 / math.log(2))
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(math.log(2) - 0.693359375)
FACTORIALS = tuple(np.float32(1 / math.factorial(n)) for n in range(8))


@compiled
def exponential(x):
    """e^x of 8 numbers: 2^n e^r with |r| <= ln(2) / 2, e^r by its Taylor series to r^7, off by 5e-9 at most."""
    x = smaller_lanes(broadcast(HIGHEST), largest_lanes(broadcast(LOWEST), x))
    n = rounded(x * broadcast(PER_LN2))
    r = fma(n, broadcast(-LN2_LOW), fma(n, broadcast(-LN2_HIGH), x))
    p = broadcast(FACTORIALS[7])
    p = fma(p, r, broadcast(FACTORIALS[6]))
    p = fma(p, r, broadcast(FACTORIALS[5]))
    p = fma(p, r, broadcast(FACTORIALS[4]))
    p = fma(p, r, broadcast(FACTORIALS[3]))
    p = fma(p, r, broadcast(FACTORIALS[2]))
    p = fma(p, r, broadcast(FACTORIALS[1]))
    return fma(p, r, broadcast(FACTORIALS[0])) * powers_of_two(n)


@compiled
def error_function(x):
    """erf of 8 numbers (Abramowitz and Stegun, 7.1.26), off by 6e-7 at most, of which the formula is 1.5e-7."""
    one, size = broadcast(np.float32(1)), magnitudes(x)
    t = one / fma(size, broadcast(np.float32(0.3275911)), one)
    p = broadcast(np.float32(1.061405429))
    p = fma(p, t, broadcast(np.float32(-1.453152027)))
    p = fma(p, t, broadcast(np.float32(1.421413741)))
    p = fma(p, t, broadcast(np.float32(-0.284496736)))
    p = fma(p, t, broadcast(np.float32(0.254829592)))
    minus_square = broadcast(np.float32(0)) - size * size
    return signs_of(one - p * t * exponential(minus_square), x)


@compiled
def activated(x, activation):
    """The activation of 8 numbers."""
    one, zero = broadcast(np.float32(1)), broadcast(np.float32(0))
    if activation == RELU:
        return largest_lanes(zero, x)
    if activation == GELU:
        half = broadcast(np.float32(0.5)) * x
        return fma(half, error_function(x * broadcast(np.float32(math.sqrt(0.5)))), half)
    inside = x
    if activation == GELU_TANH:  # 1 + tanh(u) = 2 / (1 + e^-2u)
        cubic = fma(x * x * x, broadcast(np.float32(0.044715)), x)
        inside = cubic * broadcast(np.float32(2 * math.sqrt(2 / math.pi)))
    return x / (one + exponential(zero - inside))


@compiled
def normalise(x, first, size, gain, bias, centred, epsilon, out, to):
    """The norm of `size` numbers of x from `first` on, into `out` from `to` on.

    Args:
        gain: padded to a multiple of 8 with zeros.
        bias: the same, or empty.
        centred: whether the mean is taken away (a layer norm), or not (root mean square).
    """
    padded = -(-size // 8) * 8
    mean = np.float32(0)
    if centred:
        total = broadcast(np.float32(0))
        for i in range(0, padded, 8):
            total = total + load_floats(x, first + i)
        mean = sum_of(total) / np.float32(size)
    squares, whole = broadcast(np.float32(0)), size // 8 * 8
    for i in range(0, whole, 8):
        here = load_floats(x, first + i) - broadcast(mean)
        squares = fma(here, here, squares)
    variance = sum_of(squares)
    for i in range(whole, size):  # without the padding, which is no mean
        variance += (x[first + i] - mean) * (x[first + i] - mean)
    inverse = np.float32(1) / np.sqrt(variance / np.float32(size) + epsilon)
    for i in range(0, padded, 8):
        here = (load_floats(x, first + i) - broadcast(mean)) * broadcast(inverse) * load_floats(gain, i)
        if len(bias) > 0:
            here = here + load_floats(bias, i)
        store_floats(out, to + i, here)


@compiled
def to_bytes(x, first, blocks, signed, words, factors, offsets, sums, token):
    """A vector in 8 bits: each block of 32 as whole numbers up to 127 and a factor.

    Args:
        x: the vector, from `first` on.
        signed: (tokens, blocks, 32), the whole numbers; `words` the same in 16 bits where those are needed.
        factors: (tokens, blocks).
        offsets: (tokens, blocks), what to add to products with weights that are 128 too large.
        sums: (tokens, blocks), the sum of each block.
    """
    for block in range(blocks):
        at, of = first + BLOCK * block, token * blocks + block
        a, b, c, d = load_floats(x, at), load_floats(x, at + 8), load_floats(x, at + 16), load_floats(x, at + 24)
        largest = largest_of(
            largest_lanes(largest_lanes(magnitudes(a), magnitudes(b)), largest_lanes(magnitudes(c), magnitudes(d)))
        )
        inverse = broadcast(np.float32(127) / largest if largest > SMALLEST else np.float32(0))
        a, b, c, d = rounded(a * inverse), rounded(b * inverse), rounded(c * inverse), rounded(d * inverse)
        to = BLOCK * of
        store_as_bytes(signed, to, a)
        store_as_bytes(signed, to + 8, b)
        store_as_bytes(signed, to + 16, c)
        store_as_bytes(signed, to + 24, d)
        if WORDS_TOO:
            store_as_words(words, to, a)
            store_as_words(words, to + 8, b)
            store_as_words(words, to + 16, c)
            store_as_words(words, to + 24, d)
        total = sum_of((a + b) + (c + d))
        factor = largest / np.float32(127) + (total - total)  # what is no number stays none
        factors[of] = factor
        offsets[of] = np.int32(-128) * np.int32(total)
        sums[of] = factor * total
