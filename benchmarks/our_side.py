"""Our side of the decoding benchmarks: the engine's steps, with a model folder's weights in 32, 8 or 4 bits.

    side = Ours(Path("runs/mytext/model"), bits=8, blocks=64, threads=2); room = side.rooms(texts=8, tokens=256)["step"]
    room.read(0, ids); room.write([5, 6, 7, 8, 9, 10, 11, 12], past=len(ids)); room.logits()

What `rooms` gives is a `Room` of sides.py. Here is also what gives both sides the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rhapsode.base.files import new_folder
from rhapsode.base.machine import prepare
from rhapsode.exchange import gguf_model
from rhapsode.exchange.opened import Opened
from rhapsode.inference.speed import weight_bytes
from rhapsode.inference.step import Reading, Step, TorchStep
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.decoder import Decoder
from rhapsode.model.folder import load_config, load_model, save_model


def step_for(folder: Path, bits: int, blocks: int) -> tuple[Step, int]:
    """What computes steps with a model folder's weights in so many bits, and how many bytes of weights each step reads.

    Args:
        bits: 32, 8 or 4.
        blocks: of the cache.
    """
    model = load_model(folder)
    assert isinstance(model, Decoder), "only decoders write"
    size = weight_bytes(model)
    if bits < 32:
        size = _round(model, bits)
    return TorchStep(model, blocks), size


@torch.no_grad()
def _round(model: Decoder, bits: int) -> int:
    """Round a model's matrices to 8 or 4 bits in blocks of 32, as the kernels hold them; the bytes they will read."""
    from gguf import GGMLQuantizationType, quants

    kind = {8: GGMLQuantizationType.Q8_0, 4: GGMLQuantizationType.Q4_1}[bits]
    size = 0
    for name, parameter in model.named_parameters():
        numbers, read = parameter.numpy(), parameter.numel() * parameter.element_size()
        if parameter.dim() == 2 and parameter.shape[1] % 32 == 0:
            packed = quants.quantize(numbers, kind)
            parameter.data = torch.from_numpy(quants.dequantize(packed, kind))
            read = packed.nbytes
        if name != "embedding.weight" or model.config.tied_embeddings:
            size += read
    return size


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
    """A model folder's weights in 32, 8 or 4 bits, and a cache of so many blocks."""

    number_bytes = 4

    def __init__(self, folder: Path, bits: int, blocks: int, threads: int) -> None:
        prepare("cpu", threads)
        self._step, self.weight_bytes = step_for(folder, bits, blocks)
        self.vocabulary_size = load_config(folder).vocabulary_size
        self._taken = 0

    def rooms(self, texts: int, tokens: int) -> dict[str, OurRoom]:
        each = -(-tokens // BLOCK)
        homes = [range(first, first + each) for first in range(self._taken, self._taken + texts * each, each)]
        self._taken += texts * each
        return {"step": OurRoom(self._step, homes)}


def write_folder(folder: Path, opened: Opened) -> None:
    """A model as a folder, wholly or not at all."""
    with new_folder(folder) as temporary:
        save_model(temporary, opened.model, opened.tokenizer, {})


def exported(opened: Opened, folder: Path, quantization: str) -> Path:
    """A model as a GGUF file in a folder, by our own export, unless it is there."""
    path = folder / f"{quantization}.gguf"
    if not path.exists():
        prepared = gguf_model.prepare(opened.model.config, opened.tokenizer, opened.end_ids)
        gguf_model.write_model(path, opened.model, prepared, quantization)
    return path
