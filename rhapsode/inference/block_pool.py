"""Which block of a cache belongs to which text, and which texts begin alike and can share blocks.

pool = BlockPool(100); lease = pool.lease(ids, capacity=200); ...; pool.keep(lease, ids); pool.give_back(lease)

Blocks that a text has filled stay known by the tokens in them and in all blocks before, until their room is needed.
A beginning is shared when all of its tokens are equal, compared one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rhapsode.model.block_cache import BLOCK

ROOT = -1
"""Stands for the block before the first one."""


@dataclass
class Lease:
    """The blocks of one text, until they are given back."""

    blocks: list[int]
    """In the order of its tokens."""
    shared: int
    """So many of its first tokens were there already."""
    kept: int
    """So many of its first blocks are known to the pool by their tokens."""


@dataclass
class _Known:
    """A block that is known by its tokens."""

    key: tuple[int, tuple[int, ...]]
    """The block before it, and its own tokens: with the blocks before that, all tokens up to its end."""
    users: int
    """Leases that hold it."""
    followers: set[int] = field(default_factory=set)
    """Known blocks that come after it in some text."""


class BlockPool:
    """Gives out the blocks of a cache.

    Args:
        count: blocks that there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = np.ones(count, dtype=bool)
        self._known: dict[int, _Known] = {}
        self._by_tokens: dict[tuple[int, tuple[int, ...]], int] = {}
        # Known blocks that nobody holds and none follows, the longest unused first: these make room.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._held = 0

    @property
    def held(self) -> int:
        """Blocks that texts hold now."""
        return self._held

    def lease(self, ids: Sequence[int], capacity: int, *, share: bool = True) -> Lease | None:
        """Blocks for a text of at most `capacity` tokens that begins with `ids`; None when there is no room now.

        All that the text can need is reserved, so that none has to be given up halfway. At least one of `ids` is left
        to be read, for the logits after it.

        Args:
            share: whether blocks that are known may be its first ones.
        """
        blocks = self._matching(ids[:-1]) if share else []
        for block in blocks:
            self._hold(block)
        missing = -(-capacity // BLOCK) - len(blocks)
        fresh = self._take(missing)
        if fresh is None:
            for block in reversed(blocks):
                self._release(block)
            return None
        self._held += missing
        return Lease([*blocks, *fresh], len(blocks) * BLOCK, len(blocks))

    def keep(self, lease: Lease, ids: Sequence[int]) -> None:
        """Let others share what is in a lease's blocks: the keys and values of `ids`, its text so far."""
        while (lease.kept + 1) * BLOCK <= len(ids):
            block = lease.blocks[lease.kept]
            before = lease.blocks[lease.kept - 1] if lease.kept else ROOT
            key = (before, tuple(ids[lease.kept * BLOCK : (lease.kept + 1) * BLOCK]))
            if key in self._by_tokens:  # another text was faster: what follows in this one stays its own
                return
            self._by_tokens[key] = block
            self._known[block] = _Known(key, users=1)
            if before != ROOT:
                self._known[before].followers.add(block)
            lease.kept += 1

    def give_back(self, lease: Lease) -> None:
        """End a lease. What the pool knows of it can be shared until its room is needed."""
        for block in lease.blocks[lease.kept :]:
            self._free[block] = True
            self._held -= 1
        for block in reversed(lease.blocks[: lease.kept]):  # the last first: beginnings are worth more than ends
            self._release(block)
        lease.blocks, lease.kept = [], 0

    def _matching(self, ids: Sequence[int]) -> list[int]:
        """The known blocks with which a text of these ids begins."""
        blocks: list[int] = []
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            block = self._by_tokens.get((blocks[-1] if blocks else ROOT, tuple(ids[start : start + BLOCK])))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _hold(self, block: int) -> None:
        known = self._known[block]
        known.users += 1
        self._held += known.users == 1
        self._idle.pop(block, None)

    def _release(self, block: int) -> None:
        known = self._known[block]
        known.users -= 1
        if known.users == 0:
            self._held -= 1
            if not known.followers:
                self._idle[block] = None

    def _take(self, count: int) -> list[int] | None:
        """So many blocks, side by side if possible; None when there are not so many that nobody holds."""
        if count > self.count - self._held:
            return None
        if count <= 0:
            return []
        while int(self._free.sum()) < count:
            self._forget(next(iter(self._idle)))
        free = np.flatnonzero(self._free)
        ends: np.ndarray = np.flatnonzero(free[count - 1 :] - free[: len(free) - count + 1] == count - 1)
        first = int(ends[0]) if len(ends) else 0
        taken: list[int] = free[first : first + count].tolist()
        self._free[taken] = False
        return taken

    def _forget(self, block: int) -> None:
        """Make an idle block free."""
        del self._idle[block]
        known = self._known.pop(block)
        del self._by_tokens[known.key]
        self._free[block] = True
        before = known.key[0]
        if before != ROOT:
            parent = self._known[before]
            parent.followers.remove(block)
            if parent.users == 0 and not parent.followers:
                self._idle[before] = None
                self._idle.move_to_end(before, last=False)  # it was used before what followed it
