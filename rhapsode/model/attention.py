"""Attention: causal, to both sides, or to another text; a fast path, and an explicit one with its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhapsode.model.block_cache import BlockReading
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import ModelConfig, StackSizes
from rhapsode.model.functions import rotate
from rhapsode.model.layers import Linear, norm


@dataclass(frozen=True)
class Sight:
    """What the queries of a layer may see, and how positions enter.

    `mask` is (queries, keys), or (batch, heads or 1, queries, keys): boolean, True for yes, or numbers to add to the
    scores. None: everything, or if `causal` (queries and keys are the same tokens then) itself and what is before.
    """

    mask: Tensor | None
    causal: bool
    angles: tuple[Tensor, Tensor] | None = None
    window: int = 0
    """Of a reading in blocks: how many tokens are seen, itself counted; 0 for any. Elsewhere the mask says it."""


def visible(
    queries: int,
    keys: int,
    *,
    causal: bool,
    window: int = 0,
    padding: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which keys each query may see, True for yes. The queries are the last ones of the keys.

    Nobody sees padding; a padded query sees itself, so that no row is empty; nobody reads it.

    Args:
        causal: only itself and what is before.
        window: only the last so many tokens, itself counted (causal), or so many to each side; 0 for any.
        padding: (batch, keys), True where a token is real.

    Returns:
        (queries, keys), or (batch, 1, queries, keys) with padding.
    """
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    seen = column <= row if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)  # (queries, keys)
    if window:
        seen = seen & (row - column < window if causal else (row - column).abs() <= window)
    if padding is None:
        return seen
    return seen & (padding[:, None, None, :] | (column == row))  # (batch, 1, queries, keys)


class Attention(nn.Module):
    """Multi-head grouped-query attention over the same text, or over another one's memory.

    Args:
        memory: the keys and values come from another text; they have no positions.
    """

    def __init__(self, config: ModelConfig, sizes: StackSizes, layer: int, *, memory: bool = False) -> None:
        super().__init__()
        self.layer, self.memory, self.scale = layer, memory, config.scale(sizes)
        self.heads, self.kv_heads, self.head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
        query_size, key_size = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.query = Linear(config.hidden_size, query_size, bias=config.query_bias)
        self.key = Linear(config.hidden_size, key_size, bias=config.query_bias)
        self.value = Linear(config.hidden_size, key_size, bias=config.query_bias)
        self.output = Linear(query_size, config.hidden_size, bias=config.output_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm != "none":
            self.query_norm = norm(config, sizes.head_dim if self.qk_norm == "head" else query_size)
            self.key_norm = norm(config, sizes.head_dim if self.qk_norm == "head" else key_size)

    def forward(
        self,
        x: Tensor,
        sight: Sight,
        cache: KeyValueCache | BlockReading | None,
        memory: Tensor | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values of what is seen.

        Args:
            x: (batch, time, hidden).
            cache: holds the keys and values of what was read before; it is extended.
            memory: (batch, keys, hidden), the other text's hidden states; None where the cache has them already.
            return_weights: take the explicit path and return its weights too, (batch, heads, time, keys).
        """
        batch, time, _ = x.shape
        query = self.query(x)
        if self.qk_norm == "all":
            query = self.query_norm(query)
        query = query.view(batch, time, self.heads, self.head_dim)
        if self.qk_norm == "head":
            query = self.query_norm(query)
        if sight.angles is not None:
            query = rotate(query, *sight.angles)
        query = query.transpose(1, 2)  # (batch, heads, time, head_dim)
        if isinstance(cache, BlockReading):
            key, value = self._keys_and_values(x, sight)
            mixed = cache.attend(self.layer, query, key, value, sight.window, self.scale)
            return self.output(mixed.transpose(1, 2).reshape(batch, time, -1)), None
        if self.memory and cache is not None and cache.has_memory(self.layer):
            key, value = cache.memory(self.layer)
        else:
            key, value = self._keys_and_values(x if memory is None else memory, sight)
            if cache is not None:
                keep = cache.keep_memory if self.memory else cache.append
                key, value = keep(self.layer, key, value)
        attend = explicit_attention if return_weights else fast_attention
        mixed, weights = attend(query, key, value, sight, self.scale)  # (batch, heads, time, head_dim)
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1)), weights

    def _keys_and_values(self, x: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, kv_heads, time, head_dim) of x (batch, time, hidden)."""
        batch, time, _ = x.shape
        key = self.key(x)
        if self.qk_norm == "all":
            key = self.key_norm(key)
        key = key.view(batch, time, self.kv_heads, self.head_dim)
        if self.qk_norm == "head":
            key = self.key_norm(key)
        if sight.angles is not None:
            key = rotate(key, *sight.angles)
        value = self.value(x).view(batch, time, self.kv_heads, self.head_dim)
        return key.transpose(1, 2), value.transpose(1, 2)


def fast_attention(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> tuple[Tensor, None]:
    """Attention by torch's fused kernel, which never writes the weights down. Shapes as `explicit_attention`."""
    grouped = query.shape[1] != key.shape[1]
    mixed = F.scaled_dot_product_attention(
        query, key, value, sight.mask, is_causal=sight.causal and sight.mask is None, scale=scale, enable_gqa=grouped
    )
    return mixed, None


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T * scale) V, written out (Vaswani et al. 2017, equation 1).

    Args:
        query: (batch, heads, time, head_dim).
        key: (batch, kv_heads, keys, head_dim).
        value: (batch, kv_heads, keys, head_dim).
        scale: 1 / sqrt(head_dim) in the paper.

    Returns:
        the mixed values (batch, heads, time, head_dim) and the weights (batch, heads, time, keys).
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) * scale  # (batch, heads, time, keys)
    mask = sight.mask
    if mask is None and sight.causal:
        mask = visible(query.shape[2], key.shape[2], causal=True, device=query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1)
    return weights @ value, weights
