"""Texts named on the command line: themselves, the lines of files, or those of standard input."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

NAME_OF_A_FILE = re.compile(r"\S*[\w)]\.[a-z]\w{0,5}|\S*[/\\]\S+")
"""One word that ends as the names of files do, or that has folders in it: hardly a text."""


def texts_of(words: Sequence[str]) -> Iterator[str]:
    """The texts that `words` name, one by one; those of standard input where there is no word, or - stands for it.

    A word is the file of that name if there is one, gzipped or not, and gives its lines; any other word is a text.

    Raises:
        InputError: a word that looks like a file's name, of which there is none, or a line that is not UTF-8 text.
    """
    for word in words or ["-"]:
        if word == "-" or Path(word).is_file():
            yield from _lines(word)
        elif _names_nothing(word):
            yield word


def count_of(words: Sequence[str]) -> int | None:
    """How many texts `words` name; None where standard input is among them. Errors as `texts_of`."""
    if not words or "-" in words:
        return None
    return sum(1 for _ in texts_of(words))


def _names_nothing(word: str) -> bool:
    from rhapsode.base.errors import InputError

    if NAME_OF_A_FILE.fullmatch(word):
        todo = "Is it a text? Then write it to standard input."
        raise InputError("there is no such file", where=word, todo=todo)
    return True


def _lines(name: str) -> Iterator[str]:
    import contextlib
    import gzip
    import sys
    import zlib

    from rhapsode.base.errors import InputError

    where, number = "standard input" if name == "-" else name, 0
    try:
        with contextlib.ExitStack() as stack:
            if name == "-":
                file: Iterable[bytes] = sys.stdin.buffer
            elif name.endswith(".gz"):
                file = stack.enter_context(gzip.open(name))
            else:
                file = stack.enter_context(Path(name).open("rb"))
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=f"{where}:{number}") from None
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"cannot be read after line {number} ({error})", where=where) from None
