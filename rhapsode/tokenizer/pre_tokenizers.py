"""Where a text may be cut before its pieces become tokens: the pre-tokenisers, by the names llama.cpp knows them by.

A pre-tokeniser is a regular expression; each of its matches is encoded alone. `rhapsode tokenizer train` records the
name in tokenizer_config.json, so that an export to GGUF can say how the text is to be cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# The expressions of GPT-2, Llama 3 and Qwen2 as their publishers wrote them. Tokens follow from them: change nothing.
BYTE_PAIR_PATTERNS = {
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

# A run of one megabyte of spaces overflows tiktoken's stack; 64 kB do not.
LONG_RUN = 16384


def byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def pre_tokenizer_settings(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` part of a tokenizer.json for a name in `BYTE_PAIR_PATTERNS`."""
    if name == "gpt-2":
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": BYTE_PAIR_PATTERNS[name]}, "behavior": "Isolated", "invert": False}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, bytes_only]}


def word_pre_tokenizer_settings() -> dict[str, Any]:
    """The `pre_tokenizer` part of a word tokenizer's tokenizer.json."""
    return {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}


def pre_tokenizer_name(settings: Any) -> str | None:
    """The name under which llama.cpp knows this `pre_tokenizer` part of a tokenizer.json, if it does."""

    def without_offsets(value: Any) -> Any:  # trim_offsets changes no token
        if isinstance(value, dict):
            return {key: without_offsets(part) for key, part in value.items() if key != "trim_offsets"}
        return [without_offsets(part) for part in value] if isinstance(value, list) else value

    asked = without_offsets(settings)
    if isinstance(asked, dict) and asked.get("type") == "ByteLevel":
        asked.setdefault("use_regex", True)  # files older than the field mean true
    return next((name for name in BYTE_PAIR_PATTERNS if without_offsets(pre_tokenizer_settings(name)) == asked), None)


_SPACE_AFTER_TEXT = re.compile(r"(?<=\S) ")


def safe_cuts(text: str, size: int) -> Iterator[str]:
    """`text` in parts of `size` characters or little more, cut where every pattern above cuts as well.

    A cut stands before a space that follows a character that is no white space. No pattern here matches such a pair,
    and none looks back; so the parts' tokens, one after another, are the tokens of the whole.
    """
    start = 0
    while len(text) - start > size:
        cut = _SPACE_AFTER_TEXT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:] if start else text


def has_long_run(text: str) -> bool:
    """Whether the text may have `LONG_RUN` white spaces in a row, or as many other characters; never false when it has."""
    half = LONG_RUN // 2  # so long a run covers one whole block of half its length
    for start in range(0, len(text) - half + 1, half):
        block = text[start : start + half]
        if block.isspace() or (" " not in block and "\n" not in block):
            return True
    return False
