"""What computes one step: new tokens of several texts in, logits out. Everything that generates goes through here.

step = TorchStep(model, blocks=100); (logits,) = step([Reading(ids, blocks=[0, 1], past=0, wanted=1)])

Whoever computes steps holds the cache's memory, in whatever form suits it; the engine says which blocks are whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from rhapsode.base.machine import memory_bytes
from rhapsode.model.block_cache import BLOCK, BlockCache, BlockReading, Span
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder

CONTEXTS = 32
"""Texts of the greatest length that a cache holds, where memory allows."""


@dataclass(frozen=True)
class Reading:
    """What one text contributes to a step."""

    ids: Sequence[int]
    """New tokens, at least one."""
    blocks: Sequence[int]
    """The text's blocks, as `Span.blocks`: those before the new tokens are filled, the new ones' are to be."""
    past: int
    """Tokens that were read before."""
    wanted: int
    """Of so many of the last new tokens the logits are wanted."""


class Step(Protocol):
    """Computes steps."""

    blocks: int
    """Blocks of the cache that it holds."""

    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        """For each reading the logits (wanted, vocabulary), fp32, of the tokens after those wanted.

        What is computed for a text does not depend on the texts beside it, beyond the rounding of fp32 sums.
        """
        ...

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Put the keys and values of each of some blocks into another one, before the next step.

        So a text goes on in two ways: what fills blocks is shared, the last, partly filled one is copied. As many
        targets as sources, each different; a source may come twice, and none is a target.
        """
        ...


class TorchStep:
    """Steps by torch, on any device and for every decoder family; the reference for any faster way.

    Args:
        blocks: of the cache.
    """

    def __init__(self, model: Decoder, blocks: int) -> None:
        weight = model.embedding.weight
        self.blocks = blocks
        self._model = model
        self._cache = BlockCache(model.config, blocks, weight.device, weight.dtype)

    @torch.no_grad()
    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        model, device = self._model, self._model.device
        spans = [Span(reading.blocks, reading.past, len(reading.ids)) for reading in readings]
        ids = torch.tensor([id for reading in readings for id in reading.ids], device=device)  # (tokens,)
        reading_of_all = BlockReading(self._cache, spans, model.config.context_length)
        hidden = model.hidden(ids[None], cache=reading_of_all)[0]  # (tokens, hidden)
        wanted: list[int] = []
        end = 0
        for reading in readings:
            end += len(reading.ids)
            wanted += range(end - reading.wanted, end)
        if len(wanted) < len(ids):
            hidden = hidden[torch.tensor(wanted, dtype=torch.long, device=device)]
        logits = model.head(hidden).float().cpu().numpy()  # (all wanted, vocabulary)
        return np.split(logits, np.cumsum([reading.wanted for reading in readings])[:-1])

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._cache.copy(sources, targets)


def block_bytes(config: ModelConfig, number_bytes: int = 4) -> int:
    """What one block of a model's cache takes, which keeps numbers of so many bytes."""
    sizes = config.towers[-1]
    return 2 * sizes.layers * sizes.kv_heads * BLOCK * sizes.head_dim * number_bytes


def room_for_blocks(
    config: ModelConfig, device: torch.device, most: int | None = None, *, number_bytes: int = 4
) -> int:
    """Blocks for `CONTEXTS` texts, in at most a quarter of the memory that is free; but at least for one text.

    Args:
        device: where the cache is.
        most: bytes, instead of a quarter of what is free.
        number_bytes: as `block_bytes`.
    """
    if most is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()
        most = free // 4
    of_one = -(-config.context_length // BLOCK)
    return max(of_one, min(CONTEXTS * of_one, most // block_bytes(config, number_bytes)))
