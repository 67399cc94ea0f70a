"""Parallel text: an encoder-decoder reads one side of a pair and writes the other (Vaswani et al. 2017, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rhapsode.base.errors import InputError
from rhapsode.base.random import generator
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.model import Model
from rhapsode.training.objectives.objective import Batch, Figures, ObjectiveName
from rhapsode.training.objectives.windows import Array, shuffled

NOT_A_TARGET = -1
STEPS_IN_A_POOL = 32
"""So many batches' pairs are drawn together and sorted by length, so that little of a batch is padding."""
EXAMINED_AT_ONCE = 64


class Pairs:
    """Pairs of texts in a token store: each document is one side, an end of text, the other side, an end of text.

    Args:
        tokens: (tokens,) ids, usually a memory map.
        documents: (pairs + 1,) where each pair begins, and the end.
        end_id: the end of text.
    """

    def __init__(self, tokens: np.ndarray, documents: npt.NDArray[np.int64], end_id: int) -> None:
        self.tokens, self.documents = tokens, documents
        ends = np.flatnonzero(np.asarray(tokens) == end_id)  # (2 * pairs,): each side's own
        if len(ends) != 2 * (len(documents) - 1) or not np.array_equal(ends[1::2] + 1, documents[1:]):
            raise InputError("the tokens are not those of pairs of texts", todo="Make the run anew, with --pairs.")
        self.middles = ends[::2] + 1  # (pairs,): where the second side begins

    def lengths(self) -> tuple[Array, Array]:
        """Tokens of both sides of each pair, (pairs,) each, their ends counted."""
        return self.middles - self.documents[:-1], self.documents[1:] - self.middles

    def pair(self, number: int) -> tuple[Array, Array]:
        """Both sides, each with its end."""
        begin, middle, end = self.documents[number], self.middles[number], self.documents[number + 1]
        return self.tokens[begin:middle].astype(np.int64), self.tokens[middle:end].astype(np.int64)


