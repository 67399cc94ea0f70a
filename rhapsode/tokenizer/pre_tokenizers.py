"""How a text is cut into pieces before they become tokens, by the names llama.cpp knows the cuts by.

A pre-tokeniser is a regular expression; each of its matches is encoded alone. `rhapsode tokenizer train` records the
name in tokenizer_config.json, so that an export to GGUF can say how the text is to be cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

# The expressions of GPT-2, Llama 3 and Qwen2 as their publishers wrote them. Tokens follow from them: change nothing.
PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

# A word, a sign or one white space; the space before a word or sign belongs to it. Every character is in one match.
WORD_PATTERN = r" ?\w+| ?[^\w\s]|\s"

PART = 2**16  # characters of a part: small enough to share among threads, large enough to be worth it
LONG_RUN = 2**14  # characters; tiktoken's stack overflows between 64 thousand and a million white spaces

# Byte-level tokens are written with one printable character per byte, by GPT-2's table.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def split_settings(pattern: str) -> dict[str, Any]:
    """The `pre_tokenizer` part of a tokenizer.json that cuts by `pattern`."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def pre_tokenizer_settings(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` part of a byte-level tokenizer.json for a name in `PATTERNS`."""
    if name == "gpt-2":
        return BYTE_LEVEL | {"use_regex": True}
    return {"type": "Sequence", "pretokenizers": [split_settings(PATTERNS[name]), BYTE_LEVEL]}


def cut_alike(settings: Any, others: Any) -> bool:
    """Whether two `pre_tokenizer` parts of a tokenizer.json give the same pieces."""
    return bool(_what_matters(settings) == _what_matters(others))


def pre_tokenizer_name(settings: Any) -> str | None:
    """The name under which llama.cpp knows this `pre_tokenizer` part of a tokenizer.json, if it does."""
    asked = _what_matters(settings)
    return next((name for name in PATTERNS if _what_matters(pre_tokenizer_settings(name)) == asked), None)


def cuts_into_bytes(settings: Any) -> bool:
    """Whether this `pre_tokenizer` part of a tokenizer.json gives the bytes of the text and nothing else."""
    return _what_matters(settings) == _what_matters(BYTE_LEVEL) or pre_tokenizer_name(settings) is not None


def pattern_that_fits(texts: Iterable[str]) -> str | None:
    """The name in `PATTERNS` of the one that leaves `texts` whole, tokens of one vocabulary; None when none does.

    A vocabulary has no token across a cut of the pattern that it was made with (but one in five thousand may be an
    oddity: Whisper's has five). Of several that would do, it is the one that cuts numbers shortest, for its tokens
    would show it if numbers had been left longer: qwen2, llama-bpe, gpt-2.
    """
    from tokenizers import Regex, pre_tokenizers

    tokens = list(texts)
    for name in ("qwen2", "llama-bpe", "gpt-2"):
        cut = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated").pre_tokenize_str
        left = len(tokens) // 5000
        for token in tokens:
            left -= len(cut(token)) > 1
            if left < 0:
                break
        else:
            return name
    return None


def _what_matters(settings: Any) -> Any:
    """`settings` without what changes no token; files older than `use_regex` mean true."""
    if isinstance(settings, dict):
        kept = {key: _what_matters(value) for key, value in settings.items() if key != "trim_offsets"}
        return {"use_regex": True} | kept if kept.get("type") == "ByteLevel" else kept
    return [_what_matters(value) for value in settings] if isinstance(settings, list) else settings


_SPACE_AFTER_TEXT = re.compile(r"(?<=\S) ")


def safe_parts(pieces: Iterable[str]) -> Iterator[str]:
    """One document, given in pieces of any size, in parts of `PART` characters or a little more.

    A cut stands before a space that follows a character that is no white space. No pattern of this file matches such a
    pair in the middle, and none looks back; so the parts' tokens, one after another, are the tokens of the whole.
    Only a text without such a place is held as a whole.
    """
    rest, patience = "", PART
    for piece in pieces:
        rest += piece
        if len(rest) < patience:
            continue
        start = 0
        while (cut := _SPACE_AFTER_TEXT.search(rest, start + PART)) is not None:
            yield rest[start : cut.start()]
            start = cut.start()
        rest = rest[start:]
        patience = max(PART, 2 * len(rest))  # a text that cannot be cut is not searched again at each piece
    yield rest


def by_document(pieces: Iterable[tuple[str, bool]]) -> Iterator[Iterator[str]]:
    """The pieces of each document, from pieces with whether they end it; take all of one document before the next."""
    iterator = iter(pieces)

    def document(piece: str, last: bool) -> Iterator[str]:
        yield piece
        while not last:
            piece, last = next(iterator)
            yield piece

    for piece, last in iterator:
        yield document(piece, last)


def has_long_run(text: str) -> bool:
    """Whether `text` may have `LONG_RUN` white spaces in a row, or as many other characters; never false if it has."""
    half = LONG_RUN // 2  # so long a run covers one whole block of half its length
    for start in range(0, len(text) - half + 1, half):
        block = text[start : start + half]
        if block.isspace() or (" " not in block and "\n" not in block):
            return True
    return False
