"""Rows of a matrix times several vectors. Each number is computed in one order, however many vectors there are.

Every function computes a few rows for one vector, or for several, which read the weights once. Matrices of 8 and 4
bits are packed as `rhapsode.model.packed` says: 8 rows side by side, so that a lane of the processor is a row, and
nothing is added up across lanes. Vectors for them are in 8 bits too, blocks of 32 with a scale; products and sums of a
block are whole numbers, hence exact.
"""

from __future__ import annotations

import numpy as np

from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.vectors import (
    LANES,
    WIDE_LANES,
    add_byte_products,
    add_small_products,
    add_word_products,
    broadcast,
    broadcast_integer,
    even_words,
    fma,
    folded,
    has_byte_products,
    high_nibbles,
    integers_to_floats,
    load_bytes,
    load_halves,
    load_wide,
    low_nibbles,
    no_wide,
    no_words,
    odd_words,
    prefetch,
    repeat_bytes,
    repeat_words,
    sum_of,
    wide_fma,
    words_to_integers,
)

GROUP, BLOCK = 8, 32
"""Rows side by side, and columns that share a scale."""
INT8_BYTES, INT4_BYTES = 256, 128
"""Of a group of rows and a block of columns."""
INT8_SCALES, INT4_SCALES = 8, 16
"""Of the same: 8 scales; 8 scales and 8 minimums."""

AHEAD, LINE = 4096, 64
"""Bytes between what is multiplied and what is fetched, which is a page: the processor's own fetching stops at its end,
and where one vector is multiplied, nothing else hides the wait (4 bits: 155 tokens/s without, 238 with it)."""

if has_byte_products():

    @compiled
    def add_quad(total, weights, signed, words, at):
        """total + 4 columns of 8 rows, times 4 numbers of a vector."""
        return add_byte_products(total, weights, repeat_bytes(signed, at))

    @compiled
    def no_small():
        """Where sums of nibbles begin."""
        return broadcast_integer(np.int32(0))

    @compiled
    def add_small_quad(total, weights, signed, at):
        """As `add_quad`, where the weights are nibbles."""
        return add_byte_products(total, weights, repeat_bytes(signed, at))

    @compiled
    def whole_small(total):
        """Sums of nibbles as integers."""
        return total

else:

    @compiled
    def add_quad(total, weights, signed, words, at):
        """total + 4 columns of 8 rows, times 4 numbers of a vector: products of bytes do not fit into 16 bits."""
        total = add_word_products(total, even_words(weights), repeat_words(words, at))
        return add_word_products(total, odd_words(weights), repeat_words(words, at + 2))

    @compiled
    def no_small():
        """Where sums of nibbles begin."""
        return no_words()

    @compiled
    def add_small_quad(total, weights, signed, at):
        """As `add_quad`, where the weights are nibbles: 16 products of 15 and 127 fit into 16 bits."""
        return add_small_products(total, weights, repeat_bytes(signed, at))

    @compiled
    def whole_small(total):
        """Sums of nibbles as integers."""
        return words_to_integers(total)


@compiled
def int8_block(weights, at, signed, words, vector, offset):
    """8 rows of a block times 32 numbers, as whole numbers in floats. Weights are stored 128 too large: `offset`."""
    total = broadcast_integer(offset)
    for quad in range(8):
        total = add_quad(total, load_bytes(weights, at + 32 * quad), signed, words, vector + 4 * quad)
    return integers_to_floats(total)


@compiled
def int8_rows(weights, scales, group, blocks, signed, words, factors, offsets, token):
    """A group of 8 rows times one vector."""
    total = broadcast(np.float32(0))
    for block in range(blocks):
        place, of = group * blocks + block, token * blocks + block
        for line in range(0, INT8_BYTES, LINE):
            prefetch(weights, INT8_BYTES * place + AHEAD + line)
        whole = int8_block(weights, INT8_BYTES * place, signed, words, BLOCK * of, offsets[of])
        total = fma(whole * broadcast(factors[of]), load_halves(scales, INT8_SCALES * place), total)
    return total


