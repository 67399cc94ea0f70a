"""Keys and values of many sequences at once, in blocks that sequences with the same beginning share.

cache = BlockCache(config, blocks=100); hidden = model.hidden(ids, cache=BlockReading(cache, spans))

Kwon et al. 2023 (PagedAttention). Which block belongs to whom is decided elsewhere; here they are read and written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rhapsode.base.errors import InputError
from rhapsode.model.config import ModelConfig

BLOCK = 32
"""Tokens of a block."""


@dataclass(frozen=True)
class Span:
    """New tokens of one sequence."""

    blocks: Sequence[int]
    """Where the sequence's keys and values lie: its first `BLOCK` tokens in the first block, and so on."""
    past: int
    """Tokens before the new ones, whose keys and values are there."""
    new: int
    """How many are new."""


class BlockCache:
    """Memory for the keys and values of all of a decoder's layers.

    The memory is taken from the system when a block is first written.

    Attributes:
        keys: (layers, kv_heads, blocks * BLOCK, head_dim); block b begins at b * BLOCK.
        values: as `keys`.
    """

    def __init__(
        self, config: ModelConfig, blocks: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        sizes = config.towers[-1]
        shape = (sizes.layers, sizes.kv_heads, blocks * BLOCK, sizes.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Put what is in each of some blocks into another one; none is a source and a target."""
        shape = (*self.keys.shape[:2], -1, BLOCK, self.keys.shape[3])
        for memory in (self.keys.view(shape), self.values.view(shape)):  # (layers, kv_heads, blocks, BLOCK, head_dim)
            memory[:, :, list(targets)] = memory[:, :, list(sources)]


class BlockReading:
    """One pass over new tokens of several sequences, laid end to end: where each stands, and what it may see.

    Args:
        cache: the memory; the new tokens' keys and values are written to it.
        spans: whose tokens they are, in order.
        context_length: positions that the model has.

    Attributes:
        positions: (tokens,) in their sequences.
    """

    def __init__(self, cache: BlockCache, spans: Sequence[Span], context_length: int) -> None:
        self._cache, self._spans, device = cache, spans, cache.keys.device
        for span in spans:
            if span.past + span.new > context_length:
                raise InputError(f"{span.past + span.new} tokens exceed the model's context of {context_length}")
        places = [torch.arange(span.past, span.past + span.new) for span in spans]
        self.positions = torch.cat(places).to(device)
        self._seen = [_slots(span.blocks, span.past + span.new, device) for span in spans]
        homes = (torch.tensor(span.blocks)[place // BLOCK] for span, place in zip(spans, places, strict=True))
        offsets = (place % BLOCK for place in places)
        written = [home * BLOCK + offset for home, offset in zip(homes, offsets, strict=True)]
        self._written = torch.cat(written).to(device)  # (tokens,)
        self._masks: dict[tuple[int, int, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int, scale: float) -> Tensor:
        """Write new keys and values, and mix for each new token the values of what it may see of its sequence.

        Args:
            query: (1, heads, tokens, head_dim).
            key: (1, kv_heads, tokens, head_dim).
            value: as `key`.
            window: only the last so many tokens are seen, itself counted; 0 for any.

        Returns:
            (1, heads, tokens, head_dim).
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]  # (kv_heads, slots, head_dim)
        keys.index_copy_(1, self._written, key[0])
        values.index_copy_(1, self._written, value[0])
        mixed, first = [], 0
        for span, slots in zip(self._spans, self._seen, strict=True):
            begin = max(0, span.past + 1 - window) if window else 0  # what not even the first new token sees
            its_keys, its_values = _of(keys, slots, begin), _of(values, slots, begin)  # (kv_heads, seen, head_dim)
            own = query[0, :, first : first + span.new]  # (heads, new, head_dim)
            # A prompt that begins here needs no mask, and torch then leaves out what is not seen.
            causal = span.new > 1 and span.past == 0 and not 0 < window < span.new
            mask = None if causal else self._mask(span, begin, window)
            mixed.append(_attention(own, its_keys, its_values, mask, causal, scale))
            first += span.new
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1))[None]

    def _mask(self, span: Span, begin: int, window: int) -> Tensor | None:
        """(new, seen) True where a new token sees; None where all see everything."""
        if span.new == 1:
            return None
        key = (span.past - begin, span.new, window)
        if key not in self._masks:
            row = torch.arange(span.past - begin, span.past - begin + span.new)[:, None]
            column = torch.arange(span.past - begin + span.new)[None, :]
            seen = column <= row
            self._masks[key] = (seen & (row - column < window) if window else seen).to(self._cache.keys.device)
        return self._masks[key]


def _slots(blocks: Sequence[int], length: int, device: torch.device) -> slice | Tensor:
    """Where the first `length` tokens of a sequence lie: a slice where its blocks lie side by side."""
    used = blocks[: -(-length // BLOCK)]
    first = used[0]
    if all(block == first + number for number, block in enumerate(used)):
        return slice(first * BLOCK, first * BLOCK + length)
    slots = torch.tensor(used)[:, None] * BLOCK + torch.arange(BLOCK)  # (blocks, BLOCK)
    return slots.view(-1)[:length].to(device)


def _of(memory: Tensor, slots: slice | Tensor, begin: int) -> Tensor:
    """The keys or values (kv_heads, seen, head_dim) of a sequence from token `begin` on."""
    if isinstance(slots, slice):
        return memory[:, slots.start + begin : slots.stop]
    return memory.index_select(1, slots[begin:])


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """(heads, new, head_dim), where query is (heads, new, head_dim), and key and value (kv_heads, seen, head_dim)."""
    if query.shape[1] > 1:
        grouped = query.shape[0] != key.shape[0]
        return F.scaled_dot_product_attention(
            query[None], key[None], value[None], mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )[0]
    kv_heads, heads = key.shape[0], query.shape[0]
    grouped_query = query.view(kv_heads, heads // kv_heads, -1)  # (kv_heads, group, head_dim)
    weights = torch.baddbmm(grouped_query.new_empty(1), grouped_query, key.transpose(1, 2), beta=0.0, alpha=scale)
    return torch.bmm(weights.softmax(dim=-1), value).view(heads, 1, -1)
