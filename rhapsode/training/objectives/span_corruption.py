"""Span corruption: an encoder-decoder reads a window with spans cut out, and writes them (Raffel et al. 2020, 3.1.4).

text      the quick brown fox jumps over the lazy dog
reads     the <0> fox jumps over <1> dog
writes    <0> quick brown <1> the lazy
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhapsode.base.errors import InputError
from rhapsode.base.random import generator
from rhapsode.model.model import Model
from rhapsode.training.objectives.next_token import check_validation, window_places
from rhapsode.training.objectives.objective import Batch, Figures, ObjectiveName
from rhapsode.training.objectives.parallel_text import examine, side_by_side
from rhapsode.training.objectives.windows import Array, Windows

MEAN_SPAN = 3.0
"""Tokens of a span that is cut out, on average."""
EXAMINED_AT_ONCE = 64


def spans_in(context: int, share: float) -> int:
    """How many spans are cut out of a window."""
    return max(1, round(max(1, round(share * context)) / MEAN_SPAN))


class SpanCorruption:
    """See `Objective`. The spans of a sample are drawn anew each time that its text is met.

    Args:
        tokens: (tokens,) ids of the training text, usually a memory map.
        validation: (tokens,) ids of the fixed slice of text that the run is judged on.
        start_id: what the decoder begins with.
        end_id: what ends both sides.
        sentinels: the tokens that stand for the first span, the second, ...
        share: of a window's tokens that are cut out.
    """

    name: ObjectiveName = "span corruption"

    def __init__(
        self,
        tokens: np.ndarray,
        validation: np.ndarray,
        *,
        context: int,
        seed: int,
        start_id: int,
        end_id: int,
        sentinels: Sequence[int],
        share: float = 0.15,
    ) -> None:
        check_validation(validation, len(validation))
        length = min(context, len(validation))
        if spans_in(context, share) > len(sentinels):
            raise InputError(
                f"{spans_in(context, share)} spans are cut out of a window, and the tokenizer has tokens for "
                f"{len(sentinels)}",
                todo="Use a shorter --context-length, or let the run make its tokenizer.",
            )
        self.windows = Windows(tokens, context, seed)
        self.seed, self.start_id, self.end_id, self.sentinels, self.share = seed, start_id, end_id, sentinels, share
        rows = [validation[start : start + length] for start in range(0, len(validation) - length + 1, length)]
        pairs = [self._cut(row.astype(np.int64), "spans, validation", number) for number, row in enumerate(rows)]
        self.examination = [
            self._batch(pairs[start : start + EXAMINED_AT_ONCE]) for start in range(0, len(pairs), EXAMINED_AT_ONCE)
        ]

    def batch(self, first: int, count: int) -> Batch:
        texts = self.windows.batch(first, count)[:, :-1]  # (count, context)
        return self._batch([self._cut(text, "spans", first + row) for row, text in enumerate(texts)])

    def validate(self, model: Model) -> Figures:
        return examine(model, self.examination)

    def places(self, first: int, count: int) -> str:
        return window_places(self.windows, first, count)

    def _batch(self, pairs: list[tuple[Array, Array]]) -> Batch:
        return side_by_side(pairs, start_id=self.start_id, padding_id=self.start_id)

    def _cut(self, text: Array, purpose: str, number: int) -> tuple[Array, Array]:
        """What is read and what is written, each with its end. Their lengths depend on the length of the text alone."""
        draw = generator(self.seed, purpose, number)
        cut = min(len(text) - 1, max(1, round(self.share * len(text))))
        spans = min(spans_in(len(text), self.share), cut, len(text) - cut)
        lengths = np.stack((_parts(len(text) - cut, spans, draw), _parts(cut, spans, draw)), axis=1)  # (spans, 2)
        ends = lengths.reshape(-1).cumsum().tolist()
        pieces = np.split(text, ends[:-1])
        reads: list[Array] = []
        writes: list[Array] = []
        for span, sentinel in zip(range(spans), self.sentinels, strict=False):
            mark = np.array([sentinel], dtype=np.int64)
            reads += [pieces[2 * span], mark]
            writes += [mark, pieces[2 * span + 1]]
        end = np.array([self.end_id], dtype=np.int64)
        return np.concatenate([*reads, end]), np.concatenate([*writes, end])


def _parts(total: int, count: int, draw: np.random.Generator) -> Array:
    """`total` as a sum of `count` positive numbers, every way as likely, (count,)."""
    cuts = np.sort(draw.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate(([0], cuts, [total]))).astype(np.int64)
