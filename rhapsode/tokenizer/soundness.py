"""What of a tokenizer.json is checked before the `tokenizers` library sees it, which would not survive it.

Found by damaging files: a character map that does not parse makes it panic, and a regular expression nested thousands
deep takes hundreds of megabytes. What else it meets it refuses by itself, or panics in a way that can be caught.
"""

from __future__ import annotations

from typing import Any

from rhapsode.base.errors import DamagedError
from rhapsode.tokenizer.normalizer import CharacterMap

LONGEST_EXPRESSION = 4096  # characters; the longest published ones have a thousand
AROUND_THE_MODEL = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def require_sound(content: dict[str, Any], where: str) -> None:
    """Refuse a tokenizer.json that the library cannot be given.

    Raises:
        DamagedError: it is one.
    """
    rest: list[Any] = [content.get(name) for name in AROUND_THE_MODEL]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            if part.get("type") == "Precompiled" or "precompiled_charsmap" in part:
                CharacterMap.unpacked(part.get("precompiled_charsmap"), where)
            expression = part.get("Regex")
            if isinstance(expression, str) and len(expression) > LONGEST_EXPRESSION:
                raise DamagedError(f"a regular expression has {len(expression):,} characters", where=where)
            rest += part.values()
        elif isinstance(part, list):
            rest += part
