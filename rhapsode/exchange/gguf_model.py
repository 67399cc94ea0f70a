"""Models in GGUF files, in and out: tensors by llama.cpp's names and in its layouts.

    rhapsode generate model.gguf "Once upon a time"
    rhapsode export runs/mytext --format gguf --out mytext.gguf --type q8_0

What is quantised is dequantised when it is read: a model computes in fp32, and takes as much memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.progress import Progress, note
from rhapsode.exchange import gguf_file
from rhapsode.exchange.gguf_architectures import (
    ARCHITECTURES,
    IDENTICAL,
    ROPE_FACTORS,
    Architecture,
    Factors,
    Sources,
    config_from_gguf,
    metadata_for,
)
from rhapsode.exchange.gguf_file import GgufFile, Value, Written, write_gguf
from rhapsode.exchange.gguf_tokenizer import tokenizer_from_gguf, tokenizer_metadata
from rhapsode.exchange.gguf_vocabulary import ROLES, TURN_END_ID
from rhapsode.exchange.opened import Opened
from rhapsode.exchange.rotary import halves, neighbours
from rhapsode.model.config import ModelConfig
from rhapsode.model.model import Model, filled
from rhapsode.model.weights import Shapes
from rhapsode.tokenizer.tokenizer import Tokenizer

END_IDS = (ROLES["eos_token"], TURN_END_ID, "tokenizer.ggml.eom_token_id")
"""Keys with a token that ends a text, a turn, or a message: llama.cpp stops at any of them."""

EXACT = ("FFN_GATE_INP", "POS_EMBD")
"""What llama.cpp's converter leaves in fp32 in every type: the router, and learned positions."""

FUSED = ("query", "key", "value")

_BLOCK = re.compile(r"stack\.blocks\.(\d+)\.(.+)")
_EXPERT = re.compile(r"experts\.(\d+)\.")


