"""Next-token prediction: a decoder predicts every token of a window from those before it."""

from __future__ import annotations

import numpy as np
import torch

from rhapsode.base.errors import InputError
from rhapsode.inference.evaluation import evaluate
from rhapsode.model.decoder import Decoder
from rhapsode.model.model import Model
from rhapsode.training.objectives.objective import Batch, Figures, ObjectiveName
from rhapsode.training.objectives.windows import Windows

EXAMINED_AT_ONCE = 16_384
"""Tokens."""


class NextToken:
    """See `Objective`.

    Args:
        tokens: (tokens,) ids of the training text, usually a memory map.
        validation: (tokens,) ids of the fixed slice of text that the run is judged on.
        bytes_of_text: bytes of UTF-8 that `validation` stands for.

    Raises:
        InputError: the training text is too short for one window, or the other one to predict any token.
    """

    name: ObjectiveName = "next token"

    def __init__(
        self, tokens: np.ndarray, validation: np.ndarray, *, bytes_of_text: int, context: int, seed: int
    ) -> None:
        self.windows = Windows(tokens, context, seed)
        self.validation, self.bytes_of_text, self.context = validation, bytes_of_text, context
        check_validation(validation, bytes_of_text)

    def batch(self, first: int, count: int) -> Batch:
        block = torch.from_numpy(self.windows.batch(first, count))  # (count, context + 1)
        inputs, targets = block[:, :-1].contiguous(), block[:, 1:].contiguous()
        return Batch((inputs, targets), trained=targets.numel(), read=inputs.numel())

    def validate(self, model: Model) -> Figures:
        assert isinstance(model, Decoder)
        found = evaluate(
            model,
            self.validation,
            context=self.context,
            stride=self.context,
            bytes_of_text=self.bytes_of_text,
            batch=max(1, EXAMINED_AT_ONCE // self.context),
        )
        return Figures(found.nats_per_token, bits_per_byte=found.bits_per_byte)

    def places(self, first: int, count: int) -> str:
        return window_places(self.windows, first, count)


def check_validation(tokens: np.ndarray, bytes_of_text: int) -> None:
    """Refuse a validation text in which nothing can be predicted."""
    if len(tokens) < 2 or not bytes_of_text:
        raise InputError(
            f"the text to validate on has {len(tokens)} tokens, too few to predict any",
            todo="Give more text, a larger --validation-fraction, or more --validation-tokens.",
        )


def window_places(windows: Windows, first: int, count: int) -> str:
    """Where windows begin, in words."""
    shown = ", ".join(map(str, windows.starts(first, min(count, 8)).tolist())) + (", ..." if count > 8 else "")
    return f"the samples begin at tokens {shown} of the training text"
