"""Word vectors in the plain forms they are published in, read into one matrix.

    rhapsode similar king --model glove.6B.300d.txt

| form | first bytes | a word's vector |
|---|---|---|
| GloVe text | no header | a line: the word, then the numbers |
| word2vec text, fastText .vec | `count dimension` on a line | the same |
| word2vec binary | `count dimension` on a line | the word, a space, little-endian float32, maybe a newline |
| fastText binary | the number 793712314 | see `fasttext.py` |

The content decides the form, never the name. A file packed with gzip is unpacked into a temporary file first. Nothing
is held in memory besides the matrix and the words, and nothing is reserved that the file's size does not bear out.

What is wrong stops the reading, with the line: other numbers than the first line promised, a value that is no finite
float32, a file cut short. What is only odd is left out and counted in `notes`: a word that stands there again (the
first is kept), and a word that is no UTF-8.
"""

from __future__ import annotations

import gzip
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.progress import Progress
from rhapsode.exchange import fasttext

Matrix = npt.NDArray[np.float32]

LARGEST_DIMENSION = 1 << 16
LARGEST_WORD = 10_000  # bytes; what is found on the web has words of some thousand
LARGEST_NUMBER = 40  # bytes of a number as text, and the space before it
LARGEST_EXPANSION = 50  # numbers as text pack to about a third
EXPANSION_ALWAYS_ALLOWED = 1 << 26
BLOCK = 1 << 20  # bytes
GROWTH = 1 << 18  # numbers

FORMS = "GloVe text, word2vec text and binary, fastText .vec and .bin, also packed with gzip"
HEADER = re.compile(rb"\s*(\d{1,18})\s+(\d{1,18})\s*")
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # bytes that no text has
COPY_AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class WordVectorFile:
    """What a file of word vectors holds."""

    form: str
    """"GloVe text", "word2vec text", "word2vec binary" or "fastText binary"."""
    words: list[str]
    """Its words, in the order of the file: in published files the most frequent first."""
    matrix: Matrix
    """(words, dimension), as in the file."""
    notes: list[str]
    """What was left out, or is not as the header says, each in one sentence."""


def read_word_vectors(path: Path) -> WordVectorFile:
    """The word vectors in a file of any of the forms above.

    Raises:
        InputError: there is no such file, or it is of no form known here.
        DamagedError: it is not what its beginning says; the message names the line, or the number of the vector.
    """
    where = str(path)
    if not path.is_file():
        what = "is not a file" if path.exists() else "the file does not exist"
        raise InputError(what, where=where, todo=f"Name a file of word vectors: {FORMS}.")
    with path.open("rb") as raw, _unpacked(raw, path.stat().st_size, where) as (file, size):
        return _read(file, size, where)


def _read(file: BinaryIO, size: int, where: str) -> WordVectorFile:
    if file.read(len(fasttext.MAGIC)) == fasttext.MAGIC:
        return _read_fasttext(file, size, where)
    file.seek(0)
    first = file.readline(_longest_line(LARGEST_DIMENSION))
    header = HEADER.fullmatch(first)
    if not header:
        dimension = _numbers_at_end(first)
        if not 1 <= dimension <= LARGEST_DIMENSION or dimension != len(first.split()) - 1:
            raise InputError(_what_else(first), where=where, todo=f"Forms that are read: {FORMS}.")
        file.seek(0)
        return _read_text(file, size, where, dimension=dimension)
    count, dimension = int(header[1]), int(header[2])
    if not count or not 1 <= dimension <= LARGEST_DIMENSION:
        what = f"says it has {count:,} vectors of {dimension:,} numbers"
        raise DamagedError(what, where=f"{where}:1", todo=f"What is read has 1 to {LARGEST_DIMENSION:,} numbers.")
    following = file.read(_longest_line(dimension))
    file.seek(len(first))
    if CONTROL.search(following) and _numbers_at_end(following.partition(b"\n")[0]) != dimension:
        return _read_binary(file, size, where, count=count, dimension=dimension)
    return _read_text(file, size, where, dimension=dimension, count=count)


