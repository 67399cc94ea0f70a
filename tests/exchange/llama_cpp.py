"""How llama.cpp cuts text by the metadata of a GGUF file, written down plainly and slowly, as a second opinion.

Only what its four kinds of tokenizers do to plain text: the joining of byte pairs, of pieces by score, and the longest
match of WordPiece. It takes the metadata, not our tokenizer, so that it sees what llama.cpp will see.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import regex

from rhapsode.tokenizer.pre_tokenizers import PATTERNS, byte_characters

CHARACTERS = byte_characters()
# (expression, whole pieces first) by the name in tokenizer.ggml.pre
CUTS = {
    "gpt-2": (PATTERNS["gpt-2"], False),
    "qwen2": (PATTERNS["qwen2"], False),
    "llama-bpe": (PATTERNS["llama-bpe"], True),
}


def ids(metadata: Mapping[str, Any], text: str) -> list[int]:
    """The ids of a plain text."""
    kind = metadata["tokenizer.ggml.model"]
    cut = {"gpt2": _byte_pairs, "llama": _by_score, "bert": _word_pieces}[kind]
    return cut(metadata, {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}, text)


def _byte_pairs(metadata: Mapping[str, Any], vocabulary: dict[str, int], text: str) -> list[int]:
    expression, whole = CUTS[metadata["tokenizer.ggml.pre"]]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    found = []
    for piece in regex.findall(expression, text):
        written = "".join(CHARACTERS[byte] for byte in piece.encode("utf-8"))
        parts = [written] if whole and written in vocabulary else list(written)
        while len(parts) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), n) for n, pair in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        found += [vocabulary[part] for part in parts]
    return found


def _by_score(metadata: Mapping[str, Any], vocabulary: dict[str, int], text: str) -> list[int]:
    if not text:
        return []
    scores = metadata["tokenizer.ggml.scores"]
    parts = list(((" " if metadata["tokenizer.ggml.add_space_prefix"] else "") + text).replace(" ", "\u2581"))
    while True:
        pairs = [(vocabulary.get(left + right), n) for n, (left, right) in enumerate(pairwise(parts))]
        known = [(-scores[id], n) for id, n in pairs if id is not None]
        if not known:
            break
        place = min(known)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    found = []
    for part in parts:
        found += [vocabulary[part]] if part in vocabulary else [vocabulary[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def _word_pieces(metadata: Mapping[str, Any], vocabulary: dict[str, int], text: str) -> list[int]:
    found = []
    unknown = metadata["tokenizer.ggml.unknown_token_id"]
    for word in _words(text, lowercase=metadata["tokenizer.ggml.normalizer.lowercase"]):
        rest, parts = "\u2581" + word, []
        while rest:
            length = next((length for length in range(len(rest), 0, -1) if rest[:length] in vocabulary), 0)
            if not length:
                parts = [unknown]
                break
            parts.append(vocabulary[rest[:length]])
            rest = rest[length:]
        found += parts
    return found


def _words(text: str, *, lowercase: bool) -> list[str]:
    words = [""]
    for character in unicodedata.normalize("NFD", text) if lowercase else text:
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            words.append("")
        elif character in "\x00\ufffd" or category[0] == "C" or (lowercase and category == "Mn"):
            continue
        elif category[0] == "P" or (character.isascii() and category[0] == "S") or _is_chinese(ord(character)):
            words += [character, ""]
        else:
            words[-1] += character.lower() if lowercase else character
    return [word for word in words if word]


def _is_chinese(code: int) -> bool:
    ranges = (
        (0x4E00, 0x9FFF),
        (0x3400, 0x4DBF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2CEAF),
        (0xF900, 0xFAFF),
        (0x2F800, 0x2FA1F),
    )
    return any(first <= code <= last for first, last in ranges)
