"""The layers that every family is made of: norm, rotary positions, attention, gated feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import DecoderConfig
from rhapsode.model.functions import rms_norm, rotate, swiglu


class RMSNorm(nn.Module):
    """Divide by the root mean square, multiply by a learned gain."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


def rotary_angles(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position * theta^(-2i / head_dim), i < head_dim / 2 (Su et al. 2021, equation 15).

    Args:
        positions: (..., time) integers.

    Returns:
        two tensors (..., time, 1, head_dim / 2); the 1 broadcasts over heads.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions.device).float() / head_dim
    angles = positions[..., None].float() * (1.0 / theta**exponents)  # (..., time, head_dim / 2)
    return angles.cos().to(dtype)[..., None, :], angles.sin().to(dtype)[..., None, :]


def attention_mask(queries: int, keys: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query may see, True for yes: itself and what is before it, never padding.

    The queries are the last ones of the keys. A padded query sees itself, so that no row is empty; nobody reads it.

    Returns:
        (queries, keys), or (batch, 1, queries, keys) with padding.
    """
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    causal = column <= row  # (queries, keys)
    if padding is None:
        return causal
    return causal & (padding[:, None, None, :] | (column == row))  # (batch, 1, queries, keys)


class Attention(nn.Module):
    """Multi-head grouped-query self-attention with normed queries and keys, and rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.query = nn.Linear(config.hidden_size, config.heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.hidden_size, config.kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.hidden_size, config.kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)
        self.query_norm = RMSNorm(config.head_dim, config.norm_epsilon)
        self.key_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KeyValueCache | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values of the visible tokens.

        Args:
            x: (batch, time, hidden).
            angles: see `rotary_angles`.
            mask: see `attention_mask`; None means causal over exactly these tokens.
            return_weights: take the explicit path and return its weights too, (batch, heads, time, keys).
        """
        batch, time, _ = x.shape
        query = self.query(x).view(batch, time, self.heads, self.head_dim)
        key = self.key(x).view(batch, time, self.kv_heads, self.head_dim)
        value = self.value(x).view(batch, time, self.kv_heads, self.head_dim).transpose(1, 2)
        query = rotate(self.query_norm(query), *angles).transpose(1, 2)  # (batch, heads, time, head_dim)
        key = rotate(self.key_norm(key), *angles).transpose(1, 2)  # (batch, kv_heads, time, head_dim)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        attend = explicit_attention if return_weights else fast_attention
        mixed, weights = attend(query, key, value, mask)  # (batch, heads, time, head_dim)
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1)), weights


def fast_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    """Attention by torch's fused kernel, which never writes the weights down. Shapes as `explicit_attention`."""
    grouped = query.shape[1] != key.shape[1]
    mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, enable_gqa=grouped)
    return mixed, None


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(head_dim)) V, written out (Vaswani et al. 2017, equation 1).

    Args:
        query: (batch, heads, time, head_dim).
        key: (batch, kv_heads, keys, head_dim).
        value: (batch, kv_heads, keys, head_dim).
        mask: True where a key may be seen; None means causal.

    Returns:
        the mixed values (batch, heads, time, head_dim) and the weights (batch, heads, time, keys).
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (batch, heads, time, keys)
    if mask is None:
        mask = attention_mask(query.shape[2], key.shape[2], None, query.device)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights @ value, weights


class GatedFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate(x), self.up(x)))  # type: ignore[no-any-return]
