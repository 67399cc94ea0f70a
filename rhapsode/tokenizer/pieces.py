"""Pieces with scores, as SentencePiece models and GGUF files hold them, and the tokenizer.json that says the same.

Both know two ways from text to pieces. "bpe" starts from single characters and joins the neighbours whose union has
the highest score; "unigram" takes the pieces whose scores add up to the most (Kudo 2018). In both a space is written
as U+2581, and one is put before a text where `add_space_prefix` says so.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from rhapsode.base.errors import DamagedError
from rhapsode.tokenizer.definition import Part, added_token, byte_pairs, definition, sequence, unigram
from rhapsode.tokenizer.encoders import merges_of

SPACE = "\u2581"
LONGEST_PIECE = 256  # characters; published models stay below 64, and the ways to split a piece grow with its length

# Cuts that cut nothing: none, and at spaces where none is left (Gemma's files).
NO_CUTS = (None, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False})


class PieceType(IntEnum):
    """What a piece is for; the numbers are those of SentencePiece's model format and of GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """What a SentencePiece model says of a tokenizer.

    Args:
        method: "bpe" or "unigram".
        texts: the pieces; their places are their ids.
        scores: one for each piece; higher is joined earlier, or more likely.
        types: a `PieceType` for each piece.
        charsmap: SentencePiece's compiled replacements of characters, empty when there are none.
        add_space_prefix: whether a text gets a space before it.
        remove_extra_spaces: whether spaces at both ends go and several become one.
    """

    method: str
    texts: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    charsmap: bytes = b""
    add_space_prefix: bool = True
    remove_extra_spaces: bool = False


def definition_of(pieces: Pieces, where: str) -> Part:
    """The content of the tokenizer.json that cuts text as `pieces` do.

    Args:
        where: where the pieces come from, for messages.

    Raises:
        DamagedError: they are not the pieces of a tokenizer.
    """
    _check(pieces, where)
    end = vocabulary_end(pieces.types)
    unknown = next((id for id, type in enumerate(pieces.types) if type == PieceType.UNKNOWN), None)
    bytewise = PieceType.BYTE in pieces.types
    if pieces.method == "bpe":
        model = byte_pairs(
            {text: id for id, text in enumerate(pieces.texts[:end])},
            merges_by_score(pieces),
            unknown=None if unknown is None else pieces.texts[unknown],
            fuse_unknown=True,
            byte_fallback=bytewise,
        )
    else:
        scores = map(float, pieces.scores[:end])
        vocabulary = list(zip(pieces.texts[:end], scores, strict=True))
        model = unigram(vocabulary, unknown_id=unknown, byte_fallback=bytewise)
    return definition(
        model,
        normalizer=_normalizer(pieces),
        decoder=_decoder(bytewise, pieces.add_space_prefix),
        added_tokens=added_tokens(pieces.texts, pieces.types),
    )


def pieces_of(content: Part) -> Pieces | None:
    """The pieces that a tokenizer.json's content amounts to, None when it is of another make.

    The scores of "bpe" are not in it: its pieces get -1, -2, ... in the order in which they are joined.
    """
    model = content["model"]
    spaces = _spaces_of(content)
    if spaces is None or model["type"] not in ("BPE", "Unigram"):
        return None
    charsmap, add_space_prefix, remove_extra_spaces = spaces
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    if model["type"] == "BPE":
        unknown = model["vocab"].get(model.get("unk_token"))
        names = {id: text for text, id in model["vocab"].items()}
        scores = _scores_by_order(merges_of(model))
    else:
        unknown = model.get("unk_id")
        names = {id: text for id, (text, _) in enumerate(model["vocab"])}
        scores = dict(model["vocab"])
    names |= {id: token["content"] for id, token in added.items()}
    bytewise = bool(model.get("byte_fallback"))

    def type_of(id: int) -> PieceType:
        if id == unknown:
            return PieceType.UNKNOWN
        if id in added:
            return PieceType.CONTROL if added[id].get("special") else PieceType.USER_DEFINED
        if id not in names:
            return PieceType.UNUSED
        return PieceType.BYTE if bytewise and is_byte(names[id]) else PieceType.NORMAL

    count = max(names, default=-1) + 1
    texts = [names.get(id, unused_name(id)) for id in range(count)]
    types = [type_of(id) for id in range(count)]
    # What is never joined comes last among normal pieces; of all others the score means nothing.
    last = -1.0 - len(scores)
    by_place = [
        scores.get(text, last if type == PieceType.NORMAL else 0.0) for text, type in zip(texts, types, strict=True)
    ]
    method = "bpe" if model["type"] == "BPE" else "unigram"
    return Pieces(method, texts, by_place, types, charsmap, add_space_prefix, remove_extra_spaces)


def merges_by_score(pieces: Pieces) -> list[tuple[str, str]]:
    """Each way to split a piece into two others, in the order in which SentencePiece joins them.

    SentencePiece joins the pair whose union has the highest score, the leftmost of equals. Merges need an order of
    their own: the longer left part first. That is the leftmost too, except where two splits of one piece share a part
    longer than the others, as in a | aa | a. Pieces of equal score are beyond it; training gives each its own.
    """
    joined = {
        text: score
        for text, score, type in zip(pieces.texts, pieces.scores, pieces.types, strict=True)
        if type in (PieceType.NORMAL, PieceType.UNUSED)
    }
    ways = [
        (-score, -cut, cut - len(text), text)
        for text, score in joined.items()
        for cut in range(1, len(text))
        if text[:cut] in joined and text[cut:] in joined
    ]
    ways.sort(key=lambda way: way[:3])
    return [(text[:-left], text[-left:]) for _, left, _, text in ways]


def vocabulary_end(types: Sequence[int]) -> int:
    """One more than the last id that belongs to the model itself: added tokens after it stay out of its vocabulary.

    So no text can spell them. Unused ids at the very end, which fill up an embedding, are nobody's.
    """
    added = (PieceType.CONTROL, PieceType.USER_DEFINED)
    used = max((id + 1 for id, type in enumerate(types) if type != PieceType.UNUSED), default=0)
    return max((id + 1 for id, type in enumerate(types[:used]) if type not in added), default=0)


def added_tokens(texts: Sequence[str], types: Sequence[int]) -> list[Part]:
    """The `added_tokens` part of a tokenizer.json: what no text becomes, and what is found before all else."""
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    return [
        added_token(text, id, special=type in special)
        for id, (text, type) in enumerate(zip(texts, types, strict=True))
        if type in special or type == PieceType.USER_DEFINED
    ]


def is_byte(text: str) -> bool:
    """Whether a piece stands for a byte that no other piece covers: <0x00> to <0xFF>."""
    return re.fullmatch("<0x[0-9A-F]{2}>", text) is not None


def unused_name(id: int) -> str:
    """The name that fills a gap in a vocabulary."""
    return f"[PAD{id}]"


def _check(pieces: Pieces, where: str) -> None:
    if not len(pieces.texts) == len(pieces.scores) == len(pieces.types) > 0:
        counts = f"{len(pieces.texts)} pieces, {len(pieces.scores)} scores, {len(pieces.types)} types"
        raise DamagedError(f"is not a vocabulary ({counts})", where=where)
    seen: dict[str, int] = {}
    for id, text in enumerate(pieces.texts):
        if seen.setdefault(text, id) != id:
            raise DamagedError(f"the pieces {seen[text]} and {id} are both {text[:50]!r}", where=where)
    known = frozenset(PieceType)
    for id, (text, score, type) in enumerate(zip(pieces.texts, pieces.scores, pieces.types, strict=True)):
        if not text:
            raise DamagedError(f"piece {id} is empty", where=where)
        if type not in known:
            raise DamagedError(f"piece {id} is of type {type}, which does not exist", where=where)
        if not math.isfinite(score):
            raise DamagedError(f"the score of piece {id} is {score}", where=where)
        if type == PieceType.BYTE and not is_byte(text):
            raise DamagedError(f"piece {id} is to be a byte, and is {text[:50]!r}", where=where)
        if pieces.method == "bpe" and type in (PieceType.NORMAL, PieceType.UNUSED) and len(text) > LONGEST_PIECE:
            raise DamagedError(f"piece {id} is longer than {LONGEST_PIECE} characters", where=where)


def _normalizer(pieces: Pieces) -> Part | None:
    """What happens to a text before it is cut. In the library's expressions \\A and \\z are the ends of a text."""
    steps: list[Part] = []
    if pieces.charsmap:
        encoded = base64.b64encode(pieces.charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if pieces.remove_extra_spaces:
        steps += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    if pieces.add_space_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return sequence("normalizers", [*steps, _replace({"String": " "}, SPACE)])


def _decoder(bytewise: bool, add_space_prefix: bool) -> Part | None:
    """From pieces to text: spaces, bytes, and without the space that was put before it."""
    steps = [_replace({"String": SPACE}, " ")]
    steps += [{"type": "ByteFallback"}] if bytewise else []
    steps.append({"type": "Fuse"})
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_space_prefix else []
    return sequence("decoders", steps)


def _replace(pattern: Part, content: str) -> Part:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _spaces_of(content: Part) -> tuple[bytes, bool, bool] | None:
    """`charsmap`, `add_space_prefix`, `remove_extra_spaces` of a definition; None when it does other things to text."""
    if content.get("pre_tokenizer") not in NO_CUTS:
        return None
    normalizer: Any = content.get("normalizer") or {}
    steps = list(normalizer["normalizers"]) if normalizer.get("type") == "Sequence" else [normalizer]
    charsmap = b""
    if steps and steps[0].get("type") == "Precompiled":
        try:
            charsmap = base64.b64decode(steps.pop(0)["precompiled_charsmap"])
        except binascii.Error:
            return None
    for prefix in (False, True):
        for extra in (False, True):
            asked = _normalizer(Pieces("bpe", [], [], [], b"", prefix, extra))
            assert asked is not None
            if steps == (asked["normalizers"] if asked["type"] == "Sequence" else [asked]):
                return charsmap, prefix, extra
    return None


def _scores_by_order(merges: list[tuple[str, str]]) -> dict[str, float]:
    """-1 for the piece that is joined first, -2 for the next."""
    scores: dict[str, float] = {}
    for left, right in merges:
        scores.setdefault(left + right, -1.0 - len(scores))
    return scores
