"""What people say of words, in the two kinds of file the field tests word vectors with.

Similarity: two words and a score on each line, separated by tabs, commas or spaces (WordSim-353, SimLex-999, MEN, ...).
Analogy: four words on each line, "a is to b as c is to d", in sections that begin with `: name` (questions-words.txt).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from rhapsode.base.errors import DamagedError, InputError

Pairs = list[tuple[str, str, float]]
"""Two words and how similar people find them."""

Question = tuple[str, str, str, str]
Analogies = dict[str, list[Question]]
"""The questions of each section."""

VOCABULARY = 30_000
"""Words that analogies are asked of: the first ones, as in the demonstration script of word2vec."""

LARGEST_FILE = 64 * 2**20  # bytes; the largest known has 30 MB
UNNAMED = "analogies"


def read_judgements(path: Path) -> Pairs | Analogies:
    """The pairs or the analogies in a file: four words make an analogy, and so does a section's name.

    Empty lines, and those that begin with #, are passed over; so is a first line that names the columns of pairs.

    Raises:
        InputError: there is no such file, or it is too large.
        DamagedError: a line is of neither kind, or not of that of the first; the message names it.
    """
    lines = [(number, line) for number, line in _lines(path) if line and not line.startswith("#")]
    if not lines:
        raise DamagedError("holds no line", where=str(path), todo="A line has two words and a score, or four words.")
    first = lines[0][1]
    words = first.split()
    columns = first.split(_separator(first))  # a header may be `Word 1,Word 2,Human (mean)`
    four = len(words) == 4 and len(columns) != 3 and _score(words[3]) is None
    return _analogies(path, lines) if four or first.startswith(":") else _pairs(path, lines)


def _lines(path: Path) -> list[tuple[int, str]]:
    where = str(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"is larger than {LARGEST_FILE // 2**20} MB: it holds no judgements", where=where)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError("the file does not exist", where=where) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from None
    except UnicodeDecodeError as error:
        raise DamagedError(f"is not UTF-8 text at byte {error.start}", where=where) from None
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]


def _separator(line: str) -> str | None:
    """What stands between the columns of pairs; None for any white space."""
    return next((sign for sign in "\t,;" if sign in line), None)


def _pairs(path: Path, lines: list[tuple[int, str]]) -> Pairs:
    separator = _separator(lines[0][1])
    pairs: Pairs = []
    for position, (number, line) in enumerate(lines):
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != 3 or not all(fields):
            what = f"there {'is 1 field' if len(fields) == 1 else f'are {len(fields)} fields'}"
            raise DamagedError(what, where=f"{path}:{number}", todo="A line has two words and a score, or four words.")
        score = _score(fields[2])
        if score is None and position > 0:
            raise DamagedError(f"{fields[2]!r} is not a finite number", where=f"{path}:{number}")
        if score is not None:
            pairs.append((fields[0], fields[1], score))
    if not pairs:
        raise DamagedError("holds no pair of words", where=str(path))
    return pairs


def _analogies(path: Path, lines: list[tuple[int, str]]) -> Analogies:
    analogies: Analogies = {}
    section = UNNAMED
    for number, line in lines:
        if line.startswith(":"):
            section = line[1:].strip() or UNNAMED
            analogies.setdefault(section, [])
            continue
        words = line.split()
        if len(words) != 4:
            raise DamagedError(f"there are {len(words)} words; an analogy has four", where=f"{path}:{number}")
        analogies.setdefault(section, []).append((words[0], words[1], words[2], words[3]))
    if not any(analogies.values()):
        raise DamagedError("holds no question", where=str(path))
    return analogies


def _score(text: str) -> float | None:
    """A number as a score; None for anything else."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
