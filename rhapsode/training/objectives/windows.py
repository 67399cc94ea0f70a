"""The order of a text: which tokens are sample `index` of all samples ever, as a pure function of the seed.

So a run resumes from one integer, and the order does not depend on how many processes or micro-batches there are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.base.random import generator

Array = npt.NDArray[np.int64]


ROUNDS = 4


def shuffled(index: Array, count: int, draw: np.random.Generator) -> Array:
    """Where each of `index` goes in a permutation of range(count) that `draw` chooses.

    A small cipher (Black and Rogaway 2002), a Feistel network walked until it lands inside: no list is kept or drawn.
    """
    keys = draw.integers(1, 1 << 31, size=ROUNDS, dtype=np.int64)
    half = max(1, (int(count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    result = index.copy()
    outside = np.ones(len(index), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            mixed = (right * 0x9E3779B1 + key) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA77) & 0xFFFFFFFF
            left, right = right, left ^ ((mixed ^ (mixed >> 13)) & mask)
        result[outside] = (left << half) | right
        outside = result >= count
    return result


class Windows:
    """Windows of `context + 1` tokens (inputs and targets overlap by all but one), each epoch shuffled anew.

    An epoch starts at a random offset below the context and visits every window once, so that over epochs a token
    is met in many positions.

    Args:
        tokens: (tokens,) ids, usually a memory map.
        context: tokens a window reads.

    Raises:
        InputError: there are not enough tokens for one window.
    """

    def __init__(self, tokens: npt.NDArray[np.unsignedinteger], context: int, seed: int) -> None:
        if len(tokens) < context + 1:
            raise InputError(
                f"the text has {len(tokens):,} tokens, too few for one window of {context} and its next token",
                todo="Give more text, or a smaller --context-length.",
            )
        self.tokens, self.context, self.seed = tokens, context, seed
        self.slack = min(context, len(tokens) - context)  # offsets to choose from, so that one window always fits
        self.windows = (len(tokens) - self.slack) // context  # at least one

    def starts(self, first: int, count: int) -> Array:
        """Where samples first, first + 1, ... begin, (count,)."""
        index = np.arange(first, first + count, dtype=np.int64)
        starts = np.empty(count, dtype=np.int64)
        for epoch in np.unique(index // self.windows):
            mine = index // self.windows == epoch
            draw = generator(self.seed, "order of the data", int(epoch))
            offset = int(draw.integers(self.slack))
            starts[mine] = offset + self.context * shuffled(index[mine] % self.windows, self.windows, draw)
        return starts

    def batch(self, first: int, count: int) -> Array:
        """The tokens (count, context + 1) of samples first, first + 1, ..."""
        starts = self.starts(first, count)
        return np.stack([self.tokens[start : start + self.context + 1] for start in starts]).astype(np.int64)
