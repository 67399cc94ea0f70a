"""spiece.model, tokenizer.model, sentencepiece.bpe.model: SentencePiece, unigram or BPE, with or without bytes.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece): the pieces with their scores and
types, and how text is normalised before it is cut. A tokenizer.json cannot hold all of that; what is missing stands in
the settings, and `rhapsode.tokenizer.sentencepiece` follows both.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.tokenizer.definition import Part, byte_pairs, definition, sequence, unigram
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import files, protobuf
from rhapsode.tokenizer.formats.beside import Beside, Opened, Token
from rhapsode.tokenizer.formats.ranks import merges_from_ranks
from rhapsode.tokenizer.normalizer import SPACE
from rhapsode.tokenizer.sentencepiece import NEVER

FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
LONGEST_PIECE = 1024  # characters; trained ones have 16 at most, given ones rarely more than 50
MOST_NAMELESS = 1024  # ids without a token that are filled up

T5, XLM_ROBERTA = "t5", "xlmroberta"

# Families that number the pieces anew, or change text, in their own code: the file alone does not tell their ids.
OTHER_FAMILIES = (
    *("albert", "barthez", "bartpho", "bertgeneration", "bigbird", "camembert", "cpm", "debertav2", "fnet", "m2m100"),
    *("mbart", "mbart50", "nllb", "pegasus", "plbart", "rembert", "seamlessm4t", "speecht5", "xglm", "xlmprophetnet"),
    *("xlnet", "moshi", "helium", "parakeet", "udop", "siglip"),
)


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary."""

    text: str
    score: float
    type: int = NORMAL


@dataclass
class Model:
    """A SentencePiece model, with the defaults of its format."""

    pieces: list[Piece] = field(default_factory=list)
    type: int = UNIGRAM
    byte_fallback: bool = False
    bos: str = "<s>"
    eos: str = "</s>"
    pad: str = "<pad>"
    character_map: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    def of_type(self, *types: int) -> list[Piece]:
        return [piece for piece in self.pieces if piece.type in types]


def find(folder: Path) -> Path | None:
    """The model in `folder`. (A `tokenizer.model` may turn out to hold ranks of tiktoken, as Llama 3's does.)"""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def recognise(file: Path, data: bytes) -> bool:
    """Whether `data` begin with a piece: field 1, its length, and in it field 1, a text."""
    return len(data) > 3 and data[0] == 0x0A and data[1] < 0x80 and data[2] == 0x0A


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """The tokenizer of a SentencePiece model, with the ids that its family gives to the pieces.

    Raises:
        InputError: a tokenizer.json cannot hold it, or its family has rules of its own.
        DamagedError: it is no such model.
    """
    where = str(file)
    if beside.family in OTHER_FAMILIES or (not beside.family and file.name == "sentencepiece.bpe.model"):
        raise InputError(
            f"the family {shown(beside.family)} does not take the ids from this file as they are"
            if beside.family
            else "under this name families keep models whose ids they change, and no file says which family it is",
            where=where,
            todo="Open its tokenizer.json, or name the tokenizer_class in tokenizer_config.json.",
        )
    return from_model(parse(data, where), beside, where)


