"""From what the user names to byte streams of one text file each: folders walked, globs matched, archives opened.

Nothing is extracted: packed files are read as streams, with bounds on how much, how many and how deep.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import zstandard

from rhapsode.base.errors import InputError
from rhapsode.corpus.account import Reading, UnreadableTextError
from rhapsode.corpus.decode import BLOCK_BYTES

STANDARD_INPUT = "-"

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
SHORTHANDS = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tbz": ".tar.bz2", ".tbz2": ".tar.bz2", ".tzst": ".tar.zst"}

# One file may unpack to 200 times its size (text packs 3 to 30 times smaller), a small one to a quarter of a gigabyte.
LARGEST_EXPANSION = 200
EXPANSION_ALWAYS_ALLOWED = 1 << 28
MOST_MEMBERS = 1_000_000
DEEPEST_NESTING = 5
LARGEST_ZSTANDARD_WINDOW = 1 << 27

DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,
)


@dataclass(frozen=True)
class InputFile:
    """One file on disk, or standard input (no path).

    `named` is false for what was merely found in a folder: there, unknown kinds are dropped, not tried as text.
    """

    name: str
    path: Path | None
    size: int
    named: bool


@dataclass(frozen=True)
class Source:
    """The bytes of one text file, unpacked.

    `certain` is false for a found file without a suffix: it is text if it can be read as text, and dropped if not.
    """

    name: str
    kind: str
    stream: BinaryIO
    named: bool
    certain: bool = True


def find_files(inputs: Sequence[str], reading: Reading, *, leave_out: Path | None = None) -> list[InputFile]:
    """The files that `inputs` stand for, in order: files, folders (everything in them, sorted), globs and `-`.

    Args:
        leave_out: a folder that is never read from: the one the corpus goes to.

    Raises:
        InputError: an input does not exist, cannot be read, or a glob matches nothing.
    """
    found: list[InputFile] = []
    for text in inputs:
        if text == STANDARD_INPUT:
            found.append(InputFile("standard input", None, 0, named=True))
            continue
        path = Path(text)
        information = _status(path) if text else None
        if information is None:
            names = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else []  # noqa: PTH207 - any root
            matches = [Path(name) for name in names if Path(name).is_file()]
            if not matches:
                what = "no file matches" if glob.has_magic(text) else "does not exist"
                raise InputError(what, where=printable(text), todo="Check the name.")
            found += [InputFile(printable(str(match)), match, match.stat().st_size, named=True) for match in matches]
        elif stat.S_ISDIR(information.st_mode):
            found += _files_in(path, reading, leave_out)
        else:
            found.append(InputFile(printable(text), path, information.st_size, named=True))
    return found


def open_file(file: InputFile, reading: Reading) -> Iterator[Source]:
    """The text files in `file`: itself, or what is packed in it. Each stream is good until the next is asked for.

    Raises:
        UnreadableTextError: it cannot be read, is damaged, or unpacks to more than the bounds allow.
    """
    if file.path is None:
        # Unbuffered: Python's buffer waits for a whole block without heeding an interrupt.
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
            stream = _layer(raw, file.name, reading.report.add_bytes)
            yield Source(file.name, "text", stream, named=True)
        return
    with _clear_errors(file.name), file.path.open("rb", buffering=0) as raw:
        stream = _layer(raw, file.name, reading.report.add_bytes, seekable=raw.seekable())
        yield from _Unpacking(reading, file.size).sources(file.name, file.path.name, stream, named=file.named)


def printable(name: str) -> str:
    """`name` without the half characters that stand for bytes which are no UTF-8 in file names."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=printable(str(path))) from None


def _files_in(folder: Path, reading: Reading, leave_out: Path | None) -> Iterator[InputFile]:
    def unreadable(error: OSError) -> None:
        where = printable(str(error.filename))
        reading.bad(UnreadableTextError(f"cannot be read ({error.strerror})", reason="unreadable", where=where))

    for place, folders, names in os.walk(folder, onerror=unreadable):
        kept = (name for name in folders if not name.startswith(".") and (Path(place) / name).resolve() != leave_out)
        folders[:] = sorted(kept)
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith("."):
                reading.report.drop("hidden", printable(str(path)))
            elif not path.is_file():
                reading.report.drop("link or device", printable(str(path)))
            else:
                yield InputFile(printable(str(path)), path, path.stat().st_size, named=False)


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Whatever the libraries below raise for damaged or unreadable files, as one kind of error."""
    try:
        yield
    except tarfile.TarError as error:
        raise _damaged(name, str(error)) from None
    except OSError as error:
        if error.errno is None:  # gzip and bz2 raise it for bad data
            raise _damaged(name, str(error)) from None
        raise UnreadableTextError(f"cannot be read ({error.strerror})", reason="unreadable", where=name) from None
    except DAMAGE as error:
        raise _damaged(name, str(error)) from None


def _damaged(name: str, detail: str) -> UnreadableTextError:
    return UnreadableTextError(f"cannot be unpacked ({detail})", reason="damaged", where=name)


class _Layer(io.RawIOBase):
    """A stream of which every byte is counted, and whose failures are told clearly."""

    def __init__(self, inner: IO[bytes], name: str, count: Callable[[int], None], *, seekable: bool) -> None:
        self._inner, self._name, self._count, self._seekable = inner, name, count, seekable

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readinto(self, buffer: Any) -> int:
        with _clear_errors(self._name):
            data = self._inner.read(len(buffer))
        self._count(len(data))
        buffer[: len(data)] = data
        return len(data)


def _layer(inner: IO[bytes], name: str, count: Callable[[int], None], *, seekable: bool = False) -> BinaryIO:
    return io.BufferedReader(_Layer(inner, name, count, seekable=seekable), BLOCK_BYTES)


class _ZstandardStream:
    """Unpacks zstd frames. zstandard's own reader takes a cut-off file for a whole one, so frames are followed here."""

    # A few packed bytes can stand for 128 kB: small bites keep what comes out at once in bounds.
    BITE = 2048

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_ZSTANDARD_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._spare = b""
        self._ready = io.BytesIO()

    def read(self, size: int) -> bytes:
        while not (data := self._ready.read(size)):
            bite = self._spare or self._packed.read(self.BITE)
            self._spare = b""
            if not bite and self._frame is None:
                return b""
            if not bite:
                raise EOFError("it ends within a frame")
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = io.BytesIO(self._frame.decompress(bite))
            if self._frame.eof:
                self._spare, self._frame = self._frame.unused_data, None
        return data


_COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _ZstandardStream,
}


class _Unpacking:
    """The unpacking of one file on disk, however deep: how much it may still give, how many members it had."""

    def __init__(self, reading: Reading, packed_bytes: int) -> None:
        self._reading = reading
        self._allowed = self._left = max(EXPANSION_ALWAYS_ALLOWED, LARGEST_EXPANSION * packed_bytes)
        self._members = 0

    def sources(
        self, name: str, file_name: str, stream: BinaryIO, *, depth: int = 0, named: bool = True
    ) -> Iterator[Source]:
        """The text files in `stream`. `file_name` decides what it is; `name` is what errors and records call it."""
        if depth > DEEPEST_NESTING:
            raise self._too_much(name, f"is packed more than {DEEPEST_NESTING} times over")
        suffix = PurePosixPath(file_name).suffix
        stem, suffix = file_name[: len(file_name) - len(suffix)], suffix.lower()
        if suffix in SHORTHANDS:
            yield from self.sources(name, stem + SHORTHANDS[suffix], stream, depth=depth, named=named)
        elif suffix in _COMPRESSIONS:
            unpacked = self._layer(_COMPRESSIONS[suffix](stream), name)
            yield from self.sources(name, stem, unpacked, depth=depth + 1, named=named)
        elif suffix == ".zip":
            yield from self._zip_members(name, stream, depth)
        elif suffix == ".tar":
            yield from self._tar_members(name, stream, depth)
        elif suffix in KINDS or named or not suffix:
            yield Source(name, KINDS.get(suffix, "text"), stream, named, certain=named or suffix != "")
        else:
            self._reading.report.drop("unknown kind", name)

    def _tar_members(self, name: str, stream: BinaryIO, depth: int) -> Iterator[Source]:
        with _clear_errors(name):
            archive = tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK_BYTES, encoding="utf-8")  # noqa: SIM115
        while True:
            with _clear_errors(name):
                member = archive.next()
            if member is None:
                return
            archive.members = []  # type: ignore[attr-defined]  # or a million of them would stay in memory
            if member.isdir():
                continue
            opened = partial(archive.extractfile, member) if member.isreg() else None
            yield from self._member(name, member.name, opened, depth)

    def _zip_members(self, name: str, stream: BinaryIO, depth: int) -> Iterator[Source]:
        with seekable(stream) as file:
            with _clear_errors(name):
                archive = zipfile.ZipFile(file)
            for member in archive.infolist():
                if not member.is_dir():
                    is_link = stat.S_ISLNK(member.external_attr >> 16)
                    opened = None if is_link else partial(_open_zipped, archive, member)
                    yield from self._member(name, member.filename, opened, depth)

    def _member(
        self, archive: str, member: str, opened: Callable[[], IO[bytes] | None] | None, depth: int
    ) -> Iterator[Source]:
        """The text files in one member; `opened` is None for links and devices."""
        name = f"{archive}/{printable(member)}"
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise self._too_much(archive, f"has more than {MOST_MEMBERS:,} members")
        if self._left < 0:
            raise self._too_large(archive)
        parts = PurePosixPath(member).parts or ("",)
        if any(part.startswith(".") and part != ".." for part in parts):
            self._reading.report.drop("hidden", name)
            return
        try:
            with _clear_errors(name):
                inner = opened() if opened else None
            if inner is None:
                self._reading.report.drop("link or device", name)
                return
            with inner:
                yield from self.sources(name, parts[-1], self._layer(inner, name), depth=depth + 1, named=False)
        except UnreadableTextError as error:
            self._reading.bad(error)

    def _layer(self, inner: IO[bytes], name: str) -> BinaryIO:
        def spend(count: int) -> None:
            self._left -= count
            if self._left < 0:
                raise self._too_large(name)

        return _layer(inner, name, spend)

    def _too_large(self, name: str) -> UnreadableTextError:
        return self._too_much(name, f"unpacks to more than {self._allowed:,} bytes, all layers added up")

    def _too_much(self, name: str, what: str) -> UnreadableTextError:
        todo = "If it is meant to be so, unpack it yourself and name the folder."
        return UnreadableTextError(what, reason="packed too much", where=name, todo=todo)


@contextmanager
def seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """`stream`, or a temporary copy of it on disk if it only goes forward."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, BLOCK_BYTES)
        copy.seek(0)
        yield cast(BinaryIO, copy)


def _open_zipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.flag_bits & 1:
        raise zipfile.BadZipFile("it is encrypted")
    return archive.open(member)
