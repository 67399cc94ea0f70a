"""A pair of texts as a document: one line, the two sides with a TAB between."""

from __future__ import annotations

import re

BETWEEN = "\t"
_BREAKS = re.compile(r"\s*[\t\n\v\f\r\x85\u2028\u2029]\s*")


def as_pair(first: str, second: str) -> str:
    """The document of a pair; empty when a side is. White space with a TAB or a line end in it becomes one space."""
    sides = [_BREAKS.sub(" ", side).strip() for side in (first, second)]
    return f"{sides[0]}{BETWEEN}{sides[1]}\n" if all(sides) else ""


def sides_of(document: str) -> tuple[str, str]:
    """Both sides of a pair's document."""
    first, _, second = document.removesuffix("\n").partition(BETWEEN)
    return first, second
