"""The order of the data: every window once an epoch, the same however it is cut, never out of range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.training.objectives.windows import Windows

SEEDS = st.integers(0, 2**63 - 1)


def some_tokens(count: int) -> np.ndarray:
    """Ids up to the largest of uint16, hardly two neighbours alike."""
    return np.random.default_rng(count).integers(0, 65536, count).astype(np.uint16)


def endless(count: int) -> np.ndarray:
    """As many tokens as asked for, in two bytes of memory."""
    return np.broadcast_to(np.uint16(7), (count,))


@settings(deadline=None)
@given(context=st.integers(1, 64), more=st.integers(1, 5000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_window_once(context: int, more: int, seed: int, epoch: int) -> None:
    windows = Windows(endless(context + more), context, seed)
    starts = np.sort(windows.starts(epoch * windows.windows, windows.windows))
    assert starts[0] >= 0
    assert starts[-1] + context + 1 <= context + more
    assert (np.diff(starts) == context).all()  # side by side: none twice, none left out
    assert starts[0] < context
    assert context + more - 1 - (starts[-1] + context) < 2 * context  # what is left over at the end


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 4097])
def test_a_permutation_at_sizes_around_powers_of_two(count: int) -> None:
    windows = Windows(endless(8 * (count + 1)), 8, seed=count)
    assert windows.windows == count
    starts = windows.starts(3 * count, count)
    assert sorted(starts // 8) == list(range(count))
    assert len(set(starts % 8)) == 1


@settings(deadline=None, max_examples=50)
@given(tokens=st.integers(10**6, 10**13), context=st.integers(2, 8192), seed=SEEDS, place=st.floats(0, 5))
def test_starts_are_in_range_in_large_texts(tokens: int, context: int, seed: int, place: float) -> None:
    windows = Windows(endless(tokens), context, seed)
    first = int(place * windows.windows)
    starts = windows.starts(first, 100)
    assert starts.min() >= 0
    assert starts.max() + context + 1 <= tokens
    epochs = (first + np.arange(100)) // windows.windows
    assert len(set(zip(epochs.tolist(), starts.tolist(), strict=True))) == 100


@settings(deadline=None, max_examples=50)
@given(
    context=st.integers(2, 20),
    more=st.integers(1, 200),
    seed=SEEDS,
    first=st.integers(0, 1000),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
)
def test_samples_do_not_depend_on_how_they_are_cut(
    context: int, more: int, seed: int, first: int, cuts: list[int]
) -> None:
    tokens = some_tokens(context + more)
    whole = Windows(tokens, context, seed).batch(first, sum(cuts))
    fresh = Windows(tokens, context, seed)  # nothing is remembered from one call to the next
    parts = [fresh.batch(first + sum(cuts[:index]), count) for index, count in enumerate(cuts)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_a_window_is_what_stands_there_and_one_token_more(kind: type) -> None:
    tokens = some_tokens(1000).astype(kind)
    windows = Windows(tokens, 24, seed=5)
    block = windows.batch(30, 50)  # over the end of an epoch
    assert block.shape == (50, 25)
    assert block.dtype == np.int64
    for start, row in zip(windows.starts(30, 50), block, strict=True):
        assert np.array_equal(row, tokens[start : start + 25])


def test_a_memory_map_reads_like_an_array(tmp_path: Path) -> None:
    tokens = some_tokens(500)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r")
    ours = Windows(mapped, 16, 1).batch(0, 40)
    assert type(ours) is np.ndarray
    assert np.array_equal(ours, Windows(tokens, 16, 1).batch(0, 40))


def test_epochs_and_seeds_differ() -> None:
    windows = Windows(endless(8008), 8, seed=0)
    assert windows.windows == 1000
    orders = [windows.starts(1000 * epoch, 1000) // 8 for epoch in range(4)]
    orders += [Windows(endless(8008), 8, seed).starts(0, 1000) // 8 for seed in range(1, 4)]
    for index, order in enumerate(orders):
        for other in orders[:index]:
            assert (order == other).mean() < 0.02
    assert np.array_equal(Windows(endless(8008), 8, 0).starts(0, 1000) // 8, orders[0])


def test_an_epoch_is_well_shuffled() -> None:
    """Neither the order of the text nor its neighbours are left."""
    windows = Windows(endless(8 * 4001), 8, seed=2)
    for epoch in range(3):
        order = windows.starts(4000 * epoch, 4000) // 8
        assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 0.1
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1
        assert (np.abs(np.diff(order)) == 1).mean() < 0.01


def test_epochs_begin_at_many_offsets() -> None:
    windows = Windows(endless(1000), 64, seed=0)
    offsets = {int(windows.starts(windows.windows * epoch, 1)[0]) % 64 for epoch in range(200)}
    assert len(offsets) > 50
    assert max(offsets) < 64


@pytest.mark.parametrize(("count", "context"), [(0, 1), (1, 1), (2, 2), (64, 64), (100, 4096)])
def test_too_few_tokens_are_refused(count: int, context: int) -> None:
    with pytest.raises(InputError, match=f"{count} tokens, too few for one window of {context}") as caught:
        Windows(some_tokens(count), context, 0)
    assert "--context-length" in caught.value.message


@pytest.mark.parametrize("context", [1, 2, 64, 4096])
def test_one_window_is_enough(context: int) -> None:
    tokens = some_tokens(context + 1)
    assert np.array_equal(Windows(tokens, context, 0).batch(0, 3), np.tile(tokens, (3, 1)))