class _Rows:
    """Words and their vectors, gathered in a matrix that grows where `expected` rows are not enough."""

    def __init__(self, expected: int, dimension: int) -> None:
        self._words: dict[str, None] = {}
        self._matrix = np.empty((expected, dimension), dtype=np.float32)
        self._left_out: Counter[str] = Counter()

    def add(self, name: bytes, vector: Matrix) -> None:
        row = len(self._words)
        try:
            word = name.decode("utf-8")
        except UnicodeDecodeError:
            self._left_out["is no UTF-8"] += 1
            return
        if word in self._words:
            self._left_out["stands there a second time"] += 1
            return
        if row == len(self._matrix):
            self._resize(row + max(row // 8, GROWTH // len(vector)) + 1)
        self._words[word] = None
        self._matrix[row] = vector

    def finish(self, form: str, where: str) -> WordVectorFile:
        if not self._words:
            raise DamagedError("no vector in it has a word", where=where)
        self._resize(len(self._words))
        notes = [
            f"{count:,} {'vector was' if count == 1 else 'vectors were'} left out, whose word {why}."
            for why, count in self._left_out.items()
        ]
        return WordVectorFile(form, list(self._words), self._matrix, notes)

    def _resize(self, rows: int) -> None:
        # In place: the system moves pages instead of copying them, and takes back what was not used.
        self._matrix.resize((rows, self._matrix.shape[1]), refcheck=False)


def _read_text(file: BinaryIO, size: int, where: str, *, dimension: int, count: int | None = None) -> WordVectorFile:
    """The lines from here on; `count` is what a header before them says they are."""
    longest, begin = _longest_line(dimension), file.tell()
    first_line = len(file.readline(longest))
    file.seek(begin)
    # As many lines as there were if all were like the first one. Memory that is not written to is not taken.
    rows = _Rows(min((size - begin) // max(2 * dimension, first_line), count or size) + 1, dimension)
    read, ended = 0, True
    with Progress("reading", size, "bytes", completed=begin) as progress:
        while line := file.readline(longest + 1):
            place = f"{where}:{read + (1 if count is None else 2)}"
            if len(line) > longest:
                raise DamagedError(f"the line is longer than {longest:,} bytes", where=place)
            rows.add(*_word_and_vector(line, dimension, place))
            read, ended = read + 1, line.endswith(b"\n")
            if read % 1024 == 0:
                progress.update(file.tell())
    result = rows.finish("GloVe text" if count is None else "word2vec text", where)
    if count is not None and read != count:
        what = f"{read:,} vectors follow, where the first line promises {count:,}"
        if read > count or not ended:
            raise DamagedError(what, where=where, todo=COPY_AGAIN)
        result.notes.insert(0, f"{what[0].upper()}{what[1:]}: the file is the beginning of another.")
    return result


def _word_and_vector(line: bytes, dimension: int, place: str) -> tuple[bytes, Matrix]:
    """The word and the numbers of a line. A word may hold spaces if what follows its last one is no number."""
    fields = line.split()
    numbers = fields[-dimension:]
    spaced = len(fields) > dimension + 1
    if len(fields) <= dimension or (spaced and _number(fields[-dimension - 1]) is not None):
        found = _numbers_at_end(line)
        raise DamagedError(f"there are {found:,} numbers after the word; {dimension:,} belong there", where=place)
    name = b" ".join(fields[:-dimension]) if spaced else fields[0]
    if len(name) > LARGEST_WORD:
        raise DamagedError(f"the word is longer than {LARGEST_WORD:,} bytes", where=place)
    try:
        if line.count(b"_") > name.count(b"_"):  # float takes 1_000
            raise ValueError
        with np.errstate(over="ignore"):
            vector = np.array([float(number) for number in numbers]).astype(np.float32)
    except ValueError:
        wrong = next(number for number in numbers if _number(number) is None)
        raise DamagedError(f"{_shown(wrong)} is not a number", where=place) from None
    if not np.isfinite(vector).all():
        wrong = numbers[int(np.argmin(np.isfinite(vector)))]
        raise DamagedError(f"{_shown(wrong)} is not a finite number of 32 bits", where=place)
    return name, vector


def _read_binary(file: BinaryIO, size: int, where: str, *, count: int, dimension: int) -> WordVectorFile:
    """The words and numbers from here on."""
    width = 4 * dimension
    if count * (width + 2) > size - file.tell():  # a word has one byte at least, and a space
        what = f"is too short for the {count:,} vectors of {dimension:,} numbers that its first line promises"
        raise DamagedError(what, where=where, todo=COPY_AGAIN)
    rows = _Rows(count, dimension)
    block, at = b"", 0
    with Progress("reading", size, "bytes", completed=file.tell()) as progress:
        for number in range(1, count + 1):
            if len(block) - at < LARGEST_WORD + 2 + width:
                block, at = block[at:] + file.read(BLOCK + LARGEST_WORD + width), 0
                progress.update(file.tell())
            if block[at : at + 1] == b"\n":
                at += 1
            place = f"{where}, vector {number:,}"
            space = block.find(b" ", at, at + LARGEST_WORD + 1)
            if space <= at:
                what = "has no word" if space == at else f"no word ends within {LARGEST_WORD:,} bytes"
                raise DamagedError(what, where=place, todo=COPY_AGAIN)
            name, at = block[at:space], space + 1 + width
            if at > len(block):
                raise DamagedError("the file ends within it", where=place, todo=COPY_AGAIN)
            vector = np.frombuffer(block, dtype="<f4", count=dimension, offset=space + 1)
            _require_finite(vector, place)
            rows.add(name, vector)
    if (block[at:] + file.read(BLOCK)).strip(b"\n"):
        what = f"goes on after the {count:,} vectors that its first line promises"
        raise DamagedError(what, where=where, todo=COPY_AGAIN)
    return rows.finish("word2vec binary", where)


def _read_fasttext(file: BinaryIO, size: int, where: str) -> WordVectorFile:
    model = fasttext.open_model(file, size, where)
    rows = _Rows(len(model.words), model.matrix.shape[1])
    with Progress("reading", len(model.words), "words") as progress:
        for number, (word, vector) in enumerate(zip(model.words, model.vectors(), strict=True), start=1):
            _require_finite(vector, f"{where}, vector {number:,}")
            rows.add(word, vector)
            progress.update(number)
    return rows.finish("fastText binary", where)


def _require_finite(vector: Matrix, place: str) -> None:
    if not np.isfinite(vector).all():
        raise DamagedError("a value is not a finite number", where=place)


def _longest_line(dimension: int) -> int:
    return LARGEST_WORD + dimension * LARGEST_NUMBER


def _numbers_at_end(line: bytes) -> int:
    """How many numbers end a line, the first field of which is a word whatever it looks like."""
    fields = line.split()[:0:-1]
    return next((count for count, field in enumerate(fields) if _number(field) is None), len(fields))


def _number(field: bytes) -> float | None:
    try:
        return None if b"_" in field else float(field)
    except ValueError:
        return None


def _shown(field: bytes) -> str:
    text = repr(field.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _what_else(first: bytes) -> str:
    """What a file is that holds no word vectors, where that helps."""
    if not first:
        return "is empty"
    if first.startswith(b"PK\x03\x04"):
        return "is a zip archive: unpack it, and name the file inside"
    if re.match(rb"\x80[\x02-\x05]", first):
        return (
            "holds pickled Python objects, which can run code and are never read: save the vectors with gensim's "
            "`save_word2vec_format`"
        )
    return "holds no word vectors: its first line is neither a word with numbers nor a count and a dimension"


@contextmanager
def _unpacked(raw: BinaryIO, size: int, where: str) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size; if it is packed with gzip, a temporary copy, unpacked within bounds, and its size."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    if not packed:
        yield raw, size
        return
    allowed = max(EXPANSION_ALWAYS_ALLOWED, LARGEST_EXPANSION * size)
    with tempfile.TemporaryFile() as temporary:
        copy = cast(BinaryIO, temporary)
        try:
            with gzip.GzipFile(fileobj=raw) as stream, Progress("unpacking", size, "bytes") as progress:
                while data := stream.read(BLOCK):
                    copy.write(data)
                    progress.update(raw.tell())
                    if copy.tell() > allowed:
                        what = f"unpacks to more than {allowed:,} bytes"
                        raise DamagedError(what, where=where, todo="If it is meant to be so, unpack it yourself.")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedError(f"cannot be unpacked ({error})", where=where, todo=COPY_AGAIN) from None
        except OSError as error:
            what = f"cannot be unpacked in {tempfile.gettempdir()} ({error.strerror})"
            raise InputError(what, where=where, todo="Unpack it yourself.") from None
        unpacked = copy.tell()
        copy.seek(0)
        yield copy, unpacked
