"""Which block of a cache belongs to which text, and which texts begin alike and can share blocks.

pool = BlockPool(100); lease = pool.lease(ids, capacity=200); ...; pool.keep(lease, ids); pool.give_back(lease)

Blocks that a text has filled stay known by the tokens in them and in all blocks before, until their room is needed.
A beginning is shared when all of its tokens are equal, compared one by one. A text can fork: the beams of a search do.
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
class Reserve:
    """Blocks that forks of a text may come to need, and nobody else gets."""

    blocks: int
    """So many."""
    leases: int = 1
    """Of the text and its forks that have not been given back."""


@dataclass
class Lease:
    """The blocks of one text, until they are given back."""

    blocks: list[int]
    """In the order of its tokens."""
    shared: int
    """So many of its first tokens were there already."""
    kept: int
    """So many of its first blocks are known to the pool by their tokens."""
    reserve: Reserve
    """What is there for its forks, which have the same one."""


@dataclass
class _Known:
    """A block that is known by its tokens."""

    key: tuple[int, tuple[int, ...]]
    """The block before it, and its own tokens: with the blocks before that, all tokens up to its end."""
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
        self._users = np.zeros(count, dtype=np.int64)  # leases that hold each block
        self._known: dict[int, _Known] = {}
        self._by_tokens: dict[tuple[int, tuple[int, ...]], int] = {}
        # Known blocks that nobody holds and none follows, the longest unused first: these make room.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._held = self._reserved = 0

    @property
    def held(self) -> int:
        """Blocks that texts hold now, or that are reserved for their forks."""
        return self._held + self._reserved

    def lease(self, ids: Sequence[int], capacity: int, *, share: bool = True, forks: int = 0) -> Lease | None:
        """Blocks for a text of at most `capacity` tokens that begins with `ids`; None when there is no room now.

        All that the text can need is reserved, so that none has to be given up halfway. At least one of `ids` is left
        to be read, for the logits after it.

        Args:
            share: whether blocks that are known may be its first ones.
            forks: so many may there be beside it at any time, each after all of `ids`.
        """
        blocks = self._matching(ids[:-1]) if share else []
        for block in blocks:
            self._hold(block)
        missing = blocks_of(capacity) - len(blocks)
        reserved = blocks_of_forks(len(ids), capacity, forks)
        if missing + reserved > self.count - self.held:
            for block in reversed(blocks):
                self._release(block)
            return None
        self._reserved += reserved
        return Lease([*blocks, *self._take(missing)], len(blocks) * BLOCK, len(blocks), Reserve(reserved))

    def fork(self, lease: Lease, length: int) -> Lease:
        """A lease for another text of the same first `length` tokens, in blocks that were reserved for it.

        It shares the blocks that these tokens fill. Tokens that fill none are the caller's to copy, from
        lease.blocks[length // BLOCK] to the same place of the fork's; nothing is written to a block that is shared.

        With n leases out of 1 + forks, at least (forks + 1 - n) * (blocks of a text - blocks filled) are reserved: a
        fork takes as many as one of them, a lease that is given back returns at least as many, as blocks that are not
        filled are shared with nobody, and what is filled only grows.
        """
        filled = length // BLOCK
        for block in lease.blocks[:filled]:
            self._users[block] += 1
        missing = len(lease.blocks) - filled
        assert missing <= lease.reserve.blocks, "more forks than were asked for"
        lease.reserve.blocks -= missing
        lease.reserve.leases += 1
        self._reserved -= missing
        fresh = self._take(missing)
        return Lease([*lease.blocks[:filled], *fresh], 0, min(lease.kept, filled), lease.reserve)

    def keep(self, lease: Lease, ids: Sequence[int]) -> None:
        """Let others share what is in a lease's blocks: the keys and values of `ids`, its text so far."""
        while (lease.kept + 1) * BLOCK <= len(ids):
            block = lease.blocks[lease.kept]
            before = lease.blocks[lease.kept - 1] if lease.kept else ROOT
            key = (before, tuple(ids[lease.kept * BLOCK : (lease.kept + 1) * BLOCK]))
            known = self._by_tokens.setdefault(key, block)
            if known != block:  # another text was faster: what follows in this one stays its own
                return
            if block not in self._known:  # a fork of this text may have told of it
                self._known[block] = _Known(key)
                if before != ROOT:
                    self._known[before].followers.add(block)
            lease.kept += 1

    def give_back(self, lease: Lease) -> None:
        """End a lease. What the pool knows of it can be shared until its room is needed."""
        if not lease.blocks:
            return
        before = self._held
        for block in reversed(lease.blocks):  # the last first: beginnings are worth more than ends
            self._release(block)
        reserve = lease.reserve
        reserve.leases -= 1
        if reserve.leases:
            reserve.blocks += before - self._held
            self._reserved += before - self._held
        else:
            self._reserved -= reserve.blocks
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
        self._users[block] += 1
        self._held += int(self._users[block] == 1)
        self._idle.pop(block, None)

    def _release(self, block: int) -> None:
        self._users[block] -= 1
        if self._users[block] == 0:
            self._held -= 1
            known = self._known.get(block)
            if known is None:
                self._free[block] = True
            elif not known.followers:
                self._idle[block] = None

    def _take(self, count: int) -> list[int]:
        """So many blocks of those that nobody holds, side by side if possible."""
        if count <= 0:
            return []
        while int(self._free.sum()) < count:
            self._forget(next(iter(self._idle)))
        free = np.flatnonzero(self._free)
        ends: np.ndarray = np.flatnonzero(free[count - 1 :] - free[: len(free) - count + 1] == count - 1)
        first = int(ends[0]) if len(ends) else 0
        taken: list[int] = free[first : first + count].tolist()
        self._free[taken] = False
        self._users[taken] = 1
        self._held += count
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
            if self._users[before] == 0 and not parent.followers:
                self._idle[before] = None
                self._idle.move_to_end(before, last=False)  # it was used before what followed it


def blocks_of(capacity: int) -> int:
    """Blocks of a text of so many tokens."""
    return -(-capacity // BLOCK)


def blocks_of_forks(length: int, capacity: int, forks: int) -> int:
    """Blocks of so many forks of a text of `capacity` tokens, after at least `length` of them."""
    return forks * max(0, blocks_of(capacity) - length // BLOCK)
