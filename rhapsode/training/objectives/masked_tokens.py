"""Masked tokens: an encoder fills gaps in a window from what stands on both sides (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from rhapsode.base.random import generator
from rhapsode.model.encoder import Encoder
from rhapsode.model.model import Model
from rhapsode.training.objectives.next_token import check_validation, window_places
from rhapsode.training.objectives.objective import Batch, Figures, ObjectiveName
from rhapsode.training.objectives.windows import Array, Windows

MASKED, RANDOM = 0.8, 0.1
"""Of the tokens chosen: shares that become the mask token, and a random one. The rest stay as they are."""
EXAMINED_AT_ONCE = 8192
"""Tokens."""
NOT_A_TARGET = -1


class MaskedTokens:
    """See `Objective`. The gaps of a sample are drawn anew each time that its text is met.

    Args:
        tokens: (tokens,) ids of the training text, usually a memory map.
        validation: (tokens,) ids of the fixed slice of text that the run is judged on.
        vocabulary_size: random tokens are below it.
        mask_id: the token of a gap.
        never: tokens that are never chosen, such as the end of text.
        share: of a window's tokens that are chosen.
    """

    name: ObjectiveName = "masked tokens"

    def __init__(
        self,
        tokens: np.ndarray,
        validation: np.ndarray,
        *,
        context: int,
        seed: int,
        vocabulary_size: int,
        mask_id: int,
        never: Collection[int],
        share: float = 0.15,
    ) -> None:
        check_validation(validation, len(validation))
        self.windows = Windows(tokens, context, seed)
        self.seed, self.vocabulary_size, self.mask_id, self.share = seed, vocabulary_size, mask_id, share
        self.never = np.array(sorted(never), dtype=np.int64)
        self.examination = list(self._examination(validation, context))

    def batch(self, first: int, count: int) -> Batch:
        # A window reads one token less than `Windows` gives: nothing follows it that would have to be predicted.
        texts = self.windows.batch(first, count)[:, :-1]  # (count, context)
        pairs = [self._gaps(text, "masking", first + row) for row, text in enumerate(texts)]
        return _batch(pairs)

    def validate(self, model: Model) -> Figures:
        assert isinstance(model, Encoder)
        nats, right, targets = 0.0, 0, 0
        with torch.no_grad():
            for batch in self.examination:
                ids, wanted = (tensor.to(model.device) for tensor in batch.tensors)
                counted = wanted != NOT_A_TARGET  # (batch, time)
                logits = model.head(model.hidden(ids)[counted]).float()  # (counted, vocabulary)
                wanted = wanted[counted]
                nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
                right += int((logits.argmax(dim=-1) == wanted).sum())
                targets += batch.trained
        return Figures(nats / targets, accuracy=right / targets)

    def places(self, first: int, count: int) -> str:
        return window_places(self.windows, first, count)

    def _gaps(self, text: Array, purpose: str, number: int) -> tuple[Array, Array]:
        """A text (time,) with gaps in it, and the targets (time,): what stood there, elsewhere none."""
        draw = generator(self.seed, purpose, number)
        allowed = np.flatnonzero(~np.isin(text, self.never))
        count = min(len(allowed), max(1, round(self.share * len(text))))
        chosen = draw.permutation(allowed)[:count]
        fate = draw.random(count)
        inputs, targets = text.copy(), np.full_like(text, NOT_A_TARGET)
        targets[chosen] = text[chosen]
        inputs[chosen[fate < MASKED]] = self.mask_id
        others = chosen[(fate >= MASKED) & (fate < MASKED + RANDOM)]
        inputs[others] = draw.integers(self.vocabulary_size, size=len(others))
        return inputs, targets

    def _examination(self, validation: np.ndarray, context: int) -> list[Batch]:
        """The validation text in windows side by side, with the same gaps for every model."""
        context = min(context, len(validation))
        rows = [validation[start : start + context] for start in range(0, len(validation) - context + 1, context)]
        pairs = [self._gaps(row.astype(np.int64), "masking, validation", number) for number, row in enumerate(rows)]
        at_once = max(1, EXAMINED_AT_ONCE // context)
        batches = [_batch(pairs[start : start + at_once]) for start in range(0, len(pairs), at_once)]
        return [batch for batch in batches if batch.trained]


def _batch(pairs: list[tuple[Array, Array]]) -> Batch:
    inputs, targets = (np.stack(rows) for rows in zip(*pairs, strict=True))  # (count, context) each
    trained = int((targets != NOT_A_TARGET).sum())
    return Batch((torch.from_numpy(inputs), torch.from_numpy(targets)), trained=trained, read=inputs.size)
