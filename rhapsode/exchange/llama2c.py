"""Checkpoints of llama2.c (github.com/karpathy/llama2.c), in: numbers in a fixed order behind a header of sizes.

    rhapsode generate stories260K.bin "Once upon a time"

The tokenizer is a file of its own, pieces with scores; it is found beside the checkpoint. There are two formats of
float32: the first has a header of seven numbers, the vocabulary's negative where the head is not the embedding;
version 1 begins with a magic number. Version 2 is quantised and is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rhapsode.base.errors import DamagedError, InputError, MismatchError, shown
from rhapsode.model.config import LARGEST_SIZE, MOST_LAYERS, ModelConfig
from rhapsode.model.families.llama import LLAMA
from rhapsode.tokenizer.formats import files, sentencepiece
from rhapsode.tokenizer.formats.beside import Beside, Token
from rhapsode.tokenizer.formats.sentencepiece import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, Model, Piece
from rhapsode.tokenizer.normalizer import SPACE
from rhapsode.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # a file is recognised without torch
    import torch
    from torch import Tensor

    from rhapsode.exchange.opened import Opened
    from rhapsode.model.weights import Shapes

MAGIC = b"24ka"  # "ak42", as a little-endian number
FIRST_HEADER, VERSION_1_HEADER = 28, 256  # bytes
NORM_EPSILON = 1e-5  # not in the file: run.c has it as a constant

CONTROL_TOKENS = ("<unk>", "<s>", "</s>")  # the first three; files write the last two between line ends
START = 1  # begins a text; run.c also ends one at it


@dataclass(frozen=True)
class Header:
    """The sizes that a checkpoint begins with."""

    version: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary_size: int
    context_length: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def parts(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What follows, in its order: a name, and a shape, that of all layers together where there is one of each."""
        hidden, keys = self.hidden_size, self.kv_heads * self.head_dim
        embedding = ("embedding", (self.vocabulary_size, hidden))
        attention = [
            ("attention.query", (self.layers, hidden, hidden)),
            ("attention.key", (self.layers, keys, hidden)),
            ("attention.value", (self.layers, keys, hidden)),
            ("attention.output", (self.layers, hidden, hidden)),
        ]
        feed_forward = [
            ("feed_forward.gate", (self.layers, self.intermediate_size, hidden)),
            ("feed_forward.down", (self.layers, hidden, self.intermediate_size)),
            ("feed_forward.up", (self.layers, self.intermediate_size, hidden)),
        ]
        attention_norm, feed_forward_norm = (
            (f"{part}_norm", (self.layers, hidden)) for part in ("attention", "feed_forward")
        )
        final_norm = ("final_norm", (hidden,))
        if self.version == 1:
            yield from (attention_norm, feed_forward_norm, final_norm, embedding, *attention, *feed_forward)
        else:
            yield from (embedding, attention_norm, *attention, feed_forward_norm, *feed_forward, final_norm)
            yield "angles", (2, self.context_length, self.head_dim // 2)  # cosines and sines, computed anew here
        if not self.tied:
            yield "head", (self.vocabulary_size, hidden)

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        header = VERSION_1_HEADER if self.version == 1 else FIRST_HEADER
        return header + 4 * sum(prod(shape) for _, shape in self.parts())

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return LLAMA.config(
            self.vocabulary_size,
            self.hidden_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.intermediate_size,
            self.context_length,
            norm_epsilon=NORM_EPSILON,
            tied_embeddings=self.tied,
        )


def recognise(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` is such a checkpoint, sound or not.

    The first format has no magic number: sizes that make sense, and no more of them than fit into the file, are it.
    """
    if head[:4] == MAGIC:
        return True
    header = _first_header(head)
    return header is not None and _sound(header) and header.size // 2 <= max(size, FIRST_HEADER) <= 2 * header.size


def open_checkpoint(path: Path, device: torch.device | str = "cpu", tokenizer: Path | None = None) -> Opened:
    """The model in a checkpoint, and its tokenizer.

    Args:
        tokenizer: its file; the only one beside the checkpoint that has as many tokens, unless given.

    Raises:
        InputError: no tokenizer, several, or a version that is quantised.
        DamagedError: the file does not have the size that its header says.
        MismatchError: the tokenizer has not as many tokens as the model.
    """
    from rhapsode.exchange.opened import Opened
    from rhapsode.model.model import filled

    header = read_header(path)
    found = _tokenizer_of(path, header.vocabulary_size, tokenizer)
    model = filled(header.config, lambda shapes: _weights(path, header, shapes), device)
    return Opened(model, found, (START,), str(path), (path, Path(found.where)), "llama2.c")


def read_header(path: Path) -> Header:
    """The sizes of a checkpoint, which the file's size bears out.

    Raises:
        InputError: it is of a version that is not read.
        DamagedError: it is no checkpoint, or cut short.
    """
    where, size = str(path), path.stat().st_size
    with path.open("rb") as file:
        head = file.read(VERSION_1_HEADER)
    header = _version_header(head, where) if head[:4] == MAGIC else _first_header(head)
    if header is None:
        raise DamagedError("is cut short within its header", where=where)
    if not _sound(header):
        raise DamagedError(f"has a header with sizes that no model has: {header}", where=where)
    if size != header.size:
        raise DamagedError(f"has {size:,} bytes; its header asks for {header.size:,}", where=where)
    return header


def _first_header(head: bytes) -> Header | None:
    if len(head) < FIRST_HEADER:
        return None
    hidden, inside, layers, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", head)
    return Header(0, hidden, inside, layers, heads, kv_heads, abs(vocabulary), context, vocabulary > 0)


def _version_header(head: bytes, where: str) -> Header | None:
    if len(head) < VERSION_1_HEADER:
        return None
    version, hidden, inside, layers, heads, kv_heads, vocabulary, context, shared = struct.unpack_from("<8iB", head, 4)
    if version != 1:
        raise InputError(
            f"is of version {version} of llama2.c's format, which is not read",
            where=where,
            todo="Export it with --version 0 or 1, which keep all of its numbers.",
        )
    return Header(1, hidden, inside, layers, heads, kv_heads, vocabulary, context, shared != 0)


def _sound(header: Header) -> bool:
    sizes = (header.hidden_size, header.intermediate_size, header.heads, header.vocabulary_size, header.context_length)
    return (
        all(1 <= size <= LARGEST_SIZE for size in sizes)
        and 1 <= header.layers <= MOST_LAYERS
        and 1 <= header.kv_heads <= header.heads
        and header.heads % header.kv_heads == 0
        and header.hidden_size % (2 * header.heads) == 0
    )


def _weights(path: Path, header: Header, shapes: Shapes) -> Iterator[tuple[str, Tensor]]:
    """Our parameters' names and values. All but queries and keys are the file itself, mapped into memory."""
    import torch

    from rhapsode.exchange.rotary import halves

    start = VERSION_1_HEADER if header.version == 1 else FIRST_HEADER
    numbers = torch.from_numpy(np.asarray(np.memmap(path, dtype="<f4", mode="c", offset=start)))
    parts: dict[str, Tensor] = {}
    place = 0
    for name, shape in header.parts():
        parts[name] = numbers[place : place + prod(shape)].view(shape)
        place += prod(shape)
    for name in shapes:
        if name in ("embedding.weight", "head.weight"):
            yield name, parts[name.partition(".")[0]]
        elif name == "stack.final_norm.weight":
            yield name, parts["final_norm"]
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            rows = parts[part][int(layer)]
            if part in ("attention.query", "attention.key"):
                rows = halves(rows, header.heads if part == "attention.query" else header.kv_heads)
            yield name, rows


def _tokenizer_of(checkpoint: Path, tokens: int, given: Path | None) -> Tokenizer:
    if given is not None:
        found = read_tokenizer(given) if given.is_file() and _is_tokenizer(given, None) else Tokenizer.load(given)
        if found.vocabulary_size != tokens:
            raise MismatchError(
                f"has {found.vocabulary_size} tokens, the model {tokens}",
                where=str(given),
                todo="Name the tokenizer that the model was trained with.",
            )
        return found
    beside = sorted(path for path in checkpoint.parent.glob("tok*.bin") if path.is_file() and path != checkpoint)
    fitting = [path for path in beside if _is_tokenizer(path, tokens)]
    if len(fitting) != 1:
        shown = ", ".join(path.name for path in fitting)
        raise InputError(
            f"beside it are several tokenizers of {tokens} tokens: {shown}"
            if fitting
            else f"beside it is no tokenizer of {tokens} tokens (tok*.bin)",
            where=str(checkpoint),
            todo="Name it: rhapsode import CHECKPOINT --tokenizer FILE --out FOLDER.",
        )
    return read_tokenizer(fitting[0])


def _is_tokenizer(path: Path, tokens: int | None) -> bool:
    """Whether a file is a tokenizer of llama2.c, of so many tokens where they are given."""
    try:
        found = _pieces(files.read_bytes(path), str(path))
    except InputError:
        return False
    return tokens is None or len(found) == tokens


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file of llama2.c: SentencePiece's way of joining pieces by score, with bytes.

    Raises:
        DamagedError: it is none.
    """
    where = str(path)
    pieces = []
    for id, (text, score) in enumerate(_pieces(files.read_bytes(path), where)):
        if id < len(CONTROL_TOKENS):
            if text.strip() != CONTROL_TOKENS[id]:
                raise DamagedError(f"token {id} is {shown(text)}, not {CONTROL_TOKENS[id]}", where=where)
            pieces.append(Piece(CONTROL_TOKENS[id], 0.0, CONTROL if id else UNKNOWN))
        elif id < len(CONTROL_TOKENS) + 256:
            name = f"<0x{id - len(CONTROL_TOKENS):02X}>"
            if text != name:
                raise DamagedError(f"token {id} is {shown(text)}, not {name}", where=where)
            pieces.append(Piece(name, 0.0, BYTE))
        else:
            pieces.append(Piece(text.replace(" ", SPACE), score, NORMAL))
    if len(pieces) < len(CONTROL_TOKENS) + 256:
        raise DamagedError(f"has {len(pieces)} tokens, fewer than its control tokens and bytes", where=where)
    if len({piece.text for piece in pieces}) != len(pieces):
        raise DamagedError("has a token twice", where=where)
    model = Model(pieces, type=BPE, byte_fallback=True, remove_extra_whitespaces=False)
    settings = {"add_bos_token": True, "add_eos_token": False}
    unknown, start, end = CONTROL_TOKENS
    roles = {"unk_token": Token(unknown, 0), "bos_token": Token(start, 1), "eos_token": Token(end, 2)}
    opened = sentencepiece.from_model(model, Beside(where, settings, "", roles), where)
    return Tokenizer(opened.definition, settings=opened.settings | settings, where=where)


def _pieces(data: bytes, where: str) -> list[tuple[str, float]]:
    """Text and score of each token: a float32, a length, and so many bytes of text, to the end of the file."""
    if len(data) < 4:
        raise DamagedError("is cut short", where=where)
    (longest,) = struct.unpack_from("<i", data)
    pieces: list[tuple[str, float]] = []
    place = 4
    while place < len(data):
        if place + 8 > len(data):
            raise DamagedError(f"is cut short within token {len(pieces)}", where=where)
        score, length = struct.unpack_from("<fi", data, place)
        place += 8
        if not 1 <= length <= min(longest, sentencepiece.LONGEST_PIECE) or place + length > len(data):
            raise DamagedError(f"token {len(pieces)} would have {length} bytes", where=where)
        if not isfinite(score):
            raise DamagedError(f"token {len(pieces)} has the score {score}", where=where)
        pieces.append((files.as_text(data[place : place + length], where), score))
        place += length
    return pieces
