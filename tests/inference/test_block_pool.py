"""The pool against a naive account of what every block holds: nobody's tokens are overwritten or mistaken."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.inference.block_pool import BlockPool, Lease, blocks_of, blocks_of_forks
from rhapsode.model.block_cache import BLOCK


def tokens(letters: str) -> list[int]:
    """A text whose blocks are all of one letter."""
    return [ord(letter) for letter in letters for _ in range(BLOCK)]


@settings(max_examples=300)
@given(
    count=st.integers(1, 12),
    actions=st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=4), st.integers(1, 3 * BLOCK), st.integers(0, 5), st.booleans()),
        max_size=40,
    ),
)
def test_blocks_hold_what_their_texts_wrote(count: int, actions: list[tuple[str, int, int, bool]]) -> None:
    pool = BlockPool(count)
    content: dict[int, tuple[int, ...]] = {}  # what was written last to each block, with all tokens before it
    open_leases: list[tuple[Lease, list[int]]] = []
    for letters, more, which, closing in actions:
        if closing and open_leases:
            lease, _ = open_leases.pop(which % len(open_leases))
            pool.give_back(lease)
            continue
        ids = [*tokens(letters), 7][: len(letters) * BLOCK + more % 2]
        held = {block for lease, _ in open_leases for block in lease.blocks}
        needed = -(-(len(ids) + more) // BLOCK)
        leased = pool.lease(ids, len(ids) + more)
        if leased is None:
            assert needed > count - len(held)
            assert pool.held == len(held)
            continue
        assert len(leased.blocks) == needed == len(set(leased.blocks))
        assert leased.shared < len(ids) and leased.shared % BLOCK == 0
        shared = leased.shared // BLOCK
        assert not held & set(leased.blocks[shared:])  # what others hold is not given out to be written
        for number, block in enumerate(leased.blocks):
            before = tuple(ids[: (number + 1) * BLOCK])
            if number < shared:
                assert content[block] == before  # token by token, from the beginning
            else:
                content[block] = before
        pool.keep(leased, ids)
        open_leases.append((leased, ids))
        assert pool.held == len({block for lease, _ in open_leases for block in lease.blocks})
        for lease, text in open_leases:
            assert all(
                content[block] == tuple(text[: (number + 1) * BLOCK])
                for number, block in enumerate(lease.blocks)
                if (number + 1) * BLOCK <= len(text)
            )
    for lease, _ in open_leases:
        pool.give_back(lease)
    assert pool.held == 0
    everything = pool.lease([1], count * BLOCK)
    assert everything is not None and sorted(everything.blocks) == list(range(count))


def test_a_beginning_is_shared_and_what_follows_lies_side_by_side() -> None:
    pool = BlockPool(10)
    first = pool.lease([*tokens("ab"), 7], 3 * BLOCK)
    assert first is not None and (first.blocks, first.shared) == ([0, 1, 2], 0)
    pool.keep(first, [*tokens("ab"), 7])
    second = pool.lease(tokens("abb"), 4 * BLOCK)
    assert second is not None and (second.blocks, second.shared) == ([0, 1, 3, 4], 2 * BLOCK)
    alone = pool.lease(tokens("ab"), 2 * BLOCK, share=False)
    assert alone is not None and (alone.blocks, alone.shared) == ([5, 6], 0)
    # A text that ends with a block still has its last token to read.
    whole = pool.lease(tokens("ab"), 2 * BLOCK)
    assert whole is not None and whole.shared == BLOCK


def test_the_longest_unused_make_room_and_ends_go_before_beginnings() -> None:
    pool = BlockPool(4)
    for letters in ("ab", "cc"):
        lease = pool.lease([*tokens(letters), 7], 2 * BLOCK)
        assert lease is not None
        pool.keep(lease, tokens(letters))
        pool.give_back(lease)
    taken = pool.lease([1], BLOCK)
    assert taken is not None
    again = pool.lease([*tokens("ab"), 7], 2 * BLOCK)
    assert again is not None and again.shared == BLOCK  # b was forgotten, a not yet


class Paper:
    """What is written in blocks, and a text that may fork: what each beam should read in its own."""

    def __init__(self, pool: BlockPool, prompt: list[int], longest: int, beams: int) -> None:
        self.pool, self.prompt, self.longest, self.beams = pool, prompt, longest, beams
        self.rows: list[tuple[Lease, list[int]]] = []

    def begin(self, memory: dict[int, list[int]]) -> bool:
        lease = self.pool.lease(self.prompt, self.longest, forks=self.beams - 1)
        if lease is not None:
            self.rows = [(lease, list(self.prompt))]
            self.write(memory, lease.shared)
        return lease is not None

    def write(self, memory: dict[int, list[int]], first: int) -> None:
        for lease, ids in self.rows:
            for place in range(first, len(ids)):
                memory.setdefault(lease.blocks[place // BLOCK], [0] * BLOCK)[place % BLOCK] = ids[place]
            self.pool.keep(lease, ids)

    def go_on(self, memory: dict[int, list[int]], parents: list[int]) -> None:
        """As the engine does it: who has no children goes first, the first child keeps the blocks, others copy."""
        parents = [parent % len(self.rows) for parent in parents[: self.beams]]
        for place, (lease, _) in enumerate(self.rows):
            if place not in parents:
                self.pool.give_back(lease)
        length, rows = len(self.rows[0][1]), []
        for number, place in enumerate(parents):
            lease, ids = self.rows[place]
            if place in parents[:number]:
                fork = self.pool.fork(lease, length)
                if length % BLOCK:
                    memory[fork.blocks[length // BLOCK]] = list(memory[lease.blocks[length // BLOCK]])
                lease = fork
            rows.append((lease, [*ids, number]))
        self.rows = rows
        self.write(memory, length)

    def check(self, memory: dict[int, list[int]]) -> None:
        for lease, ids in self.rows:
            assert len(lease.blocks) == -(-self.longest // BLOCK) == len(set(lease.blocks))
            assert [memory[lease.blocks[place // BLOCK]][place % BLOCK] for place in range(len(ids))] == ids

    def end(self) -> None:
        for lease, _ in self.rows:
            self.pool.give_back(lease)
        self.rows = []


@settings(max_examples=100)
@given(
    beams=st.integers(1, 5),
    prompt=st.integers(1, 2 * BLOCK + 2),
    more=st.integers(0, 3 * BLOCK),
    others=st.integers(0, 2),
    spare=st.integers(0, 6),
    noise=st.randoms(use_true_random=False),
)
def test_beams_read_what_they_wrote_in_the_least_blocks_they_can_need(
    beams: int, prompt: int, more: int, others: int, spare: int, noise: Random
) -> None:
    """Searches from the same prompt come and go, in a pool that has room for one and a little more."""
    needed = blocks_of(prompt + more) + blocks_of_forks(prompt, prompt + more, beams - 1)
    pool, memory = BlockPool(needed + spare * (others > 0)), dict[int, list[int]]()
    first = Paper(pool, [7] * prompt, prompt + more, beams)
    assert first.begin(memory) and pool.held == needed
    beside = [Paper(pool, [7] * prompt, prompt + more // (1 + other), 1 + other) for other in range(others)]
    for _ in range(more):
        for paper in (first, *beside):
            if not paper.rows and paper is not first:
                paper.begin(memory)
            elif noise.random() < 0.1 and paper is not first:
                paper.end()
            elif paper.rows and len(paper.rows[0][1]) < paper.longest:
                paper.go_on(memory, [noise.randrange(5) for _ in range(noise.randint(1, paper.beams))])
        for paper in (first, *beside):
            paper.check(memory)
        leases = [lease for paper in (first, *beside) for lease, _ in paper.rows]
        reserved = {id(lease.reserve): lease.reserve.blocks for lease in leases}
        assert pool.held == len({block for lease in leases for block in lease.blocks}) + sum(reserved.values())
        assert pool.held <= pool.count
    for paper in (first, *beside):
        paper.end()
    assert pool.held == 0
    everything = pool.lease([1], pool.count * BLOCK)
    assert everything is not None and sorted(everything.blocks) == list(range(pool.count))


def test_more_forks_than_were_asked_for_are_refused() -> None:
    pool = BlockPool(20)
    lease = pool.lease([7] * 5, 3 * BLOCK, forks=1)
    assert lease is not None and pool.held == 6
    fork = pool.fork(lease, 5)
    with pytest.raises(AssertionError, match="more forks"):
        pool.fork(lease, 5)
    pool.give_back(fork)
    pool.give_back(fork)
    assert pool.held == 6
    pool.give_back(lease)
    assert pool.held == 0