@compiled
def int8_rows_by_4(weights, scales, group, blocks, signed, words, factors, offsets, token):
    """The same for four vectors."""
    zero = broadcast(np.float32(0))
    a, b, c, d = zero, zero, zero, zero
    for block in range(blocks):
        place, of = group * blocks + block, token * blocks + block
        to_b, to_c, to_d = of + blocks, of + 2 * blocks, of + 3 * blocks
        p, q = broadcast_integer(offsets[of]), broadcast_integer(offsets[to_b])
        r, s = broadcast_integer(offsets[to_c]), broadcast_integer(offsets[to_d])
        for quad in range(8):
            quads = load_bytes(weights, INT8_BYTES * place + 32 * quad)
            p = add_quad(p, quads, signed, words, BLOCK * of + 4 * quad)
            q = add_quad(q, quads, signed, words, BLOCK * to_b + 4 * quad)
            r = add_quad(r, quads, signed, words, BLOCK * to_c + 4 * quad)
            s = add_quad(s, quads, signed, words, BLOCK * to_d + 4 * quad)
        scale = load_halves(scales, INT8_SCALES * place)
        a = fma(integers_to_floats(p) * broadcast(factors[of]), scale, a)
        b = fma(integers_to_floats(q) * broadcast(factors[to_b]), scale, b)
        c = fma(integers_to_floats(r) * broadcast(factors[to_c]), scale, c)
        d = fma(integers_to_floats(s) * broadcast(factors[to_d]), scale, d)
    return a, b, c, d


@compiled
def int4_rows(weights, scales, group, blocks, signed, factors, sums, token):
    """A group of 8 rows times one vector."""
    total = broadcast(np.float32(0))
    for block in range(blocks):
        place, of = group * blocks + block, token * blocks + block
        p = no_small()
        for line in range(0, INT4_BYTES, LINE):
            prefetch(weights, INT4_BYTES * place + AHEAD + line)
        for pair in range(4):
            pairs = load_bytes(weights, INT4_BYTES * place + 32 * pair)
            p = add_small_quad(p, low_nibbles(pairs), signed, BLOCK * of + 8 * pair)
            p = add_small_quad(p, high_nibbles(pairs), signed, BLOCK * of + 8 * pair + 4)
        whole = integers_to_floats(whole_small(p)) * broadcast(factors[of])
        total = fma(whole, load_halves(scales, INT4_SCALES * place), total)
        total = fma(broadcast(sums[of]), load_halves(scales, INT4_SCALES * place + 8), total)
    return total


@compiled
def int4_rows_by_4(weights, scales, group, blocks, signed, factors, sums, token):
    """The same for four vectors."""
    zero = broadcast(np.float32(0))
    a, b, c, d = zero, zero, zero, zero
    for block in range(blocks):
        place, of = group * blocks + block, token * blocks + block
        to_b, to_c, to_d = of + blocks, of + 2 * blocks, of + 3 * blocks
        p, q, r, s = no_small(), no_small(), no_small(), no_small()
        for pair in range(4):
            pairs = load_bytes(weights, INT4_BYTES * place + 32 * pair)
            low, high = low_nibbles(pairs), high_nibbles(pairs)
            p = add_small_quad(p, low, signed, BLOCK * of + 8 * pair)
            q = add_small_quad(q, low, signed, BLOCK * to_b + 8 * pair)
            r = add_small_quad(r, low, signed, BLOCK * to_c + 8 * pair)
            s = add_small_quad(s, low, signed, BLOCK * to_d + 8 * pair)
            p = add_small_quad(p, high, signed, BLOCK * of + 8 * pair + 4)
            q = add_small_quad(q, high, signed, BLOCK * to_b + 8 * pair + 4)
            r = add_small_quad(r, high, signed, BLOCK * to_c + 8 * pair + 4)
            s = add_small_quad(s, high, signed, BLOCK * to_d + 8 * pair + 4)
        scale = load_halves(scales, INT4_SCALES * place)
        minimum = load_halves(scales, INT4_SCALES * place + 8)
        a = fma(integers_to_floats(whole_small(p)) * broadcast(factors[of]), scale, a)
        b = fma(integers_to_floats(whole_small(q)) * broadcast(factors[to_b]), scale, b)
        c = fma(integers_to_floats(whole_small(r)) * broadcast(factors[to_c]), scale, c)
        d = fma(integers_to_floats(whole_small(s)) * broadcast(factors[to_d]), scale, d)
        a = fma(broadcast(sums[of]), minimum, a)
        b = fma(broadcast(sums[to_b]), minimum, b)
        c = fma(broadcast(sums[to_c]), minimum, c)
        d = fma(broadcast(sums[to_d]), minimum, d)
    return a, b, c, d


