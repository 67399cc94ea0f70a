"""Finds calls of tools in a text that is being written, and lets the rest of the text through."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import product

from rhapsode.inference.call import LONGEST_NAME, NAME, Call
from rhapsode.inference.call_form import ID, NUMBER, CallForm, Segment

SPACE = " \t\r\n"
NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")


class ToolReader:
    """Follows one answer.

    Space before a call, between calls, and where the answer ends after one belongs to their form, and is no text. What
    begins like a call and goes on otherwise is text.
    """

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._lead, self._middle, self._end, self._close = (
            _spellings(segment, form) for segment in (form.lead, form.middle, form.end, form.close)
        )
        self._between = [] if form.between is None else _spellings(form.between, form)
        self._trigger = "".join(form.trigger)
        self._step: Callable[[], bool] = self._text
        self._held = ""  # what is not decided yet
        self._at = 0  # so much of it has been read as part of a call
        self._name = ""
        self._json = _ObjectEnd()
        self._found: list[str | Call] = []
        self._begun = self._called = False  # there was text, or a call

    def push(self, text: str) -> list[str | Call]:
        """What is certain by now, in order: text, and calls that are complete."""
        self._held += text
        while self._step():
            pass
        found, self._found = self._found, []
        return found

    def flush(self) -> list[str | Call]:
        """What is left at the end. A call that is begun and not complete is text."""
        rest, self._held = self._held, ""
        form = {self._after_arguments: self._end, self._after_call: self._close}.get(self._step, [])
        self._step, self._at = self._text, 0
        of_form = _match(rest, form)[1] or (self._called and not rest.strip(SPACE))
        return [] if not rest or of_form else [rest]

    # Each step reads what it can of what is held, and says whether another step may go on.

    def _text(self) -> bool:
        start = self._start()
        if start is not None:
            text = self._held[:start].rstrip(SPACE)
            self._let_through(text)
            self._at = start - len(text)
            self._step = self._call
            return True
        kept = _overlap(self._held, self._trigger) if self._may_begin() else 0
        self._let_through(self._held[: len(self._held) - kept].rstrip(SPACE))
        return False

    def _call(self) -> bool:
        return self._read(self._lead, self._its_name)

    def _its_name(self) -> bool:
        end = NO_NAME.search(self._held, self._at)
        if end is None and len(self._held) - self._at <= LONGEST_NAME:
            return False
        self._name = self._held[self._at : end.start()] if end else ""
        if not NAME.fullmatch(self._name):
            return self._no_call()
        self._at += len(self._name)
        self._step = self._its_middle
        return True

    def _its_middle(self) -> bool:
        self._json = _ObjectEnd()
        return self._read(self._middle, self._arguments)

    def _arguments(self) -> bool:
        end = self._json.find(self._held, self._at)
        if end is None:
            return False
        arguments = self._held[self._at : end]
        try:
            whole = isinstance(json.loads(arguments, parse_int=float), dict)  # an int has a limit of its own
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            return self._no_call()
        self._found.append(Call(self._name, arguments))
        self._called = True
        self._drop(end)
        self._step = self._after_arguments
        return True

    def _after_arguments(self) -> bool:
        return self._read(self._end, self._after_call)

    def _after_call(self) -> bool:
        size, open = _match(self._held, [*self._between, *self._close])
        if open:
            return False
        another, _ = _match(self._held, self._between)
        if another is not None and another == size:
            self._at, self._step = another, self._its_name
        else:
            self._drop(size or 0)
            self._step = self._text
        return True

    def _read(self, spellings: list[str], then: Callable[[], bool]) -> bool:
        """Read one of these, and go on with another step; what is none of them is no call."""
        size, open = _match(self._held[self._at :], spellings)
        if open or size is None:
            return not open and self._no_call()
        self._at += size
        if self._step == self._after_arguments:
            self._drop(self._at)
        self._step = then
        return True

    def _start(self) -> int | None:
        """Where a call begins; None where none does."""
        if not self._form.anchored:
            start = self._held.find(self._trigger)
            return None if start < 0 else start
        start = len(self._held) - len(self._held.lstrip(SPACE))
        return start if self._may_begin() and self._held.startswith(self._trigger, start) else None

    def _may_begin(self) -> bool:
        """Whether a call can still begin."""
        return not self._form.anchored or not (self._begun or self._called)

    def _no_call(self) -> bool:
        """What seemed to begin a call was text."""
        spaces = len(self._held) - len(self._held.lstrip(SPACE))
        self._let_through(self._held[: spaces + 1])
        self._at, self._step = 0, self._text
        return True

    def _let_through(self, text: str) -> None:
        """`text`, with which begins what is held, is certain."""
        if text:
            self._found.append(text)
            self._begun = True
            self._held = self._held[len(text) :]

    def _drop(self, size: int) -> None:
        self._held, self._at = self._held[size:], 0


class _ObjectEnd:
    """Finds where a JSON object ends, reading each character once."""

    def __init__(self) -> None:
        self._read = self._depth = 0
        self._string = self._escaped = False

    def find(self, text: str, start: int) -> int | None:
        """The end of the object that begins at `start` of a growing text; None while there is none yet."""
        for number in range(start + self._read, len(text)):
            letter = text[number]
            self._read += 1
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped, self._string = letter == "\\", letter != '"'
            else:
                self._string = letter == '"'
                self._depth += (letter in "{[") - (letter in "}]")
                if self._depth <= 0:
                    return number + 1
        return None


def _spellings(segment: Segment, form: CallForm) -> list[str]:
    """The strings that a part of the form may be; an id that is a field of its own may be left out."""
    ways: list[list[str]] = []
    for atom in segment:
        spaced = form.spaced and atom in form.control
        optional = ID in atom and not atom.startswith(ID)
        ways.append([atom, *([f"{atom} "] if spaced else []), *([""] if optional else [])])
    return ["".join(way) for way in product(*ways)]


def _match(text: str, spellings: list[str]) -> tuple[int | None, bool]:
    """The size of the longest spelling that `text` begins with, and whether `text` may yet become a longer one."""
    size: int | None = None
    open = False
    for spelling in spellings:
        if all(map(_is, text, spelling)):
            if len(text) < len(spelling):
                open = True
            elif size is None or len(spelling) > size:
                size = len(spelling)
    return size, open


def _is(letter: str, expected: str) -> bool:
    """Whether a letter is the one that the form has here."""
    if expected in (ID, NUMBER):
        return letter.isascii() and (letter.isalnum() if expected == ID else letter.isdigit())
    return letter == expected


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` may be the beginning of `word`."""
    return next((size for size in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:size])), 0)