def from_model(model: Model, beside: Beside, where: str) -> Opened:
    """The tokenizer.json of a model, and its settings.

    Raises:
        InputError: a tokenizer.json cannot hold the model.
        DamagedError: a special token of the settings does not go with it.
    """
    model.add_dummy_prefix = beside.flag("add_prefix_space", model.add_dummy_prefix)
    pieces = _numbered(model, beside, where)
    vocabulary = {piece.text: id for id, piece in enumerate(pieces)}
    control = {piece.text for piece in pieces if piece.type == CONTROL}
    roles = {"bos_token": model.bos, "eos_token": model.eos, "pad_token": model.pad, "mask_token": "<mask>"}
    roles = {role: name for role, name in roles.items() if name in control}
    unknown = model.of_type(UNKNOWN)[0].text
    known = [
        Token(piece.text, id, special=piece.type != USER_DEFINED)
        for id, piece in enumerate(pieces)
        if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    beside = Beside(
        beside.where,
        beside.settings,
        beside.family,
        {"unk_token": Token(unknown)} | dict(beside.roles),
        [*known, *beside.added],
    )
    names, added = surroundings.complete(beside, vocabulary, roles)
    rules = text_rules(model)
    if model.type == BPE:
        merges, rules["equal"] = _merges(model, where)
        part = byte_pairs(vocabulary, merges, unknown=unknown, fuse_unknown=True, byte_fallback=model.byte_fallback)
    else:
        entries = scored(vocabulary, scores_of(model, added), where)
        part = unigram(entries, unknown_id=vocabulary[unknown], byte_fallback=model.byte_fallback)
    starts = "bos_token" in roles
    ends = not starts or beside.family == XLM_ROBERTA
    around = surroundings.start_and_end(beside, names, vocabulary, start=starts, end=ends)
    content = definition(part, added_tokens=added, post_processor=around, **text_parts(model))
    return surroundings.opened(content, surroundings.settings_of(beside, names, sentencepiece=rules), where)


def text_parts(model: Model) -> dict[str, Part | None]:
    """The normaliser and the decoder of a tokenizer.json, as near as the `tokenizers` library comes to the model."""
    normalizers: list[Part] = []
    if model.character_map:
        packed = base64.b64encode(model.character_map).decode("ascii")
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": packed})
    if model.remove_extra_whitespaces:
        normalizers.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.add_dummy_prefix:
        normalizers.append({"type": "Prepend", "prepend": SPACE})
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})

    decoders: list[Part] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    if model.byte_fallback:
        decoders.append({"type": "ByteFallback"})
    decoders.append({"type": "Fuse"})
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        most = LONGEST_PIECE if model.remove_extra_whitespaces else 1
        decoders.append({"type": "Strip", "content": " ", "start": most, "stop": 0})
    return {"normalizer": sequence("normalizers", normalizers), "decoder": sequence("decoders", decoders)}


def text_rules(model: Model) -> dict[str, Any]:
    """What `rhapsode.tokenizer.sentencepiece` must know and a tokenizer.json does not say plainly."""
    return {
        "add_dummy_prefix": model.add_dummy_prefix,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
    }


def scored(vocabulary: dict[str, int], scores: dict[str, float], where: str) -> list[tuple[str, float]]:
    """The entries of a unigram vocabulary by id; what has no score is never cut from text.

    Raises:
        DamagedError: many ids have no token.
    """
    size = max(vocabulary.values()) + 1
    if size - len(vocabulary) > MOST_NAMELESS:
        raise DamagedError(f"{size - len(vocabulary):,} of {size:,} ids have no token", where=where)
    entries = [(f"<nameless_{id}>", NEVER) for id in range(size)]
    for text, id in vocabulary.items():
        entries[id] = (text, scores.get(text, NEVER))
    return entries


def scores_of(model: Model, added: Sequence[Part]) -> dict[str, float]:
    """The log-probability of each piece that can be cut from text."""
    scores = {piece.text: piece.score for piece in model.of_type(NORMAL)}
    # Pieces that users defined are preferred by these scores (unigram_model.cc); added tokens are treated like them.
    given = [piece.text for piece in model.of_type(USER_DEFINED)]
    given += [token["content"] for token in added if not token["special"]]
    return scores | {text: array("f", [0.1 * (len(text.encode("utf-8")) - 1)])[0] for text in given}


def _numbered(model: Model, beside: Beside, where: str) -> list[Piece]:
    """The pieces by the ids that the family gives them."""
    if beside.family == T5:  # sentinels of span corruption follow the pieces, the first of them last
        count = beside.settings.get("extra_ids", 100)
        if not isinstance(count, int) or not 0 <= count <= 10_000:
            raise InputError("extra_ids must be a number from 0 to 10,000", where=beside.where)
        return model.pieces + [Piece(f"<extra_id_{id}>", 0.0, CONTROL) for id in reversed(range(count))]
    if beside.family == XLM_ROBERTA:  # as fairseq numbers them: four of its own first, the mask last
        if [piece.text for piece in model.pieces[:3]] != ["<unk>", "<s>", "</s>"]:
            raise DamagedError("does not begin with <unk>, <s>, </s>, as models of this family do", where=where)
        unknown, start, end = model.pieces[:3]
        return [start, Piece("<pad>", 0.0, CONTROL), end, unknown, *model.pieces[3:], Piece("<mask>", 0.0, CONTROL)]
    return model.pieces


def _merges(model: Model, where: str) -> tuple[list[tuple[str, str]], list[list[str]]]:
    """The pairs that the pieces are joined from, in the order of their scores, and the pieces that share a score.

    Raises:
        InputError: the model cannot be followed.
    """
    if model.of_type(UNUSED):
        raise InputError("has pieces marked as unused, which cannot be opened in a BPE model", where=where)
    known = {piece.text for piece in model.of_type(NORMAL, USER_DEFINED)}
    of_score: dict[float, list[str]] = {}
    for piece in model.of_type(NORMAL):
        if len(piece.text) > 1:
            of_score.setdefault(piece.score, []).append(piece.text)
            if not known.issuperset(piece.text):
                raise InputError(f"the piece {shown(piece.text)} has a character that is no piece", where=where)
    groups = [of_score[score] for score in sorted(of_score, reverse=True)]
    return merges_from_ranks(groups, known, where), [group for group in groups if len(group) > 1]


