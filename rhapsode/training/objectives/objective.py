"""What every objective gives the loop: batches as a pure function of their number, and a fixed examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rhapsode.model.model import Model

ObjectiveName = Literal["next token", "masked tokens", "span corruption", "parallel text"]


@dataclass(frozen=True)
class Batch:
    """Samples side by side."""

    tensors: tuple[Tensor, ...]
    """The first arguments of the model's `loss`."""
    trained: int
    """Targets that count: what sums of losses are divided by."""
    read: int
    """Tokens that pass through the model, padding not counted."""


@dataclass(frozen=True)
class Figures:
    """How a model did on the validation text."""

    loss: float
    """Nats per target."""
    bits_per_byte: float | None = None
    """Of the whole text, where all of it is predicted."""
    accuracy: float | None = None
    """Share of the targets that were the most likely token, where that says something to people."""

    def named(self) -> dict[str, float]:
        """Those that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Objective(Protocol):
    """One way to train a kind of model."""

    name: ObjectiveName

    def batch(self, first: int, count: int) -> Batch:
        """Samples first, first + 1, ... of all samples ever; the same in however many pieces they are asked for."""
        ...

    def validate(self, model: Model) -> Figures:
        """How well the model does on the validation text, on the same targets each time."""
        ...

    def places(self, first: int, count: int) -> str:
        """Where in the training data these samples come from, in words."""
        ...
