"""What SentencePiece does to a text before it cuts it, exactly.

The `tokenizers` library applies a character map to whole graphemes, so that a mark after a mapped character is lost;
here it is applied as SentencePiece does it (normalizer.cc of google/sentencepiece; Kudo and Richardson 2018).
"""

from __future__ import annotations

import base64
import re
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from rhapsode.base.errors import DamagedError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
LONGEST_REPLACEMENT = 1024  # bytes; the longest of Unicode's compatibility forms has 33
LONGEST_RULE = 32  # characters; the longest row of characters with a rule of its own has a handful
REMEMBERED = 2**16  # pairs of characters whose normal form is kept


class CharacterMap:
    """Replacements of characters and rows of them, the longest first, as SentencePiece compiles them.

    Args:
        data: the size of a double-array trie (Darts), the trie, and the replacements, each ended by a zero byte.
        where: the file, for messages.

    Raises:
        DamagedError: the sizes do not fit.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._where = where
        size = int.from_bytes(data[:4], "little")
        if len(data) <= 4 or size % 4 or not 0 < size < len(data) - 4:
            raise self._damaged()
        self._units = array("I", data[4 : 4 + size])
        if sys.byteorder == "big":
            self._units.byteswap()
        self._replacements = data[4 + size :]
        try:
            self._replacements.decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged() from None

    @classmethod
    def unpacked(cls, packed: Any, where: str) -> CharacterMap:
        """The map from its base64 in a tokenizer.json."""
        try:
            data = base64.b64decode(packed, validate=True)
            if base64.b64encode(data).decode("ascii") == packed:
                return cls(data, where)
        except (ValueError, TypeError):
            pass
        raise DamagedError("the character map of its normaliser is damaged", where=where)

    def longest(self, text: bytes) -> tuple[int, str, bool]:
        """The bytes that the longest rule at the start of `text` replaces (0: none does), its replacement, and whether
        a longer text could have met a longer rule."""
        units = self._units
        position, length, value = _offset(units[0]), 0, 0
        for index, byte in enumerate(text):
            position ^= byte
            if position >= len(units):
                raise self._damaged()
            unit = units[position]
            if unit & 0x800000FF != byte:
                break
            position ^= _offset(unit)
            if unit >> 8 & 1:
                if position >= len(units):
                    raise self._damaged()
                length, value = index + 1, units[position] & 0x7FFFFFFF
        else:
            return length, self._replacement(value) if length else "", True
        return length, self._replacement(value) if length else "", False

    def _replacement(self, start: int) -> str:
        end = self._replacements.find(b"\0", start, start + LONGEST_REPLACEMENT)
        if end < 0:
            raise self._damaged()
        try:
            return self._replacements[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged() from None

    def _damaged(self) -> DamagedError:
        return DamagedError("the character map of its normaliser is damaged", where=self._where)


def _offset(unit: int) -> int:
    """How a unit of the trie says where its children are."""
    return unit >> 10 << ((unit & 0x200) >> 6)


class Normalizer:
    """What SentencePiece does to a text before it cuts it.

    Args:
        character_map: None when characters stay as they are.
        add_dummy_prefix: a space comes before the text.
        remove_extra_whitespaces: spaces at the ends go, and of several in a row one is left.
        kept: texts that no rule changes: pieces that users defined.
    """

    def __init__(
        self,
        character_map: CharacterMap | None,
        *,
        add_dummy_prefix: bool,
        remove_extra_whitespaces: bool,
        kept: Iterable[str],
    ) -> None:
        self._map = character_map
        self._add_dummy_prefix, self._remove = add_dummy_prefix, remove_extra_whitespaces
        longest_first = sorted(kept, key=len, reverse=True)
        self._kept = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._remembered: dict[str, tuple[int, str]] = {}

    def __call__(self, text: str) -> str:
        if self._map is None and self._kept is None:
            parts: Iterable[str] = text
        else:
            parts = self._replaced(text)
        written = self._without_extra_spaces(parts) if self._remove else "".join(parts)
        if written is None or not text:
            return ""
        prefix = SPACE if self._add_dummy_prefix else ""
        normal = prefix + written.replace(" ", SPACE)
        return normal.rstrip(SPACE) if self._remove else normal

    def _replaced(self, text: str) -> Iterator[str]:
        """The text in parts: what is kept, what a rule made, and single characters."""
        position = 0
        while position < len(text):
            kept = self._kept.match(text, position) if self._kept is not None else None
            if kept is not None:
                length, part = len(kept[0]), kept[0]
            elif self._map is None:
                length, part = 1, text[position]
            else:
                length, part = self._rule_at(self._map, text, position)
            yield part
            position += length

    def _rule_at(self, rules: CharacterMap, text: str, position: int) -> tuple[int, str]:
        """How many characters at `position` become what."""
        pair = text[position : position + 2]
        if (found := self._remembered.get(pair)) is not None:
            return found
        size, replacement, more = rules.longest(pair.encode("utf-8"))
        whole = len(pair) == 2 and not more  # no rule goes beyond the pair: what was found holds wherever it stands
        if more and len(pair) == 2:
            size, replacement, _ = rules.longest(text[position : position + LONGEST_RULE].encode("utf-8"))
        if size == 0:
            found = (1, pair[0])
        else:
            taken = text[position : position + LONGEST_RULE].encode("utf-8")[:size].decode("utf-8", errors="ignore")
            if len(taken.encode("utf-8")) != size:
                raise rules._damaged()
            found = (len(taken), replacement)
        if whole:
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[pair] = found
        return found

    def _without_extra_spaces(self, parts: Iterable[str]) -> str | None:
        """The parts together, no space following another; None when there is nothing but spaces."""
        kept: list[str] = []
        iterator = iter(parts)
        for part in iterator:
            if part != " ":
                break
        else:
            return None
        after_space = True
        while True:
            if after_space:
                part = part.lstrip(" ")
            if part:
                kept.append(part)
                after_space = part.endswith(" ")
            following = next(iterator, None)
            if following is None:
                return "".join(kept)
            part = following
