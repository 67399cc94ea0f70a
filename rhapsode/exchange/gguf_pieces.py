"""From a tokenizer.json back to the SentencePiece model that it amounts to.

The other way is `rhapsode.tokenizer.formats.sentencepiece`. What is lost in a definition, the scores by which pieces
are joined, is made anew from the order of its merges.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from rhapsode.exchange.gguf_vocabulary import TokenType
from rhapsode.tokenizer.definition import Part
from rhapsode.tokenizer.encoders import merges_of
from rhapsode.tokenizer.formats.sentencepiece import BPE, UNIGRAM, Model, Piece
from rhapsode.tokenizer.normalizer import SPACE
from rhapsode.tokenizer.sentencepiece import NEVER
from rhapsode.tokenizer.tokenizer import Tokenizer

BYTE = re.compile("<0x[0-9A-F]{2}>")  # the name of a byte among SentencePiece's pieces

# Cuts that cut nothing: none, and at spaces where none is left (Gemma's files).
NO_CUTS = (None, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False})


def model_of(tokenizer: Tokenizer, content: Part) -> Model | None:
    """The SentencePiece model that a definition amounts to, None when it is of another make.

    Scores by which pieces are joined are not in a definition: they become -1, -2, ... in the order of its merges.
    """
    part = content["model"]
    own = tokenizer.settings.get("rhapsode")
    rules = own.get("sentencepiece", {}) if isinstance(own, dict) else {}
    spaces = _spaces_of(content, rules)
    if spaces is None or part["type"] not in ("BPE", "Unigram") or "unlisted" in rules:
        return None
    character_map, add_dummy_prefix, remove_extra_whitespaces = spaces
    bytewise = bool(part.get("byte_fallback"))
    if part["type"] == "BPE":
        names = {id: text for text, id in part["vocab"].items()}
        scores = _scores_of(merges_of(part), rules.get("equal", []))
    else:
        names = {id: text for id, (text, _) in enumerate(part["vocab"])}
        scores = {text: score for text, score in part["vocab"] if score > NEVER}
    tokens, types = tokens_of(tokenizer, content, names)
    last = -1.0 - len(scores)  # what is never joined comes last; of what is not normal the score means nothing
    pieces = [
        Piece(
            text,
            scores.get(text, last if type == TokenType.NORMAL else 0.0),
            TokenType.BYTE if bytewise and BYTE.fullmatch(text) else type,
        )
        for text, type in zip(tokens, types, strict=True)
    ]
    return Model(
        pieces,
        type=BPE if part["type"] == "BPE" else UNIGRAM,
        byte_fallback=bytewise,
        character_map=character_map,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=remove_extra_whitespaces,
    )


def _scores_of(merges: list[tuple[str, str]], equal: list[list[str]]) -> dict[str, float]:
    """A score for each piece that merges make: lower ones for those that come later.

    Where the merges of several pieces are mixed, as transformers mixes those of rows of spaces, they share one.

    Args:
        equal: pieces that are known to share one.
    """
    last = {left + right: place for place, (left, right) in enumerate(merges)}
    group = {piece: number for number, pieces in enumerate(equal) for piece in pieces}
    of_group: dict[int, float] = {}
    scores: dict[str, float] = {}
    score, end = 0.0, -1
    for place, piece in enumerate(left + right for left, right in merges):
        if piece not in scores:
            score -= place > end
            end = max(end, last[piece])
            scores[piece] = of_group.setdefault(group[piece], score) if piece in group else score
    return scores


def unions_decide(model: Model, merges: list[tuple[str, str]]) -> bool:
    """Whether text is joined as these merges say when pieces are joined by the scores of their unions alone.

    So it is where every piece that two others make has merges, and those of a piece are not mixed with others'; except
    of rows of one character, for such a row grows from its left end in either way.
    """
    of_score: dict[float, list[str]] = {}
    for piece, score in _scores_of(merges, []).items():
        of_score.setdefault(score, []).append(piece)
    mixed = (pieces for pieces in of_score.values() if len(pieces) > 1 and len(set("".join(pieces))) > 1)
    normal = {piece.text for piece in model.of_type(TokenType.NORMAL)}
    lonely = normal - {left + right for left, right in merges}
    splits = (text for text in lonely for cut in range(1, len(text)) if {text[:cut], text[cut:]} <= normal)
    return next(mixed, None) is None and next(splits, None) is None


def space_steps(prefixed: bool) -> list[Part]:
    """What is done to spaces, as steps of a `normalizer`. Args: prefixed: one comes before the text."""
    prefix: list[Part] = [{"type": "Prepend", "prepend": SPACE}] if prefixed else []
    return [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


def _spaces_of(content: Part, rules: Part) -> tuple[bytes, bool, bool] | None:
    """Character map, space before the text, extra spaces gone: None when a definition does other things to text.

    Args:
        rules: what its settings say of these, when it was made from a SentencePiece model.
    """
    if content.get("pre_tokenizer") not in NO_CUTS:
        return None
    normalizer: Any = content.get("normalizer") or {}
    steps = list(normalizer["normalizers"]) if normalizer.get("type") == "Sequence" else [normalizer]
    character_map = b""
    if steps and steps[0].get("type") == "Precompiled":
        character_map = base64.b64decode(steps.pop(0)["precompiled_charsmap"])
    if rules:
        return character_map, bool(rules["add_dummy_prefix"]), bool(rules["remove_extra_whitespaces"])
    prefixed = steps == space_steps(True)
    return (character_map, prefixed, False) if prefixed or steps == space_steps(False) else None


def tokens_of(tokenizer: Tokenizer, content: Part, vocabulary: dict[int, str]) -> tuple[list[str], list[int]]:
    """Every token by id, and its type. Args: vocabulary: the tokens of the model itself."""
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    names = vocabulary | {id: token["content"] for id, token in added.items()}
    tokens, types = [], []
    for id in range(tokenizer.vocabulary_size):
        tokens.append(names.get(id, unused(id)))
        if id == tokenizer.unknown_id:
            types.append(TokenType.UNKNOWN)
        elif id in added:
            types.append(TokenType.CONTROL if added[id].get("special") else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL if id in names else TokenType.UNUSED)
    return tokens, [int(type) for type in types]


def unused(id: int) -> str:
    """The name that fills a gap in a vocabulary."""
    return f"[PAD{id}]"
