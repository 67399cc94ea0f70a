"""The parts of a tokenizer.json, in the form that the `tokenizers` library reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

Part = dict[str, Any]


def definition(
    model: Part,
    *,
    normalizer: Part | None = None,
    pre_tokenizer: Part | None = None,
    post_processor: Part | None = None,
    decoder: Part | None = None,
    added_tokens: Iterable[Part] = (),
) -> Part:
    """A whole tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def as_text(content: Part) -> str:
    """A tokenizer.json as it is written: the digest of a tokenizer follows from these bytes."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def byte_pairs(
    vocabulary: dict[str, int],
    merges: Sequence[Sequence[str]],
    *,
    unknown: str | None = None,
    fuse_unknown: bool = False,
    byte_fallback: bool = False,
    end_of_word: str | None = None,
) -> Part:
    """The `model` part that joins pairs, in the order of `merges`."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": end_of_word,
        "fuse_unk": fuse_unknown,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def unigram(vocabulary: Sequence[Sequence[Any]], *, unknown_id: int | None, byte_fallback: bool = False) -> Part:
    """The `model` part that finds the likeliest pieces; `vocabulary` gives (piece, log-probability) by id."""
    return {"type": "Unigram", "unk_id": unknown_id, "vocab": vocabulary, "byte_fallback": byte_fallback}


def word_level(vocabulary: dict[str, int], unknown: str) -> Part:
    """The `model` part that looks whole words up."""
    return {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown}


def word_pieces(vocabulary: dict[str, int], unknown: str) -> Part:
    """The `model` part that takes the longest piece from the left, in BERT's way."""
    return {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    }


def added_token(content: str, id: int, *, special: bool = True, **flags: bool) -> Part:
    """One of `added_tokens`. Flags are single_word, lstrip, rstrip, normalized."""
    shown = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags
    return {"id": id, "content": content} | shown | {"special": special}


def sequence(kind: str, parts: Sequence[Part]) -> Part | None:
    """`parts` one after another. Args: kind: the field that lists them, as "normalizers" or "decoders"."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    return {"type": "Sequence", kind: list(parts)}


def frame(front: Sequence[str], back: Sequence[str], ids: dict[str, int], *, typed: bool = False) -> Part | None:
    """The `post_processor` part that puts `front` before a text and `back` after it.

    Of a pair of texts, `back` follows each and `front` stands before the first (before both, where there is no `back`).

    Args:
        ids: the id of each token of the frame.
        typed: the second text of a pair has the token type 1.
    """
    if not (front or back):
        return None

    def token(name: str, type_id: int) -> Part:
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    first = [token(name, 0) for name in front] + [{"Sequence": {"id": "A", "type_id": 0}}]
    first += [token(name, 0) for name in back]
    other = int(typed)
    second = [token(name, other) for name in (() if back else front)] + [{"Sequence": {"id": "B", "type_id": other}}]
    second += [token(name, other) for name in back]
    tokens = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in [*front, *back]}
    return {"type": "TemplateProcessing", "single": first, "pair": first + second, "special_tokens": tokens}
