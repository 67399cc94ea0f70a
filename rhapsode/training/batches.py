"""The order of the data: which tokens are sample `index` of all samples ever, as a pure function of the seed.

So a run resumes from one integer, and the order does not depend on how many processes or micro-batches there are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.base.random import generator

Array = npt.NDArray[np.int64]


class Windows:
    """Windows of `context + 1` tokens (inputs and targets overlap by all but one), each epoch shuffled anew.

    An epoch starts at a random offset below the context and visits every window once, so that over epochs a token
    is met in many positions. The shuffle is a small cipher (Black and Rogaway 2002): no list is kept or drawn.

    Args:
        tokens: (tokens,) ids, usually a memory map.
        context: tokens a window reads.

    Raises:
        InputError: there are not enough tokens for one window.
    """

    ROUNDS = 4

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
            keys = draw.integers(1, 1 << 31, size=self.ROUNDS, dtype=np.int64)
            starts[mine] = offset + self.context * self._shuffled(index[mine] % self.windows, keys)
        return starts

    def _shuffled(self, index: Array, keys: Array) -> Array:
        """A permutation of range(windows) applied to `index`: a Feistel network, walked until it lands inside."""
        half = max(1, (int(self.windows - 1).bit_length() + 1) // 2)
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
            outside = result >= self.windows
        return result

    def batch(self, first: int, count: int) -> tuple[Array, Array]:
        """Inputs and targets, each (count, context), of samples first, first + 1, ..."""
        starts = self.starts(first, count)
        block = np.stack([self.tokens[start : start + self.context + 1] for start in starts]).astype(np.int64)
        return block[:, :-1], block[:, 1:]
