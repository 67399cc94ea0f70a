"""Steps by kernels that are compiled for this processor: torch is not asked.

    step = KernelStep(decoder, blocks=100); why_not = unavailable(decoder)

What is computed for a text has the same bits whatever is computed beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rhapsode.base.errors import InputError
from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.kernels import program
from rhapsode.inference.kernels.attention import POSITIONS
from rhapsode.inference.kernels.elementwise import WORDS_TOO
from rhapsode.inference.kernels.layout import lay_out
from rhapsode.inference.kernels.products import BLOCK, GROUP
from rhapsode.inference.kernels.threads import LEAVE, begin_step, in_common, is_awake, team
from rhapsode.inference.step import Reading
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedModel

AT_ONCE = 256
"""Tokens that go through the layers side by side."""

KEPT: dict[CacheType, type] = {"float32": np.float32, "float16": np.uint16, "int8": np.int8}
"""What a cache may keep numbers in, and how numpy has it (halves by their bits)."""

FIRST_REACH = 512
"""Positions that there is room for at first."""

ALONE_BELOW = 2 * 2**20
"""Bytes of weights: a step of fewer is over before a second thread is awake."""


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to


class KernelStep:
    """Steps of a dense decoder.

    Args:
        source: the model, on the CPU; it must not be changed as long as this is used.
        blocks: of the cache.
        cache_type: what the cache keeps keys and values in.
        threads: at most; None for all physical cores.
    """

    def __init__(
        self,
        source: Decoder | PackedModel,
        blocks: int,
        *,
        cache_type: CacheType = "float32",
        threads: int | None = None,
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
        factors = places if cache_type == "int8" else 0
        # Zeros, not whatever is there: what is not a number would stay one when it is multiplied by zero.
        self._cache: tuple[np.ndarray, ...] = (
            np.zeros(places * width, KEPT[cache_type]),
            np.zeros(places * width, KEPT[cache_type]),
            np.zeros(factors, np.float32),
            np.zeros(factors, np.float32),
        )
        self.common, self._alone = (in_common(program.PARTS_OF_LAYER * config.layers + 1) for _ in range(2))
        self._rows = self._reach = self._texts = 0
        self._step = np.zeros(program.STEP_SIZE, np.int64)
        self._ids, self._positions, self._of_text, self._wanted = (np.zeros(AT_ONCE, np.int64) for _ in range(4))
        self._arguments: tuple[Any, ...] = ()

    def _make_room(self, tokens: int, positions: int, texts: int) -> None:
        """Have room for so many tokens at once, of so many texts of so many tokens each."""
        if tokens <= self._rows and positions <= self._reach and texts <= self._texts:
            return
        config, laid = self._config, self._laid
        if positions > self._reach:
            self._reach = min(config.context_length, max(FIRST_REACH, 2 * positions))
            laid.reach(self._reach)
        self._rows = max(self._rows, self.threads, min(_padded(tokens, 8), AT_ONCE))
        self._texts = max(self._texts, _padded(texts, 8))
        self._blocks = np.zeros((self._texts, -(-self._reach // POSITIONS)), np.int64)
        hidden, inside = _padded(config.hidden_size, BLOCK), _padded(config.intermediate_size, BLOCK)
        query, key = (_padded(heads * config.head_dim, BLOCK) for heads in (config.heads, config.kv_heads))
        widths = (hidden, hidden, hidden, hidden, query, key, key, query, inside, inside)
        floats = tuple(np.zeros(self._rows * width, np.float32) for width in widths)
        numbers = self._rows * max(hidden, query, inside)
        small = (
            np.zeros(numbers, np.int8),
            np.zeros(numbers if WORDS_TOO else 0, np.int16),
            np.zeros(numbers // BLOCK, np.float32),
            np.zeros(numbers // BLOCK, np.int32),
            np.zeros(numbers // BLOCK, np.float32),
        )
        scores, head = config.heads // config.kv_heads * (_padded(self._reach, POSITIONS) + POSITIONS), query + BLOCK
        own = (
            np.zeros((self.threads, scores), np.float32),
            np.zeros((self.threads, head), np.float32),
            np.zeros((self.threads, head), np.uint16),
        )
        self.common[LEAVE] = 1  # threads that look out have the old memory
        while any(is_awake(self.common, number) for number in range(1, self.threads)):
            time.sleep(0)
        self.common[LEAVE] = 0
        model = (laid.shape, laid.numbers, laid.layers, laid.matrices, laid.norms, laid.angles)
        batch = (self._ids, self._positions, self._of_text, self._blocks, self._wanted)
        self._arguments = (self.threads, self.common, model, self._step, batch, self._cache, floats, small, own)

    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        vocabulary = self._config.vocabulary_size
        logits = np.empty((sum(reading.wanted for reading in readings), _padded(vocabulary, GROUP)), np.float32)
        found, first = [], 0
        for reading in readings:
            self._check(reading)
            found.append(logits[first : first + reading.wanted, :vocabulary])
            first += reading.wanted
        done = 0
        for pieces in _together(readings):
            done += self._run(pieces, logits[done:])
        return found

    def _check(self, reading: Reading) -> None:
        """Refuse what lies outside of the tables: the program would read and write there."""
        context, vocabulary = self._config.context_length, self._config.vocabulary_size
        end = reading.past + len(reading.ids)
        if end > context:
            raise InputError(f"{end} tokens exceed the model's context of {context}")
        if not 0 <= min(reading.ids) <= max(reading.ids) < vocabulary:
            raise InputError(f"a token is none of the model's {vocabulary}")
        used = reading.blocks[: -(-end // POSITIONS)]
        if not 0 <= min(used) <= max(used) < self.blocks:
            raise IndexError(f"a block is none of the cache's {self.blocks}")

    def _run(self, pieces: list[Reading], logits: np.ndarray) -> int:
        """Compute pieces of texts, `AT_ONCE` tokens at most; how many logits were wanted."""
        tokens = sum(len(piece.ids) for piece in pieces)
        longest = max((piece.past + len(piece.ids) for piece in pieces), default=1)
        self._make_room(tokens, longest, len(pieces))
        first = wanted = 0
        for text, piece in enumerate(pieces):
            end = first + len(piece.ids)
            self._ids[first:end] = piece.ids
            self._positions[first:end] = range(piece.past, piece.past + len(piece.ids))
            self._of_text[first:end] = text
            used = -(-(piece.past + len(piece.ids)) // POSITIONS)
            self._blocks[text, :used] = piece.blocks[:used]
            self._wanted[wanted : wanted + piece.wanted] = range(end - piece.wanted, end)
            first, wanted = end, wanted + piece.wanted
        self._step[:] = tokens, wanted, logits.ctypes.data
        team().run(self)
        return wanted

    def warm_up(self) -> None:
        """Compile, and start the threads, by a step without tokens."""
        self._run([], np.empty((0, 0), np.float32))

    def alone(self) -> None:
        """A step by one thread."""
        begin_step(self._alone)
        program.run(0, 1, self._alone, *self._arguments[2:])

    def step(self) -> None:
        """The first thread's share of a step."""
        program.run(0, *self._arguments)

    def serve(self, thread: int) -> None:
        """Another thread's shares of steps."""
        program.serve(thread, *self._arguments)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for memory in self._cache:
            if len(memory):
                of_blocks = memory.reshape(self._config.layers, self.blocks, -1)
                of_blocks[:, list(targets)] = of_blocks[:, list(sources)]


def _together(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """The readings in pieces, at most `AT_ONCE` tokens together."""
    pieces, room = list[Reading](), AT_ONCE
    for reading in readings:
        start, length = 0, len(reading.ids)
        while start < length:
            end = min(length, start + room)
            wanted = max(0, reading.wanted - (length - end))
            whole = start == 0 and end == length
            pieces.append(
                reading
                if whole
                else Reading(reading.ids[start:end], reading.blocks, reading.past + start, min(wanted, end - start))
            )
            room -= end - start
            start = end
            if room == 0:
                yield pieces
                pieces, room = [], AT_ONCE
    if pieces:
        yield pieces
