"""The pool against a naive account of what every block holds: nobody's tokens are overwritten or mistaken."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.inference.block_pool import BlockPool, Lease
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
