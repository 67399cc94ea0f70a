"""The keys and values of the tokens a decoder has already read, so that each new token costs one step."""

from __future__ import annotations

import torch
from torch import Tensor

from rhapsode.base.errors import InputError
from rhapsode.model.config import ModelConfig


class KeyValueCache:
    """Keys and values of all of a decoder's layers, in memory taken once.

    Args:
        config: the model's shape.
        batch: sequences side by side.
        capacity: tokens it can hold; at most the model's context length.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if capacity > config.context_length:
            raise InputError(f"a cache of {capacity} tokens exceeds the model's context of {config.context_length}")
        sizes = config.towers[-1]
        shape = (sizes.layers, batch, sizes.kv_heads, capacity, sizes.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.padding: Tensor | None = None  # (batch, length), True where a token is real; None when all are
        self.length = 0
        self.capacity = capacity
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (batch, kv_heads, new, head_dim); return all of that layer's so far."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def has_memory(self, layer: int) -> bool:
        """Whether the layer's keys and values of the other text are here."""
        return layer in self._memory

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values (batch, kv_heads, source, head_dim) of the other text."""
        return self._memory[layer]

    def keep_memory(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values of the other text; returns them."""
        self._memory[layer] = (keys, values)
        return keys, values

    def extend(self, new: int, padding: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """Check that `new` tokens fit and note which of them are real; returns the padding of everything so far."""
        if self.length + new > self.capacity:
            raise InputError(f"{self.length} + {new} tokens exceed the cache's capacity of {self.capacity}")
        if padding is None and self.padding is None:
            return None
        past = self.padding
        if past is None:
            past = torch.ones(batch, self.length, dtype=torch.bool, device=device)
        if padding is None:
            padding = torch.ones(batch, new, dtype=torch.bool, device=device)
        self.padding = torch.cat((past, padding), dim=1)
        return self.padding

    def crop(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        self.length = min(self.length, length)
        if self.padding is not None:
            self.padding = self.padding[:, : self.length]

    def select(self, rows: Tensor, *, memory: bool = True) -> None:
        """Sequence i becomes what sequence rows[i] was, as beams go on from one another; there may be more or fewer.

        Args:
            rows: (new batch,).
            memory: False leaves what is kept of the other texts, where each sequence goes on reading the same one.
        """
        used = slice(0, self.length)
        keys, values = self.keys[:, rows, :, used], self.values[:, rows, :, used]
        if len(rows) != self.keys.shape[1]:
            shape = (self.keys.shape[0], len(rows), *self.keys.shape[2:])
            self.keys, self.values = self.keys.new_empty(shape), self.values.new_empty(shape)
        self.keys[:, :, :, used], self.values[:, :, :, used] = keys, values
        if self.padding is not None:
            self.padding = self.padding[rows]
        if memory:
            self._memory = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._memory.items()}
