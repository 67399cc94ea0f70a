"""The encoder: reads a whole text in both directions; fills what is masked, and gives each token a vector.

model = Encoder(config); logits = model(ids, padding=padding)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rhapsode.base.errors import InputError
from rhapsode.model.config import ModelConfig
from rhapsode.model.layers import Head
from rhapsode.model.stack import Dropout, Stack, Weights


class Encoder(nn.Module):
    """An encoder-only transformer. Weights are zero or one until `initialise` or `load_model` fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.stack = Stack(config)
        if config.has_head:
            self.head = Head(config, self.embedding)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def hidden(
        self,
        ids: Tensor,
        *,
        padding: Tensor | None = None,
        dropout: Dropout | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """The last hidden states (batch, time, hidden) of ids (batch, time); see `forward` for the rest."""
        embedded = self.embedding(ids)  # (batch, time, hidden)
        if self.config.embedding_scale != 1.0:
            embedded = embedded * self.config.embedding_scale
        return self.stack(embedded, padding=padding, dropout=dropout, weights=weights)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, *, padding: Tensor | None = None, weights: Weights | None = None) -> Tensor:
        """Logits (batch, time, vocabulary) of the token at each place of ids (batch, time).

        Args:
            padding: (batch, time), True where a token is real.
            weights: receives each layer's attention weights.

        Raises:
            InputError: more tokens than the context length, or the model has no head.
        """
        self.require_head()
        return self.head(self.hidden(ids, padding=padding, weights=weights))  # type: ignore[no-any-return]

    def require_head(self) -> None:
        """Refuse to predict tokens without the head that does it."""
        if not self.config.has_head:
            raise InputError(
                "this encoder was published without the head that predicts tokens",
                todo="It gives vectors (`embed`); for masked tokens, name a model with a masked-language-model head.",
            )

    def loss(self, ids: Tensor, targets: Tensor, *, dropout: Dropout | None = None) -> Tensor:
        """The sum over all targets (batch, time) of -log p(target), in nats. Targets below zero do not count."""
        counted = targets >= 0  # (batch, time): the head is computed only where it counts
        hidden = self.hidden(ids, dropout=dropout)[counted]  # (counted, hidden)
        return self.head.loss(hidden, targets[counted])