@dataclass(frozen=True)
class Held:
    """One tensor of a file, and our parameters in it.

    Args:
        parts: their names; one, or those one below another, or of all experts.
        shapes: of the parts.
        kind: the name of its kind in the `gguf` package.
        stacked: whether each part has a place of its own in the first dimension.
        heads: of rotary positions whose rows are in another order; 0 for none.
        offset: added to what is stored.
    """

    name: str
    parts: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kind: str
    stacked: bool = False
    heads: int = 0
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """In the file, outermost dimension first."""
        first = self.shapes[0]
        return (len(self.parts), *first) if self.stacked else (sum(shape[0] for shape in self.shapes), *first[1:])

    def pack(self, parameters: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
        """The file's numbers. A bias that the model lacks is zero."""
        pieces = [
            parameters[part].detach().cpu() if part in parameters else torch.zeros(shape)
            for part, shape in zip(self.parts, self.shapes, strict=True)
        ]
        tensor = torch.stack(pieces) if self.stacked else torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if self.heads:
            tensor = neighbours(tensor, self.heads)
        numbers: npt.NDArray[np.float32] = (tensor + self.offset if self.offset else tensor).numpy()
        return numbers

    def unpack(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each part's name and values."""
        if self.offset:
            tensor = tensor - self.offset
        if self.heads:
            tensor = halves(tensor, self.heads)
        pieces = tensor.unbind() if self.stacked else torch.split(tensor, [shape[0] for shape in self.shapes])
        yield from zip(self.parts, pieces, strict=True)


def held_tensors(architecture: Architecture, config: ModelConfig, shapes: Shapes) -> list[Held]:
    """The tensors that a file of an architecture holds, in the order of our parameters.

    Args:
        shapes: of the model's parameters; a tied head is not among them.
    """
    if architecture.fused:
        shapes = _with_biases(config, shapes)
    found: dict[str, Held] = {}
    for name, shape in shapes.items():
        held = _held(architecture, config, name, shape)
        before = found.get(held.name)
        if before is not None:
            held = Held(held.name, (*before.parts, name), (*before.shapes, shape), held.kind, held.stacked, held.heads)
        found[held.name] = held
    return list(found.values())


def _with_biases(config: ModelConfig, shapes: Shapes) -> Shapes:
    """The shapes with those of the biases that fused tensors always have, after each weight."""
    added: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        added[name] = shape
        if re.search(r"\.attention\.(query|key|value|output)\.weight$", name):
            added[f"{name.removesuffix('weight')}bias"] = shape[:1]
    return added


def _held(architecture: Architecture, config: ModelConfig, name: str, shape: tuple[int, ...]) -> Held:
    """The tensor that holds one parameter."""
    module, _, leaf = name.rpartition(".")
    heads = {"attention.query": config.heads, "attention.key": config.kv_heads}
    offset = 1.0 if config.norm_unit_offset and module.endswith("norm") else 0.0
    match = _BLOCK.fullmatch(module)
    if match is None:
        kind = IDENTICAL[module]
        return Held(f"{_name(kind)}.{leaf}", (name,), (shape,), kind, offset=offset)
    layer, part = int(match[1]), _EXPERT.sub("experts.", match[2])
    fused = architecture.fused and part.removeprefix("attention.") in FUSED
    kind = "ATTN_QKV" if fused else architecture.blocks[part]
    return Held(
        f"{_name(kind, layer)}.{leaf}",
        (name,),
        (shape,),
        kind,
        stacked="experts." in part,
        heads=heads.get(part, 0) if architecture.neighbours else 0,
        offset=offset,
    )


def _name(kind: str, layer: int | None = None) -> str:
    """What llama.cpp calls a kind of tensor."""
    from gguf.constants import MODEL_TENSOR, TENSOR_NAMES

    return str(TENSOR_NAMES[MODEL_TENSOR[kind]]).format(bid=layer)


# --- in ---


def open_gguf(path: Path, device: torch.device | str = "cpu") -> Opened:
    """The model in a GGUF file, and its tokenizer.

    Raises:
        InputError: it is of an architecture, or has a tokenizer, that is not known here.
        DamagedError: it is cut short, or contradicts itself.
    """
    file = GgufFile(path)
    architecture, config = _shape_of(file)
    tokenizer = tokenizer_from_gguf(file.metadata)
    model = filled(config, lambda shapes: _weights(file, architecture, config, shapes), device)
    ends = {file.metadata.integer(key) for key in END_IDS if key in file.metadata}
    known = sorted(id for id in ends if 0 <= id < tokenizer.vocabulary_size)
    return Opened(model, tokenizer, tuple(known), str(path), (path,), "GGUF")


def _shape_of(file: GgufFile) -> tuple[Architecture, ModelConfig]:
    where = str(file.path)
    name = file.metadata.text("general.architecture")
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise InputError(
            f"holds a model of the architecture {name[:40]!r}, which is not known here",
            where=where,
            todo=f"Known: {', '.join(ARCHITECTURES)}.",
        )
    if not file.tensors:
        raise InputError("holds a tokenizer and no model", where=where)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise DamagedError("has no embedding, 'token_embd.weight'", where=where)
    factors = _factors(file)
    sources = Sources(embedding.shape[0], frozenset(file.tensors), factors)
    config = config_from_gguf(architecture, file.metadata, sources, where)
    if config.layers > len(file.tensors):
        raise DamagedError(f"has {len(file.tensors)} tensors for {config.layers} layers", where=where)
    if config.experts is not None:
        stack = file.tensors.get(f"{_name('FFN_UP_EXP', 0)}.weight")
        if stack is None or stack.shape[0] != config.experts.count:
            raise DamagedError(f"says that it has {config.experts.count} experts, and has not", where=where)
    return architecture, config


def _factors(file: GgufFile) -> Factors | None:
    info = file.tensors.get(ROPE_FACTORS)
    if info is None:
        return None
    if len(info.shape) != 1 or info.shape[0] > 2**16:
        raise DamagedError(f"the tensor {ROPE_FACTORS!r} has the shape {info.shape}", where=str(file.path))
    return file.tensor(ROPE_FACTORS)


def _weights(
    file: GgufFile, architecture: Architecture, config: ModelConfig, shapes: Shapes
) -> Iterator[tuple[str, Tensor]]:
    """Our parameters' names and values. What is stored as F32 in our layout is the file, mapped into memory."""
    where = str(file.path)
    wanted = held_tensors(architecture, config, shapes)
    for held in wanted:
        info = file.tensors.get(held.name)
        if info is None and not held.name.endswith(".bias"):  # which llama.cpp does without, too
            raise DamagedError(f"has no tensor {held.name!r}", where=where)
        if info is not None and info.shape != held.shape:
            raise DamagedError(
                f"the tensor {held.name!r} has the shape {info.shape}; its metadata ask for {held.shape}", where=where
            )
    unused = sorted(file.tensors.keys() - {held.name for held in wanted} - {ROPE_FACTORS})
    if unused:
        shown = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        note(f"{where}: not part of the model, and not used: {shown}.")
    mapped = np.asarray(np.memmap(file.path, dtype=np.uint8, mode="c"))  # what is written to it stays in memory
    for held in wanted:
        info = file.tensors.get(held.name)
        if info is None:
            tensor = torch.zeros(held.shape)
        elif info.type == "F32" and info.offset % 4 == 0:
            numbers = mapped[info.offset : info.offset + info.size].view("<f4")
            tensor = torch.from_numpy(numbers).view(held.shape)
        else:
            tensor = torch.from_numpy(file.tensor(held.name))
        for name, values in held.unpack(tensor):
            if name in shapes:
                yield name, values


# --- out ---


@dataclass(frozen=True)
class Prepared:
    """A model as GGUF will hold it, checked before anything is written.

    Args:
        notices: what llama.cpp will do otherwise, a sentence each.
    """

    architecture: Architecture
    metadata: dict[str, Value]
    factors: Factors | None
    notices: tuple[str, ...]

    @property
    def context_length(self) -> int:
        """Tokens that llama.cpp will read of a text at most."""
        return int(self.metadata[f"{self.architecture.name}.context_length"])


def prepare(config: ModelConfig, tokenizer: Tokenizer, end_ids: tuple[int, ...] = (), name: str = "") -> Prepared:
    """What a GGUF file will say of a model.

    Args:
        end_ids: tokens that end a text besides the tokenizer's end of text.
        name: of the model.

    Raises:
        InputError: llama.cpp computes nothing like the model, or cuts text in no such way; with the nearest.
    """
    architecture, metadata, factors, notices = metadata_for(config)
    values, said = tokenizer_metadata(tokenizer, config.vocabulary_size)
    others = [id for id in dict.fromkeys(end_ids) if id != values.get(ROLES["eos_token"])]
    free = [key for key in END_IDS[1:] if key not in values]
    others = [id for id in others if id not in (values.get(key) for key in END_IDS)]
    if len(others) > len(free):
        said.append(f"llama.cpp will not stop at {', '.join(map(str, others[len(free) :]))}: a file names three tokens")
    values |= dict(zip(free, others, strict=False))
    about: dict[str, Value] = {"general.type": "model"} | ({"general.name": name} if name else {})
    return Prepared(architecture, about | metadata | values, factors, (*notices, *said))


def write_model(path: Path, model: Model, prepared: Prepared, quantization: str) -> Written:
    """Write a GGUF file, with a bar.

    Args:
        quantization: a name in `gguf_file.QUANTIZATIONS`.

    Raises:
        InputError: the file exists, or holds numbers that the quantisation cannot.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if prepared.architecture.own_head:
        parameters["head.weight"] = model.embedding.weight if model.config.tied_embeddings else model.head.weight
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    wanted = held_tensors(prepared.architecture, model.config, shapes)
    total = sum(4 * int(np.prod(held.shape)) for held in wanted)
    with Progress("writing", total, "bytes") as progress:

        def numbers(held: Held) -> npt.NDArray[np.float32]:
            packed = held.pack(parameters)
            progress.advance(packed.nbytes)
            return packed

        tensors = [
            gguf_file.Tensor(held.name, held.shape, partial(numbers, held), held.kind in EXACT) for held in wanted
        ]
        if prepared.factors is not None:
            factors = prepared.factors
            tensors.insert(0, gguf_file.Tensor(ROPE_FACTORS, factors.shape, lambda: factors))
        return write_gguf(path, prepared.architecture.name, prepared.metadata, tensors, quantization)
