"""The decoder: predicts each next token from those before it.

model = Decoder(config); initialise(model, seed=0); logits = model(ids)
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhapsode.base.errors import InputError
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import DecoderConfig
from rhapsode.model.layers import Attention, GatedFeedForward, RMSNorm, attention_mask, rotary_angles


class Dropout(Protocol):
    """Zeroes a share of a tensor during training; `place` counts the places in the order they are passed."""

    def __call__(self, x: Tensor, place: int) -> Tensor: ...


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.feed_forward = GatedFeedForward(config)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KeyValueCache | None,
        dropout: Dropout | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        mixed, weights = self.attention(self.attention_norm(x), angles, mask, cache, return_weights)
        if dropout is not None:
            mixed = dropout(mixed, 2 * self.layer + 1)
        x = x + mixed
        fed = self.feed_forward(self.feed_forward_norm(x))
        if dropout is not None:
            fed = dropout(fed, 2 * self.layer + 2)
        return x + fed, weights


class Decoder(nn.Module):
    """A decoder-only transformer. Weights are zero or one until `initialise` or `load_model` fills them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.head = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self._angles: tuple[Tensor, Tensor] | None = None

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: KeyValueCache | None = None,
        padding: Tensor | None = None,
        dropout: Dropout | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """The normed last hidden states (batch, time, hidden) of ids (batch, time); see `forward` for the rest.

        `weights`, if given, receives each layer's attention weights (batch, heads, time, keys).
        """
        batch, time = ids.shape
        past = 0 if cache is None else cache.length
        if past + time > self.config.context_length:
            raise InputError(
                f"{past + time} tokens exceed the model's context of {self.config.context_length}",
                todo="Shorten the text, or use a model with a longer context.",
            )
        if cache is not None:
            padding = cache.extend(time, padding, batch, ids.device)
        mask = None
        if padding is not None or (past > 0 and time > 1):
            mask = attention_mask(time, past + time, padding, ids.device)
        elif past > 0:
            mask = torch.ones(time, past + time, dtype=torch.bool, device=ids.device)
        x = self.embedding(ids)  # (batch, time, hidden)
        if dropout is not None:
            x = dropout(x, 0)
        angles = self._rotary_angles(past, time, padding, x)
        for block in self.blocks:
            x, seen = block(x, angles, mask, cache, dropout, weights is not None)
            if weights is not None:
                weights.append(seen)
        if cache is not None:
            cache.length += time
        return self.final_norm(x)  # type: ignore[no-any-return]

    def _rotary_angles(self, past: int, time: int, padding: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if padding is not None:
            positions = (padding.long().cumsum(dim=1) - 1).clamp_(min=0)[:, past:]  # (batch, time): padding takes none
            return rotary_angles(positions, config.head_dim, config.rope_theta, x.dtype)
        if self._angles is None or self._angles[0].device != x.device or self._angles[0].dtype != x.dtype:
            with torch.inference_mode(False):  # kept: a training step may need them later
                every = torch.arange(config.context_length, device=x.device)
                self._angles = rotary_angles(every, config.head_dim, config.rope_theta, x.dtype)
        cosine, sine = self._angles  # (context, 1, head_dim / 2)
        return cosine[past : past + time], sine[past : past + time]

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KeyValueCache | None = None,
        padding: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Logits (batch, time, vocabulary) of the token after each one in ids (batch, time).

        Args:
            cache: what was read before these ids; it is extended by them.
            padding: (batch, time), True where a token is real; padding may stand before or after the text.
            weights: a list that receives each layer's attention weights (batch, heads, time, keys).

        Raises:
            InputError: more tokens than the context length.
        """
        return self.head(self.hidden(ids, cache=cache, padding=padding, weights=weights))  # type: ignore[no-any-return]

    def loss(self, ids: Tensor, targets: Tensor, dropout: Dropout | None = None) -> Tensor:
        """The sum over all targets (batch, time) of -log p(target), in nats. Targets below zero do not count."""
        hidden = self.hidden(ids, dropout=dropout)  # (batch, time, hidden)
        logits = self.head(hidden.view(-1, self.config.hidden_size))  # (batch * time, vocabulary)
        return F.cross_entropy(logits, targets.reshape(-1), reduction="sum", ignore_index=-1)
