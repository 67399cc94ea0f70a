"""Attention over a cache in blocks: 32 positions are looked at side by side, each lane of the processor one of them.

Of a block of the cache, the keys lie as (head_dim, 32) and the values as (32, head_dim), so that neither scores nor
mixed values are added up across lanes. In what order a query's numbers are added up depends on its position alone.
"""

from __future__ import annotations

import numpy as np
from numba.core import types
from numba.extending import overload

from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.elementwise import SMALLEST, exponential
from rhapsode.inference.kernels.vectors import (
    broadcast,
    fma,
    largest_lanes,
    largest_of,
    load_floats,
    load_halves,
    load_small,
    store_as_halves,
    store_floats,
    sum_of,
)

POSITIONS = 32
"""Of a block; as `rhapsode.model.block_cache.BLOCK`."""
NEVER = np.float32(-np.inf)


def load_kept(kept, at):
    """8 numbers of a cache, whatever it keeps them in."""


@overload(load_kept)
def _load_kept(kept, at):
    if kept.dtype == types.float32:
        return lambda kept, at: load_floats(kept, at)
    if kept.dtype == types.uint16:
        return lambda kept, at: load_halves(kept, at)
    return lambda kept, at: load_small(kept, at)


def keep(row, kept, at, apart, size, factors, place, spare):
    """Put a vector into a cache, each number `apart` from the one before.

    Args:
        row: (size,), a multiple of 8 long; it may be changed.
        kept: the cache's memory, written from `at` on.
        factors: of a cache of 8 bits, where the vector's factor goes to `place`.
        spare: as long as the row, for halves on their way.
    """


@overload(keep)
def _keep(row, kept, at, apart, size, factors, place, spare):
    def floats(row, kept, at, apart, size, factors, place, spare):
        for i in range(size):
            kept[at + apart * i] = row[i]

    def halves(row, kept, at, apart, size, factors, place, spare):
        for i in range(0, size, 8):
            store_as_halves(spare, i, load_floats(row, i))
        for i in range(size):
            kept[at + apart * i] = spare[i]

    def small(row, kept, at, apart, size, factors, place, spare):
        largest, none = np.float32(0), np.float32(0)
        for i in range(size):
            largest = max(largest, abs(row[i]))
            none += row[i] - row[i]
        inverse = np.float32(127) / largest if largest > SMALLEST else np.float32(0)
        factors[place] = largest / np.float32(127) + none  # what is no number stays none
        for i in range(size):
            kept[at + apart * i] = np.int8(np.rint(row[i] * inverse))

    if kept.dtype == types.float32:
        return floats
    return halves if kept.dtype == types.uint16 else small


@compiled
def score(query, first, head_dim, keys, block, factors, at_factors, scale, out, to):
    """The scores of a query with the 32 keys of a block, which begins at `block`; its factors, if any, as said."""
    zero = broadcast(np.float32(0))
    a, b, c, d = zero, zero, zero, zero
    for i in range(head_dim):
        q, at = broadcast(query[first + i]), block + POSITIONS * i
        a = fma(q, load_kept(keys, at), a)
        b = fma(q, load_kept(keys, at + 8), b)
        c = fma(q, load_kept(keys, at + 16), c)
        d = fma(q, load_kept(keys, at + 24), d)
    factor = broadcast(scale)
    a, b, c, d = a * factor, b * factor, c * factor, d * factor
    if len(factors) > 0:
        a, b = a * load_floats(factors, at_factors), b * load_floats(factors, at_factors + 8)
        c, d = c * load_floats(factors, at_factors + 16), d * load_floats(factors, at_factors + 24)
    store_floats(out, to, a)
    store_floats(out, to + 8, b)
    store_floats(out, to + 16, c)
    store_floats(out, to + 24, d)


@compiled
def soften(scores, first, begin, end):
    """Make weights e^(score - largest) of scores from `begin` to `end`, of whole blocks; the inverse of their sum.

    Args:
        scores: those of the block in which `begin` lies begin at `first`.
    """
    padded = -(-end // POSITIONS) * POSITIONS - begin // POSITIONS * POSITIONS
    for i in range(begin % POSITIONS):
        scores[first + i] = NEVER
    for i in range(end - begin // POSITIONS * POSITIONS, padded):
        scores[first + i] = NEVER
    largest = broadcast(NEVER)
    for i in range(0, padded, 8):
        largest = largest_lanes(largest, load_floats(scores, first + i))
    shift, total = broadcast(largest_of(largest)), broadcast(np.float32(0))
    for i in range(0, padded, 8):
        weight = exponential(load_floats(scores, first + i) - shift)
        store_floats(scores, first + i, weight)
        total = total + weight
    return np.float32(1) / sum_of(total)


@compiled
def mix(weights, first, begin, end, values, origin, blocks, stride, head_dim, factor, out, to):
    """The values of positions from `begin` to `end`, each times its weight, and all times `factor`.

    Args:
        blocks: where the text's blocks lie; block b's values begin at origin + b * stride.
        head_dim: a multiple of 8.
    """
    shift = first - begin // POSITIONS * POSITIONS
    for i in range(0, head_dim // 32 * 32, 32):
        zero = broadcast(np.float32(0))
        a, b, c, d = zero, zero, zero, zero
        for number in range(begin // POSITIONS, -(-end // POSITIONS)):
            base = origin + blocks[number] * stride + i
            for position in range(max(begin, number * POSITIONS), min(end, (number + 1) * POSITIONS)):
                weight, at = broadcast(weights[shift + position]), base + position % POSITIONS * head_dim
                a = fma(weight, load_kept(values, at), a)
                b = fma(weight, load_kept(values, at + 8), b)
                c = fma(weight, load_kept(values, at + 16), c)
                d = fma(weight, load_kept(values, at + 24), d)
        share = broadcast(factor)
        store_floats(out, to + i, a * share)
        store_floats(out, to + i + 8, b * share)
        store_floats(out, to + i + 16, c * share)
        store_floats(out, to + i + 24, d * share)
    for i in range(head_dim // 32 * 32, head_dim, 8):
        a = broadcast(np.float32(0))
        for number in range(begin // POSITIONS, -(-end // POSITIONS)):
            base = origin + blocks[number] * stride + i
            for position in range(max(begin, number * POSITIONS), min(end, (number + 1) * POSITIONS)):
                at = base + position % POSITIONS * head_dim
                a = fma(broadcast(weights[shift + position]), load_kept(values, at), a)
        store_floats(out, to + i, a * broadcast(factor))
