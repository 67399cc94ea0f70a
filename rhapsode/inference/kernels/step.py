"""Steps by kernels that are compiled for this processor: torch is not asked.

    step = KernelStep(decoder, blocks=100); why_not = unavailable(decoder)

What is computed for a text has the same bits whatever is computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhapsode.inference.kernels import program
from rhapsode.inference.kernels.attention import POSITIONS
from rhapsode.inference.kernels.elementwise import WORDS_TOO
from rhapsode.inference.kernels.layout import lay_out
from rhapsode.inference.kernels.products import BLOCK, GROUP
from rhapsode.inference.kernels.threads import synchronisation, team
from rhapsode.inference.step import Reading
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedModel

AT_ONCE = 256
"""Tokens that go through the layers side by side."""

KEPT = {"float32": np.float32, "float16": np.uint16, "int8": np.int8}
"""What a cache may keep numbers in, and how numpy has it (halves by their bits)."""

ALONE_BELOW = 2 * 2**20
"""Bytes of weights: a step of fewer is over before a second thread is awake."""


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to


class KernelStep:
    """Steps of a dense decoder.

    Args:
        source: the model, on the CPU; it must not be changed as long as this is used.
        blocks: of the cache.
        cache: what the cache keeps keys and values in, one of `KEPT`.
        threads: at most; None for all physical cores.
    """

    def __init__(
        self, source: Decoder | PackedModel, blocks: int, *, cache: str = "float32", threads: int | None = None
    ) -> None:
        self.blocks = blocks
        self._source = source  # keeps the memory that the tables point to
        self._laid = laid = lay_out(source, blocks)
        config = self._config = source.config
        self.threads = min(threads or team().size, team().size)
        if threads is None and laid.weight_bytes < ALONE_BELOW:
            self.threads = 1
        width = _padded(config.head_dim, GROUP)
        places = config.layers * blocks * config.kv_heads * POSITIONS
        factors = places if cache == "int8" else 0
        # Zeros, not whatever is there: what is not a number would stay one when it is multiplied by zero.
        self._cache = (
            np.zeros(places * width, KEPT[cache]),
            np.zeros(places * width, KEPT[cache]),
            np.zeros(factors, np.float32),
            np.zeros(factors, np.float32),
        )
        self._rows = 0
        self._own_positions = 0

    def _make_room(self, tokens: int, positions: int) -> None:
        """Have room for so many tokens at once, in texts of so many."""
        config = self._config
        hidden, inside = _padded(config.hidden_size, BLOCK), _padded(config.intermediate_size, BLOCK)
        query, key = (_padded(heads * config.head_dim, BLOCK) for heads in (config.heads, config.kv_heads))
        rows = max(tokens, self.threads)
        if rows > self._rows:
            rows = min(_padded(rows, 8), AT_ONCE) if rows <= AT_ONCE else rows
            sizes = (hidden, hidden, hidden, hidden, query, key, key, query, inside, inside)
            self._floats = tuple(np.zeros(rows * size, np.float32) for size in sizes)
            widest = max(hidden, query, inside)
            self._small = (
                np.zeros(rows * widest, np.int8),
                np.zeros(rows * widest if WORDS_TOO else 0, np.int16),
                np.zeros(rows * widest // BLOCK, np.float32),
                np.zeros(rows * widest // BLOCK, np.int32),
                np.zeros(rows * widest // BLOCK, np.float32),
            )
            self._rows = rows
        if positions > self._own_positions:
            positions = min(_padded(2 * positions, POSITIONS), _padded(config.context_length, POSITIONS))
            positions += POSITIONS
            group = config.heads // config.kv_heads
            spare = max(query, key) + BLOCK
            self._own = (
                np.zeros((self.threads, group * positions), np.float32),
                np.zeros((self.threads, spare), np.float32),
                np.zeros((self.threads, spare), np.uint16),
            )
            self._own_positions = positions - POSITIONS

    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        config, vocabulary = self._config, _padded(self._config.vocabulary_size, GROUP)
        counts = [len(reading.ids) for reading in readings]
        ids = np.concatenate([np.asarray(reading.ids, np.int64) for reading in readings])
        positions = np.concatenate(
            [np.arange(reading.past, reading.past + count) for reading, count in zip(readings, counts, strict=True)]
        )
        texts = np.repeat(np.arange(len(readings)), counts)
        ends = np.cumsum(counts)
        wanted = np.concatenate(
            [np.arange(end - reading.wanted, end) for reading, end in zip(readings, ends, strict=True)]
        )
        blocks = np.zeros((len(readings), max(len(reading.blocks) for reading in readings)), np.int64)
        for text, reading in enumerate(readings):
            blocks[text, : len(reading.blocks)] = reading.blocks
        longest = int(positions.max()) + 1
        self._laid.reach(longest)
        logits = np.zeros((len(wanted), vocabulary), np.float32)
        for begin in range(0, len(ids), AT_ONCE):
            end = min(begin + AT_ONCE, len(ids))
            first, last = np.searchsorted(wanted, (begin, end))
            self._make_room(end - begin, longest)
            self._run(
                ids[begin:end],
                positions[begin:end],
                texts[begin:end],
                blocks,
                wanted[first:last] - begin,
                logits[first:last],
            )
        found = logits[:, : config.vocabulary_size]
        return np.split(found, np.cumsum([reading.wanted for reading in readings])[:-1])

    def _run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        texts: np.ndarray,
        blocks: np.ndarray,
        wanted: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        laid = self._laid
        shared = synchronisation(program.PARTS_OF_LAYER * self._config.layers + 1)
        flat = logits.reshape(-1)

        def work(thread: int, threads: int) -> None:
            program.run(
                thread, threads, shared, laid.shape, laid.numbers, laid.layers, laid.matrices, laid.norms, laid.angles,
                ids, positions, texts, blocks, wanted, self._cache, self._floats, self._small, self._own, flat,
            )  # fmt: skip

        team().run(work, shared, self.threads)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for memory in self._cache:
            if len(memory):
                of_blocks = memory.reshape(self._config.layers, self.blocks, -1)
                of_blocks[:, list(targets)] = of_blocks[:, list(sources)]
