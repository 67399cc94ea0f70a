"""The encoder-decoder: reads one text whole, and writes another token by token ("Attention Is All You Need").

model = EncoderDecoder(config); memory = model.encode(source); logits = model(target, memory)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import ModelConfig
from rhapsode.model.layers import Head
from rhapsode.model.stack import Dropout, Stack, Weights


class EncoderDecoder(nn.Module):
    """Two towers, with one embedding or one each. Weights are zero or one until something fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.decoder_embedding = self.embedding
        if not config.shared_embeddings:
            self.decoder_embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.encoder = Stack(config, 0)
        self.decoder = Stack(config, 1)
        self.head = Head(config, self.decoder_embedding)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def encode(
        self,
        ids: Tensor,
        *,
        padding: Tensor | None = None,
        dropout: Dropout | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """The memory (batch, source, hidden) of the text to read, ids (batch, source).

        Args:
            padding: (batch, source), True where a token is real.

        Raises:
            InputError: more tokens than the context length.
        """
        embedded = self.embedding(ids) * self.config.embedding_scale  # (batch, source, hidden)
        return self.encoder(embedded, padding=padding, dropout=dropout, weights=weights)  # type: ignore[no-any-return]

    def hidden(
        self,
        ids: Tensor,
        memory: Tensor | None,
        *,
        memory_padding: Tensor | None = None,
        cache: KeyValueCache | None = None,
        dropout: Dropout | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """The decoder's last hidden states (batch, time, hidden) of ids (batch, time); see `forward` for the rest."""
        return self.decoder(  # type: ignore[no-any-return]
            self.decoder_embedding(ids) * self.config.embedding_scale,  # (batch, time, hidden)
            cache=cache,
            memory=memory,
            memory_padding=memory_padding,
            dropout=dropout,
            weights=weights,
        )

    def forward(
        self,
        ids: Tensor,
        memory: Tensor | None,
        *,
        memory_padding: Tensor | None = None,
        cache: KeyValueCache | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocabulary) of the token after each one in ids (batch, time), the text being written.

        Args:
            memory: what `encode` gave; None once the cache holds what is needed of it.
            memory_padding: (batch, source), True where a token of the text read is real.
            cache: what was written before these ids; it is extended by them.
            weights: receives each layer's attention weights.

        Raises:
            InputError: more tokens than the context length.
        """
        hidden = self.hidden(ids, memory, memory_padding=memory_padding, cache=cache, weights=weights)
        return self.head(hidden)  # type: ignore[no-any-return]

    def loss(
        self,
        source: Tensor,
        source_padding: Tensor,
        ids: Tensor,
        targets: Tensor,
        *,
        dropout: Dropout | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """The sum over all targets (batch, time) of -log p(target), in nats. Targets below zero do not count.

        Args:
            label_smoothing: share of each target that is spread over the whole vocabulary (Szegedy et al. 2016).
        """
        memory = self.encode(source, padding=source_padding, dropout=dropout)  # (batch, source, hidden)
        counted = targets >= 0  # (batch, time)
        hidden = self.hidden(ids, memory, memory_padding=source_padding, dropout=dropout)[counted]  # (counted, hidden)
        return self.head.loss(hidden, targets[counted], label_smoothing)
