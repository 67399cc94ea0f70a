"""The one family of errors: each says what was wrong, where, and what to do; none shows a traceback for bad input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_SHOWN = 60  # characters of a value in a message


class RhapsodeError(Exception):
    """Something went wrong that is ours (exit code 1) unless a subclass says otherwise.

    Args:
        what: what was wrong, in one sentence without a full stop.
        where: the file, line, field or step it concerns, if there is one.
        todo: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(self.message)

    @property
    def message(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.todo}" if self.todo else f"{text}."


class InputError(RhapsodeError):
    """The user's input was wrong (exit code 2)."""

    exit_code = 2


class DamagedError(InputError):
    """A file or folder is not what was written: truncated, changed or incomplete."""


class MismatchError(InputError):
    """Two things that must belong together do not (a run and its data, a model and its tokenizer)."""


class NotFiniteError(RhapsodeError):
    """Training met a value that is not a number or infinite."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest right word, or lists the choices when none is near."""
    options = sorted(choices)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Choose one of: {', '.join(options)}."


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and short, for hostile files have long ones."""
    text = ascii(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
