"""Texts that come with Rhapsode: free for any use, and small. `shakespeare`: plays, 1.1 MB, public domain."""

from __future__ import annotations

from pathlib import Path

from rhapsode.base.errors import InputError, nearest


def example(name: str) -> Path:
    """The bundled text with this name.

    Raises:
        InputError: there is none.
    """
    texts = {path.stem: path for path in Path(__file__).parent.glob("*.txt")}
    if name not in texts:
        raise InputError(f"there is no bundled text {name!r}", todo=nearest(name, texts))
    return texts[name]
