"""Our side of the decoding benchmarks: the engine's steps, with a folder's weights in 32, 8 or 4 bits.

    side = Ours(Path("runs/mytext/model"), blocks=64, threads=2); room = side.rooms(texts=8, tokens=256)["step"]
    room.read(0, ids); room.write([5, 6, 7, 8, 9, 10, 11, 12], past=len(ids)); room.logits()

What `rooms` gives is a `Room` of sides.py. Here is also what gives both sides the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rhapsode.base.files import new_folder
from rhapsode.base.machine import prepare
from rhapsode.base.machine import threads as cores
from rhapsode.exchange import gguf_model
from rhapsode.exchange.opened import Opened
from rhapsode.inference.cache_type import NUMBER_BYTES, CacheType
from rhapsode.inference.kernels.step import KernelStep
from rhapsode.inference.speed import weight_bytes
from rhapsode.inference.step import Reading, Step
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.decoder import Decoder
from rhapsode.model.folder import load_model, read_config, save_model
from rhapsode.model.packed import PackedModel, pack_model
from rhapsode.model.packed_folder import is_packed, load_packed, save_packed


def step_for(
    folder: Path, blocks: int, *, cache_type: CacheType = "float32", threads: int | None = None
) -> tuple[Step, int]:
    """What computes steps with a folder's weights, in fp32 or packed, and how many bytes of weights each step reads.

    Args:
        blocks: of the cache.
        cache_type: what keys and values are kept in.
        threads: None for as many as are best.
    """
    source: Decoder | PackedModel
    if is_packed(folder):
        source = load_packed(folder)
        size = source.nbytes
        if not source.config.tied_embeddings:
            size -= source.matrices["embedding.weight"].nbytes
    else:
        model = load_model(folder)
        assert isinstance(model, Decoder), "only decoders write"
        source, size = model, weight_bytes(model)
    return KernelStep(source, blocks, cache_type=cache_type, threads=threads), size


class OurRoom:
    """The blocks of some texts in the cache of a step."""

    def __init__(self, step: Step, homes: Sequence[Sequence[int]]) -> None:
        self._step, self._homes = step, homes
        self._logits: list[npt.NDArray[np.float32]] = []

    def read(self, text: int, ids: Sequence[int], wanted: int = 1) -> None:
        self._logits = self._step([Reading(ids, self._homes[text], 0, wanted)])

    def write(self, ids: Sequence[int], past: int) -> None:
        self._logits = self._step([Reading([id], home, past, 1) for id, home in zip(ids, self._homes, strict=True)])

    def logits(self) -> npt.NDArray[np.float32]:
        return np.concatenate(self._logits)


class Ours:
    """A model folder's weights, in fp32 or packed, and a cache of so many blocks.

    Args:
        threads: at most; of a model that is done sooner by one thread, the step takes one.
    """

    def __init__(self, folder: Path, blocks: int, threads: int, cache_type: CacheType = "float32") -> None:
        prepare("cpu", threads)
        own = None if threads == cores() else threads
        self._step, self.weight_bytes = step_for(folder, blocks, cache_type=cache_type, threads=own)
        config, _ = read_config(folder)
        self.vocabulary_size = config.vocabulary_size
        self.number_bytes = NUMBER_BYTES[cache_type] + (4 / config.head_dim if cache_type == "int8" else 0)
        self._taken = 0

    def rooms(self, texts: int, tokens: int) -> dict[str, OurRoom]:
        each = -(-tokens // BLOCK)
        homes = [range(first, first + each) for first in range(self._taken, self._taken + texts * each, each)]
        self._taken += texts * each
        return {"step": OurRoom(self._step, homes)}


def in_bits(opened: Opened, folder: Path, bits: int) -> Path:
    """A model's folder inside a folder, its weights in 32, 8 or 4 bits, written unless it is there."""
    path = folder / f"{bits}-bits"
    if path.exists():
        return path
    assert isinstance(opened.model, Decoder), "only decoders write"
    with new_folder(path) as temporary:
        if bits == 32:
            save_model(temporary, opened.model, opened.tokenizer, {})
        else:
            save_packed(temporary, pack_model(opened.model, bits), opened.tokenizer, {})
    return path


def exported(opened: Opened, folder: Path, quantization: str) -> Path:
    """A model as a GGUF file in a folder, by our own export, unless it is there."""
    path = folder / f"{quantization}.gguf"
    if not path.exists():
        prepared = gguf_model.prepare(opened.model.config, opened.tokenizer, opened.end_ids)
        gguf_model.write_model(path, opened.model, prepared, quantization)
    return path