class ParallelText:
    """See `Objective`. An epoch visits every pair that fits into the context once.

    Args:
        pairs: the training pairs.
        validation: the pairs that the run is judged on.
        batch_size: pairs of a step; its pairs are of about one length.
        context: tokens of the longest side that is used.
        start_id: what the decoder begins with.
        padding_id: what fills up the shorter sides.

    Raises:
        InputError: no pair fits.
    """

    name: ObjectiveName = "parallel text"

    def __init__(
        self,
        pairs: Pairs,
        validation: Pairs,
        *,
        batch_size: int,
        context: int,
        seed: int,
        start_id: int,
        padding_id: int,
    ) -> None:
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        self.start_id, self.padding_id = start_id, padding_id
        self.fitting = _fitting(pairs, context)
        examined = _fitting(validation, context)
        self.too_long = len(pairs.middles) - len(self.fitting)
        """Training pairs that are left out, because a side of them is longer than the context."""
        if not len(self.fitting) or not len(examined):
            raise InputError(
                f"no pair of texts is short enough for a context of {context} tokens",
                todo="Choose a larger --context-length.",
            )
        first, second = pairs.lengths()
        self.sizes = (first + second)[self.fitting]  # (fitting,)
        self._pool = (-1, np.zeros((0, batch_size), dtype=np.int64))
        batches = np.array_split(examined, max(1, -(-len(examined) // EXAMINED_AT_ONCE)))
        self.examination = [self._batch([validation.pair(number) for number in some.tolist()]) for some in batches]

    def batch(self, first: int, count: int) -> Batch:
        """Samples of one step; all of its pieces are padded alike, so that they have the same dropout as the whole."""
        step, offset = divmod(first, self.batch_size)
        pairs = [self.pairs.pair(number) for number in self._numbers(step).tolist()]
        widths = (max(len(source) for source, _ in pairs), max(len(target) for _, target in pairs))
        return self._batch(pairs[offset : offset + count], widths)

    def validate(self, model: Model) -> Figures:
        return examine(model, self.examination)

    def places(self, first: int, count: int) -> str:
        step, offset = divmod(first, self.batch_size)
        numbers = self._numbers(step)[offset : offset + min(count, 8)].tolist()
        return f"pairs {', '.join(map(str, numbers))}{', ...' if count > 8 else ''} of the training text"

    def _numbers(self, step: int) -> Array:
        """The pairs of a step, (batch_size,)."""
        pool, place = divmod(step, STEPS_IN_A_POOL)
        if pool != self._pool[0]:
            self._pool = (pool, self._drawn(pool))
        numbers: Array = self._pool[1][place]
        return numbers

    def _drawn(self, pool: int) -> Array:
        """The pairs of the steps of a pool, (STEPS_IN_A_POOL, batch_size)."""
        size = STEPS_IN_A_POOL * self.batch_size
        index = np.arange(pool * size, (pool + 1) * size, dtype=np.int64)
        count = len(self.fitting)
        drawn = np.empty(size, dtype=np.int64)
        for epoch in np.unique(index // count):
            mine = index // count == epoch
            draw = generator(self.seed, "order of the pairs", int(epoch))
            drawn[mine] = shuffled(index[mine] % count, count, draw)
        by_length = drawn[np.argsort(self.sizes[drawn], kind="stable")].reshape(STEPS_IN_A_POOL, self.batch_size)
        order = generator(self.seed, "order of the steps", pool).permutation(STEPS_IN_A_POOL)
        numbers: Array = self.fitting[by_length[order]]
        return numbers

    def _batch(self, pairs: Sequence[tuple[Array, Array]], widths: tuple[int, int] = (0, 0)) -> Batch:
        return side_by_side(pairs, start_id=self.start_id, padding_id=self.padding_id, widths=widths)


def side_by_side(
    pairs: Sequence[tuple[Array, Array]], *, start_id: int, padding_id: int, widths: tuple[int, int] = (0, 0)
) -> Batch:
    """Pairs as the arguments of an encoder-decoder's loss, padded to the longest, or to `widths` if that is more."""
    width = max(widths[0], *(len(source) for source, _ in pairs))
    height = max(widths[1], *(len(target) for _, target in pairs))
    source = np.full((len(pairs), width), padding_id, dtype=np.int64)
    inputs = np.full((len(pairs), height), padding_id, dtype=np.int64)
    targets = np.full((len(pairs), height), NOT_A_TARGET, dtype=np.int64)
    for row, (reads, writes) in enumerate(pairs):
        source[row, : len(reads)] = reads
        inputs[row, 0] = start_id
        inputs[row, 1 : len(writes)] = writes[:-1]
        targets[row, : len(writes)] = writes
    lengths = np.array([len(reads) for reads, _ in pairs])
    padding = np.arange(width)[None, :] < lengths[:, None]  # (pairs, width), True where a token is real
    trained = int((targets != NOT_A_TARGET).sum())
    tensors = tuple(torch.from_numpy(array) for array in (source, padding, inputs, targets))
    return Batch(tensors, trained=trained, read=trained + int(lengths.sum()))


def examine(model: Model, batches: Sequence[Batch]) -> Figures:
    """Loss and accuracy of an encoder-decoder on fixed pairs, each target predicted from the right ones before it."""
    assert isinstance(model, EncoderDecoder)
    nats, right, trained = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            source, padding, ids, targets = (tensor.to(model.device) for tensor in batch.tensors)
            counted = targets != NOT_A_TARGET  # (batch, time)
            memory = model.encode(source, padding=padding)
            logits = model.head(model.hidden(ids, memory, memory_padding=padding)[counted]).float()
            wanted = targets[counted]  # (counted,)
            nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(dim=-1) == wanted).sum())
            trained += batch.trained
    return Figures(nats / trained, accuracy=right / trained)


def _fitting(pairs: Pairs, context: int) -> Array:
    first, second = pairs.lengths()
    return np.flatnonzero((first <= context) & (second <= context))