@compiled
def row_sum(total):
    """The sum of all lanes of a wide vector."""
    return sum_of(folded(total))


@compiled
def float_row(weights, row, columns, x, token, stride):
    """A row of fp32 weights, a multiple of `WIDE_LANES` long, times one vector; vectors lie `stride` apart."""
    total = no_wide()
    for column in range(0, columns, WIDE_LANES):
        total = wide_fma(load_wide(weights, row * columns + column), load_wide(x, token * stride + column), total)
    return row_sum(total)


@compiled
def float_rows_of_4(weights, row, columns, x, token, stride):
    """Four rows times one vector."""
    zero = no_wide()
    a, b, c, d = zero, zero, zero, zero
    first = row * columns
    for column in range(0, columns, WIDE_LANES):
        here = load_wide(x, token * stride + column)
        a = wide_fma(load_wide(weights, first + column), here, a)
        b = wide_fma(load_wide(weights, first + columns + column), here, b)
        c = wide_fma(load_wide(weights, first + 2 * columns + column), here, c)
        d = wide_fma(load_wide(weights, first + 3 * columns + column), here, d)
    return row_sum(a), row_sum(b), row_sum(c), row_sum(d)


@compiled
def _add_3(weight, x, y, z, totals):
    return wide_fma(weight, x, totals[0]), wide_fma(weight, y, totals[1]), wide_fma(weight, z, totals[2])


@compiled
def _row_sums(totals):
    return row_sum(totals[0]), row_sum(totals[1]), row_sum(totals[2])


@compiled
def float_rows_of_4_by_3(weights, row, columns, x, token, stride):
    """Four rows times three vectors: four tuples, a row each."""
    zero = no_wide()
    a, b, c, d = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
    first, vector = row * columns, token * stride
    for column in range(0, columns, WIDE_LANES):
        p = load_wide(x, vector + column)
        q = load_wide(x, vector + stride + column)
        r = load_wide(x, vector + 2 * stride + column)
        a = _add_3(load_wide(weights, first + column), p, q, r, a)
        b = _add_3(load_wide(weights, first + columns + column), p, q, r, b)
        c = _add_3(load_wide(weights, first + 2 * columns + column), p, q, r, c)
        d = _add_3(load_wide(weights, first + 3 * columns + column), p, q, r, d)
    return _row_sums(a), _row_sums(b), _row_sums(c), _row_sums(d)


@compiled
def float_rows_of_8_by_3(weights, row, columns, x, token, stride):
    """Eight rows times three vectors: eight tuples, for the registers of AVX-512."""
    zero = no_wide()
    none = (zero, zero, zero)
    a, b, c, d, e, f, g, h = none, none, none, none, none, none, none, none
    first, vector = row * columns, token * stride
    for column in range(0, columns, WIDE_LANES):
        p = load_wide(x, vector + column)
        q = load_wide(x, vector + stride + column)
        r = load_wide(x, vector + 2 * stride + column)
        at = first + column
        a = _add_3(load_wide(weights, at), p, q, r, a)
        b = _add_3(load_wide(weights, at + columns), p, q, r, b)
        c = _add_3(load_wide(weights, at + 2 * columns), p, q, r, c)
        d = _add_3(load_wide(weights, at + 3 * columns), p, q, r, d)
        e = _add_3(load_wide(weights, at + 4 * columns), p, q, r, e)
        f = _add_3(load_wide(weights, at + 5 * columns), p, q, r, f)
        g = _add_3(load_wide(weights, at + 6 * columns), p, q, r, g)
        h = _add_3(load_wide(weights, at + 7 * columns), p, q, r, h)
    return (
        _row_sums(a),
        _row_sums(b),
        _row_sums(c),
        _row_sums(d),
        _row_sums(e),
        _row_sums(f),
        _row_sums(g),
        _row_sums(h),
    )


ROWS_BY_3 = 8 if WIDE_LANES > LANES else 4
"""Rows that are multiplied with three vectors at a time: as many as there are registers for."""
float_rows_by_3 = float_rows_of_8_by_3 if WIDE_LANES > LANES else float_rows_of_4_by_3
