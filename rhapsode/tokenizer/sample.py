"""A sample of a text of any size: bounded in memory, evenly spaced, the same each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rhapsode.base.errors import InputError
from rhapsode.tokenizer.pre_tokenizers import safe_parts

SAMPLE_CHARACTERS = 64_000_000


@dataclass(frozen=True)
class Sample:
    """Parts of a text, in its order, and how many characters were kept of how many."""

    parts: list[str]
    characters: int
    of: int


def evenly_spaced(texts: Iterable[str], limit: int = SAMPLE_CHARACTERS) -> Sample:
    """Every part of `texts` if they have up to `limit` characters, else every 2nd, 4th, ... so that the limit holds.

    Args:
        texts: documents; read once, from the first to the last.

    Raises:
        InputError: a text holds half a character (a lone surrogate).
    """
    kept: list[str] = []
    held = total = index = 0
    stride = 1
    for text in texts:
        for part in safe_parts([text]):
            require_whole_characters(part)
            total += len(part)
            if index % stride == 0:
                kept.append(part)
                held += len(part)
            if held > limit and len(kept) > 1:
                kept = kept[::2]
                held = sum(map(len, kept))
                stride *= 2
            index += 1
    return Sample(kept, held, total)


def require_whole_characters(text: str) -> None:
    """Refuse a text that no encoding of Unicode can hold: bad bytes read leniently leave halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds half a character, U+{ord(text[error.start]):04X}",
            todo="It was read with the wrong encoding.",
        ) from None
