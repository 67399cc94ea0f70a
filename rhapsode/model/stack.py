"""A tower of blocks: embeddings in, hidden states out. Encoders and decoders are made of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from rhapsode.base.errors import InputError
from rhapsode.model.attention import Attention, Sight, visible
from rhapsode.model.block_cache import BlockReading
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import ModelConfig, Rope
from rhapsode.model.layers import feed_forward, norm
from rhapsode.model.positions import RelativeBias, rotary_angles, sinusoids


class Dropout(Protocol):
    """Zeroes a share of a tensor during training; `place` tells the places of a model apart."""

    def __call__(self, x: Tensor, place: int) -> Tensor: ...


class Weights:
    """Receives the attention weights of each layer, (batch, heads, time, keys).

    Attributes:
        encoder, decoder: of the same text, layer by layer.
        cross: of a decoder to the encoder's text.
    """

    def __init__(self) -> None:
        self.encoder: list[Tensor] = []
        self.decoder: list[Tensor] = []
        self.cross: list[Tensor] = []


def first_place(config: ModelConfig, tower: int) -> int:
    """The number of a tower's first place of dropout, its embedding; three more follow for each block."""
    return tower * (1 + 3 * config.layers)


class Block(nn.Module):
    """Attention, in a decoder of two texts attention to the other one, and a feed-forward, each around a residual."""

    def __init__(self, config: ModelConfig, tower: int, layer: int, *, cross: bool) -> None:
        super().__init__()
        sizes = config.towers[tower]
        self.order, self.place = config.order, first_place(config, tower) + 1 + 3 * layer
        self.attention = Attention(config, sizes, layer)
        if layer > 0 or config.first_attention_norm:
            self.attention_norm = norm(config)
        if cross:
            self.cross_attention = Attention(config, sizes, layer, memory=True)
            self.cross_attention_norm = norm(config)
        self.feed_forward = feed_forward(config, layer, sizes.intermediate_size)
        self.feed_forward_norm = norm(config)
        if self.order == "sandwich":
            self.attention_output_norm = norm(config)
            self.feed_forward_output_norm = norm(config)

    def forward(
        self,
        x: Tensor,
        sight: Sight,
        cache: KeyValueCache | BlockReading | None,
        memory: Tensor | None,
        memory_sight: Sight | None,
        dropout: Dropout | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (batch, time, hidden) after this block, and the weights of both attentions if they are asked for."""
        mixed, weights = self.attention(self._before(x, "attention"), sight, cache, None, return_weights)
        if self.order == "parallel":
            fed = self.feed_forward(self._before(x, "feed_forward"))
            return x + self._dropped(mixed, dropout, 0) + self._dropped(fed, dropout, 2), weights, None
        x = self._after(x, mixed, "attention", dropout, 0)
        seen = None
        if memory_sight is not None:
            inside = self._before(x, "cross_attention")
            mixed, seen = self.cross_attention(inside, memory_sight, cache, memory, return_weights)
            x = self._after(x, mixed, "cross_attention", dropout, 1)
        fed = self.feed_forward(self._before(x, "feed_forward"))
        return self._after(x, fed, "feed_forward", dropout, 2), weights, seen

    def _before(self, x: Tensor, part: str) -> Tensor:
        """What a part reads."""
        if self.order in ("post", "output") or f"{part}_norm" not in self._modules:
            return x
        return self._modules[f"{part}_norm"](x)  # type: ignore[misc, no-any-return]

    def _after(self, x: Tensor, y: Tensor, part: str, dropout: Dropout | None, place: int) -> Tensor:
        """The residual stream x with what a part made of it, y."""
        if self.order == "output":
            y = self._modules[f"{part}_norm"](y)  # type: ignore[misc]
        elif self.order == "sandwich":
            y = self._modules[f"{part}_output_norm"](y)  # type: ignore[misc]
        x = x + self._dropped(y, dropout, place)
        return self._modules[f"{part}_norm"](x) if self.order == "post" else x  # type: ignore[misc]

    def _dropped(self, x: Tensor, dropout: Dropout | None, place: int) -> Tensor:
        return x if dropout is None else dropout(x, self.place + place)


class Stack(nn.Module):
    """Positions, blocks, and the norm at the end.

    Args:
        tower: 0, or 1 for the decoder of an encoder-decoder.
    """

    def __init__(self, config: ModelConfig, tower: int = 0) -> None:
        super().__init__()
        self.config, self.tower = config, tower
        self.causal = config.kind == "decoder" or tower == 1
        cross = tower == 1
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context_length + config.position_offset, config.hidden_size)
        if config.token_types:
            self.token_types = nn.Embedding(config.token_types, config.hidden_size)
        if config.embedding_norm:
            self.embedding_norm = norm(config)
        if config.positions == "relative":
            self.relative_bias = RelativeBias(config.buckets, config.towers[tower].heads, self.causal)
        sizes = config.towers[tower]
        self.blocks = nn.ModuleList(Block(config, tower, layer, cross=cross) for layer in range(sizes.layers))
        if config.order != "post":
            self.final_norm = norm(config)
        self._angles: dict[Rope, tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        embedded: Tensor,
        *,
        padding: Tensor | None = None,
        cache: KeyValueCache | BlockReading | None = None,
        memory: Tensor | None = None,
        memory_padding: Tensor | None = None,
        dropout: Dropout | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """The last hidden states (batch, time, hidden) of token embeddings (batch, time, hidden).

        Args:
            padding: (batch, time), True where a token is real; padding takes no position.
            cache: what was read before; it is extended. A `BlockReading` has tokens of several sequences, batch is 1.
            memory: (batch, source, hidden), what a decoder reads of the other text; None where it is cached.
            memory_padding: (batch, source), True where a token of the other text is real.

        Raises:
            InputError: more tokens than the context length.
        """
        if isinstance(cache, BlockReading):
            return self._read_blocks(embedded, cache)
        batch, time, _ = embedded.shape
        past = 0 if cache is None else cache.length
        if past + time > self.config.context_length:
            raise InputError(
                f"{past + time} tokens exceed the model's context of {self.config.context_length}",
                todo="Shorten the text, or use a model with a longer context.",
            )
        if cache is not None:
            padding = cache.extend(time, padding, batch, embedded.device)
        x = self._positioned(embedded, self._places(past, time, padding, embedded.device))
        if dropout is not None:
            x = dropout(x, first_place(self.config, self.tower))
        sights = self._sights(past, time, padding, x)
        memory_sight = None
        if self.tower == 1:
            seen = None if memory_padding is None else memory_padding[:, None, None, :]  # (batch, 1, 1, source)
            memory_sight = Sight(seen, causal=False)
        for layer, block in enumerate(self.blocks):
            x, of_itself, of_memory = block(x, sights[layer], cache, memory, memory_sight, dropout, weights is not None)
            if weights is not None:
                (weights.decoder if self.causal else weights.encoder).append(of_itself)
                if of_memory is not None:
                    weights.cross.append(of_memory)
        if cache is not None:
            cache.length += time
        return self.final_norm(x) if "final_norm" in self._modules else x

    def _read_blocks(self, embedded: Tensor, reading: BlockReading) -> Tensor:
        """The last hidden states (1, tokens, hidden) of the tokens of several sequences."""
        config, places = self.config, reading.positions
        x = self._positioned(embedded, places)
        head_dim = config.towers[self.tower].head_dim
        angles = {rope: rotary_angles(places, rope, head_dim, x.dtype) for rope in self._ropes()}
        for layer, block in enumerate(self.blocks):
            sight = Sight(None, True, angles.get(config.rope_of(layer)), config.window(layer))
            x, _, _ = block(x, sight, reading, None, None, None, False)
        return self.final_norm(x) if "final_norm" in self._modules else x

    def _places(self, past: int, time: int, padding: Tensor | None, device: torch.device) -> Tensor:
        """Where tokens stand, (time,), or (batch, time) with padding, which takes no position."""
        if padding is None:
            return torch.arange(past, past + time, device=device)
        return (padding.long().cumsum(dim=1) - 1).clamp_(min=0)[:, past:]

    def _positioned(self, x: Tensor, places: Tensor) -> Tensor:
        """Token embeddings with what is added to them before the first block."""
        config = self.config
        if config.positions in ("learned", "sinusoidal"):
            if config.positions == "learned":
                x = x + self.positions(places + config.position_offset)
            else:
                x = x + sinusoids(places, config.hidden_size, x.dtype)
        if config.token_types:
            x = x + self.token_types.weight[0]
        return self.embedding_norm(x) if config.embedding_norm else x

    def _sights(self, past: int, time: int, padding: Tensor | None, x: Tensor) -> list[Sight]:
        """What each layer may see, shared by the layers that see the same."""
        config, keys = self.config, past + time
        masks: dict[int, tuple[Tensor | None, bool]] = {}
        angles = {rope: self._angles_of(rope, past, time, padding, x) for rope in self._ropes()}
        sights = []
        for layer in range(len(self.blocks)):
            window = config.window(layer) if config.window(layer) < keys else 0  # which then sees everything
            if window not in masks:
                masks[window] = self._mask(past, time, window, padding, x)
            mask, causal = masks[window]
            sights.append(Sight(mask, causal, angles.get(config.rope_of(layer))))
        return sights

    def _ropes(self) -> set[Rope]:
        if self.config.positions != "rotary":
            return set()
        return {self.config.rope_of(layer) for layer in range(len(self.blocks))}

    def _mask(self, past: int, time: int, window: int, padding: Tensor | None, x: Tensor) -> tuple[Tensor | None, bool]:
        """The mask of the layers with one window, and whether the fast path may take it as causal."""
        keys = past + time
        everything = padding is None and not window and (not self.causal or time == 1)
        if "relative_bias" not in self._modules:
            if everything:
                return None, False
            if padding is None and not window and past == 0:
                return None, True
        mask = None
        if not everything:
            mask = visible(time, keys, causal=self.causal, window=window, padding=padding, device=x.device)
        if "relative_bias" in self._modules:
            bias = self.relative_bias(time, keys)  # (1, heads, time, keys)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        return mask, False

    def _angles_of(self, rope: Rope, past: int, time: int, padding: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (time, 1, pairs) or with the batch in front, computed once for as far as was needed."""
        head_dim = self.config.towers[self.tower].head_dim
        if padding is not None:
            return rotary_angles(self._places(past, time, padding, x.device), rope, head_dim, x.dtype)
        kept = self._angles.get(rope)
        if kept is None or len(kept[0]) < past + time or kept[0].device != x.device or kept[0].dtype != x.dtype:
            reach = min(self.config.context_length, max(256, 2 * (past + time)))
            with torch.inference_mode(False):  # kept: a training step may need them later
                kept = rotary_angles(torch.arange(reach, device=x.device), rope, head_dim, x.dtype)
            self._angles[rope] = kept
        cosine, sine = kept
        return cosine[past : past + time], sine[past : past + time]
