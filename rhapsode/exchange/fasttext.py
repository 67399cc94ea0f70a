"""fastText's own binary form (its `.bin`): words, and the vectors of their parts, of which a word's vector is the mean.

A word "king" is made of itself and of the character n-grams of "<king>", from `minn` to `maxn` characters long. Each
n-gram has a row in the matrix, found by hashing it into `bucket` rows after those of the words (Bojanowski et al. 2017,
section 3.2). The means over all these rows are what fastText writes into the `.vec` file beside its `.bin`.

Little-endian: the magic number, the version; twelve int32 and a double of settings; the dictionary; the matrix of
words and n-grams; the matrix of outputs, which is not read. Quantised models (`.ftz`) are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import DamagedError, InputError

MAGIC = struct.pack("<i", 793712314)
VERSIONS = (11, 12)
SETTINGS = struct.Struct("<12id")
DICTIONARY = struct.Struct("<iiiqq")
ENTRY = struct.Struct("<qb")
SHAPE = struct.Struct("<?qq")
SUPERVISED = 3
END_OF_SENTENCE = b"</s>"  # the one word without n-grams

LARGEST_WORD = 10_000  # bytes
LONGEST_NGRAM = 32  # characters; 6 where nobody says otherwise
WORDS_AT_ONCE = 1024
NUMBERS_AT_ONCE = 1 << 22
FNV_START, FNV_PRIME = 2166136261, 16777619

Matrix = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """A fastText model, opened: its matrix stays on disk until rows of it are asked for."""

    words: list[bytes]
    matrix: Matrix
    """(words + buckets, dimension)"""
    buckets: int
    shortest_ngram: int
    longest_ngram: int

    def vectors(self) -> Iterator[Matrix]:
        """The vector (dimension,) of each word, in order."""
        for start in range(0, len(self.words), WORDS_AT_ONCE):
            some = self.words[start : start + WORDS_AT_ONCE]
            for number, ngrams in enumerate(self._ngram_rows(some)):
                yield self._mean(np.append(ngrams, start + number))

    def _mean(self, rows: Integers) -> Matrix:
        step = max(1, NUMBERS_AT_ONCE // self.matrix.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):  # whoever reads a damaged file refuses what comes of it
            parts = [self.matrix[rows[at : at + step]].sum(axis=0) for at in range(0, len(rows), step)]
            mean: Matrix = np.sum(parts, axis=0) / np.float32(len(rows))
        return mean

    def _ngram_rows(self, words: Sequence[bytes]) -> list[Integers]:
        """The rows of the n-grams of each word."""
        if not self.buckets or not self.longest_ngram:
            return [np.empty(0, dtype=np.int64)] * len(words)
        bracketed = [b"" if word == END_OF_SENTENCE else b"<" + word + b">" for word in words]
        owners, hashes = ngram_hashes(bracketed, self.shortest_ngram, self.longest_ngram)
        rows = len(self.words) + (hashes % np.uint32(self.buckets)).astype(np.int64)
        order = np.argsort(owners, kind="stable")
        ends = np.searchsorted(owners[order], np.arange(1, len(words)))
        return np.split(rows[order], ends)


def ngram_hashes(words: Sequence[bytes], shortest: int, longest: int) -> tuple[Integers, npt.NDArray[np.uint32]]:
    """The number of the word, and the hash, of each character n-gram of each word, brackets included.

    One character at either end of a word is no n-gram. The hash is FNV-1a of 32 bits with bytes taken as signed.
    """
    data = np.frombuffer(b"".join(words), dtype=np.uint8)
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    word_of = np.repeat(np.arange(len(words)), lengths)
    word_ends = np.cumsum(lengths)
    begins = np.append((data & 0xC0) != 0x80, True)  # whether a character begins at a byte; the end counts as one
    signed = data.view(np.int8).astype(np.int32).view(np.uint32)

    at = np.flatnonzero(begins[:-1])  # where the n-gram that begins at each character has come to
    owner = word_of[at]
    end, is_first = word_ends[owner], at == (word_ends - lengths)[owner]
    length = np.zeros_like(at)  # characters
    hashed = np.full(len(at), FNV_START, dtype=np.uint32)
    owners, hashes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint32)]
    while len(at):
        at_end = at == end
        whole = at_end | begins[at]
        found = whole & (length >= shortest) & (length > 0) & ~((length == 1) & (is_first | at_end))
        owners.append(owner[found])
        hashes.append(hashed[found])
        on = ~at_end & ~(whole & (length == longest))
        at, owner, end, is_first, length, hashed = (values[on] for values in (at, owner, end, is_first, length, hashed))
        length += begins[at]
        hashed = (hashed ^ signed[at]) * np.uint32(FNV_PRIME)
        at += 1
    return np.concatenate(owners), np.concatenate(hashes)


def open_model(file: BinaryIO, size: int, where: str) -> Model:
    """The model in `file`, of `size` bytes.

    Raises:
        InputError: it is quantised, or of a version that is not read.
        DamagedError: it is not as long as its numbers say, or a number is out of range.
    """

    def damaged(what: str) -> DamagedError:
        return DamagedError(what, where=where, todo="Copy or download it again.")

    def take(form: struct.Struct) -> tuple[int, ...]:
        data = file.read(form.size)
        if len(data) < form.size:
            raise damaged(f"the file ends at byte {size:,}, within its beginning")
        return form.unpack(data)

    file.seek(len(MAGIC))
    (version,) = take(struct.Struct("<i"))
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        what = f"is a fastText file of version {version}; {known} are read"
        raise InputError(what, where=where, todo="Take the .vec file beside it.")
    settings = take(SETTINGS)
    dimension, kind, buckets, shortest, longest = settings[0], settings[7], settings[8], settings[9], settings[10]
    if version == 11 and kind == SUPERVISED:
        longest = 0
    entries, count, labels, _, pruned = take(DICTIONARY)
    if not (1 <= count <= entries == count + labels <= size and buckets >= 0 and shortest >= 0):
        raise damaged(f"says it has {count:,} words, {labels:,} labels and {buckets:,} buckets")
    if not 0 <= longest <= LONGEST_NGRAM:
        raise damaged(f"says its n-grams have up to {longest:,} characters; {LONGEST_NGRAM} is the most that is read")
    words = _words(file, entries, damaged)[:count]
    quantised, rows, columns = take(SHAPE)
    if quantised or pruned >= 0:
        raise InputError(
            "is a quantised fastText model",
            where=where,
            todo="Take the .vec file, or the .bin it was made from.",
        )
    start = file.tell()
    if rows != count + buckets or columns != dimension or dimension < 1 or start + 4 * rows * columns > size:
        raise damaged(f"says it has a matrix of {rows:,} rows and {columns:,} columns, which cannot be")
    matrix = np.memmap(file, dtype="<f4", mode="r", offset=start, shape=(rows, columns))
    file.seek(start + matrix.nbytes)
    _, rows, columns = take(SHAPE)
    if min(rows, columns) < 0 or file.tell() + 4 * rows * columns != size:
        raise damaged("is not as long as its matrices")
    return Model(words, matrix, buckets, shortest, longest)


def _words(file: BinaryIO, entries: int, damaged: Callable[[str], DamagedError]) -> list[bytes]:
    """The entries of the dictionary: a word, a zero byte, its count, and whether it is a label."""
    words = []
    block, at = b"", 0
    longest = LARGEST_WORD + 1 + ENTRY.size
    for number in range(1, entries + 1):
        if len(block) - at < longest:
            block, at = block[at:] + file.read(1 << 20), 0
        zero = block.find(b"\0", at, at + LARGEST_WORD + 1)
        if zero <= at or zero + 1 + ENTRY.size > len(block):
            what = "has no word" if zero == at else "does not end"
            raise damaged(f"entry {number:,} of its dictionary {what}")
        words.append(block[at:zero])
        at = zero + 1 + ENTRY.size
    file.seek(at - len(block), 1)
    return words