def parse(data: bytes, where: str) -> Model:
    """A model from the bytes of its file.

    Raises:
        InputError: it is of a kind that cannot be opened.
        DamagedError: it is no SentencePiece model.
    """
    model = Model()
    for number, value in protobuf.fields(memoryview(data), where):
        if number == 1:
            model.pieces.append(_piece(protobuf.block(value, where), where))
            if len(model.pieces) > files.LARGEST_VOCABULARY:
                raise DamagedError(f"has more than {files.LARGEST_VOCABULARY:,} pieces", where=where)
        elif number == 2:
            _read_trainer(model, protobuf.block(value, where), where)
        elif number == 3:
            _read_normalizer(model, protobuf.block(value, where), where)
        elif number == 5:
            _refuse_denormalizer(protobuf.block(value, where), where)
    _require_sound(model, where)
    return model


def _piece(data: memoryview, where: str) -> Piece:
    text, score, type = "", 0.0, NORMAL
    for number, value in protobuf.fields(data, where):
        if number == 1:
            text = protobuf.string(value, where)
        elif number == 2:
            score = protobuf.single(value, where)
        elif number == 3:
            type = protobuf.integer(value, where)
    if not text or len(text) > LONGEST_PIECE:
        raise DamagedError(f"a piece has {len(text):,} characters", where=where)
    if not math.isfinite(score) or score <= NEVER:
        raise DamagedError(f"the piece {shown(text)} has the score {score}", where=where)
    if not NORMAL <= type <= BYTE:
        raise DamagedError(f"the piece {shown(text)} is of the unknown type {type}", where=where)
    return Piece(text, score, type)


def _read_trainer(model: Model, data: memoryview, where: str) -> None:
    """TrainerSpec: the kind of model and the names of its control pieces."""
    for number, value in protobuf.fields(data, where):
        if number == 3:
            model.type = protobuf.integer(value, where)
        elif number == 24 and protobuf.integer(value, where):
            raise InputError("puts white space behind words, which cannot be opened", where=where)
        elif number == 35:
            model.byte_fallback = bool(protobuf.integer(value, where))
        elif number == 46:
            model.bos = protobuf.string(value, where)
        elif number == 47:
            model.eos = protobuf.string(value, where)
        elif number == 48:
            model.pad = protobuf.string(value, where)


def _read_normalizer(model: Model, data: memoryview, where: str) -> None:
    """NormalizerSpec: what is done to the characters and white space of a text."""
    for number, value in protobuf.fields(data, where):
        if number == 2:
            model.character_map = bytes(protobuf.block(value, where))
        elif number == 3:
            model.add_dummy_prefix = bool(protobuf.integer(value, where))
        elif number == 4:
            model.remove_extra_whitespaces = bool(protobuf.integer(value, where))
        elif number == 5 and not protobuf.integer(value, where):
            raise InputError("keeps spaces as they are (escape_whitespaces), which cannot be opened", where=where)


def _refuse_denormalizer(data: memoryview, where: str) -> None:
    """NormalizerSpec of what is done to decoded text."""
    for number, value in protobuf.fields(data, where):
        if number == 2 and len(protobuf.block(value, where)):
            raise InputError("changes decoded text by a map of its own, which cannot be opened", where=where)


def _require_sound(model: Model, where: str) -> None:
    """What SentencePiece itself demands of a model."""
    if model.type not in (UNIGRAM, BPE):
        raise InputError("is neither a unigram nor a BPE model", where=where)
    seen: set[str] = set()
    for piece in model.pieces:
        if piece.text in seen:
            raise DamagedError(f"the piece {shown(piece.text)} stands in it twice", where=where)
        seen.add(piece.text)
    if len(model.of_type(UNKNOWN)) != 1:
        raise DamagedError(f"has {len(model.of_type(UNKNOWN))} pieces for the unknown, not one", where=where)
    if not model.of_type(NORMAL):
        raise DamagedError("has no pieces that a text could be cut into", where=where)
    found = {piece.text for piece in model.of_type(BYTE)}
    needed = {f"<0x{byte:02X}>" for byte in range(256)} if model.byte_fallback else set()
    if found != needed:
        raise DamagedError("its pieces for bytes are not the 256 there must be, or none", where=where)
