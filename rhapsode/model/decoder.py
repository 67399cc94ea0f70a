"""The decoder: predicts each next token from those before it.

model = Decoder(config); initialise(model, seed=0); logits = model(ids)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rhapsode.model.block_cache import BlockReading
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import ModelConfig
from rhapsode.model.layers import Head
from rhapsode.model.stack import Dropout, Stack, Weights


class Decoder(nn.Module):
    """A decoder-only transformer. Weights are zero or one until `initialise` or `load_model` fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.stack = Stack(config)
        self.head = Head(config, self.embedding)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: KeyValueCache | BlockReading | None = None,
        padding: Tensor | None = None,
        dropout: Dropout | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """The last hidden states (batch, time, hidden) of ids (batch, time); see `forward` for the rest."""
        embedded = self.embedding(ids)  # (batch, time, hidden)
        if self.config.embedding_scale != 1.0:
            embedded = embedded * self.config.embedding_scale
        return self.stack(  # type: ignore[no-any-return]
            embedded, cache=cache, padding=padding, dropout=dropout, weights=weights
        )

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KeyValueCache | None = None,
        padding: Tensor | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocabulary) of the token after each one in ids (batch, time).

        Args:
            cache: what was read before these ids; it is extended by them.
            padding: (batch, time), True where a token is real; padding may stand before or after the text.
            weights: receives each layer's attention weights.

        Raises:
            InputError: more tokens than the context length.
        """
        return self.head(self.hidden(ids, cache=cache, padding=padding, weights=weights))  # type: ignore[no-any-return]

    def loss(self, ids: Tensor, targets: Tensor, *, dropout: Dropout | None = None) -> Tensor:
        """The sum over all targets (batch, time) of -log p(target), in nats. Targets below zero do not count."""
        hidden = self.hidden(ids, dropout=dropout)  # (batch, time, hidden)
        return self.head.loss(hidden.view(-1, self.config.hidden_size), targets.reshape(-1))
