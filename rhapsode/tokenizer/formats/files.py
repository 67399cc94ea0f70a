"""Reading the files of tokenizers: whole, bounded, packed by gzip or not."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

from rhapsode.base.errors import DamagedError, InputError, shown

LARGEST_FILE = 64 * 2**20  # bytes; the largest published definitions have 35 MB
LARGEST_UNPACKED = 32 * 2**20  # bytes that a packed file may have unpacked
LARGEST_VOCABULARY = 2**22  # tokens; the largest published ones have 300,000


def read_bytes(file: Path) -> bytes:
    """The content of `file`, unpacked when it is packed by gzip.

    Raises:
        InputError: it cannot be read, or is too large to belong to a tokenizer.
        DamagedError: it cannot be unpacked.
    """
    where = str(file)
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"is larger than {LARGEST_FILE // 2**20} MB: it belongs to no tokenizer", where=where)
        data = file.read_bytes()
    except FileNotFoundError:
        raise InputError("the file does not exist", where=where) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=where) from None
    return _unpacked(data, where) if data.startswith(b"\x1f\x8b") else data


def _unpacked(data: bytes, where: str) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(data, LARGEST_UNPACKED)
    except zlib.error as error:
        raise DamagedError(f"cannot be unpacked ({error})", where=where) from None
    if unpacker.unconsumed_tail:
        raise InputError(
            f"has more than {LARGEST_UNPACKED // 2**20} MB unpacked", where=where, todo="Unpack it with gunzip first."
        )
    if not unpacker.eof:
        raise DamagedError("cannot be unpacked (its end is missing)", where=where)
    return unpacked


def as_text(data: bytes, where: str) -> str:
    """`data` as UTF-8 text.

    Raises:
        DamagedError: it is none.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(f"is not UTF-8 text (byte {error.start})", where=where) from None


def lines(text: str) -> list[str]:
    """The lines of `text`, as it is read in text mode: no other sign than a line end ends one."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def vocabulary_of(value: Any, where: str) -> dict[str, int]:
    """The id of each token from the JSON of a vocabulary.

    Raises:
        DamagedError: it is no object of ids, or two tokens share one.
    """
    if not isinstance(value, dict) or not value:
        raise DamagedError("is not a JSON object of tokens and their ids", where=where)
    by_id: dict[int, str] = {}
    for token, id in value.items():
        require_id(id, token, where)
        if id in by_id:
            raise DamagedError(f"the tokens {shown(by_id[id])} and {shown(token)} both have the id {id}", where=where)
        by_id[id] = token
    return value


def require_id(id: Any, token: str, where: str) -> None:
    """Refuse what is no id of a token."""
    if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < LARGEST_VOCABULARY:
        raise DamagedError(
            f"{shown(id)} is no id for the token {shown(token)}",
            where=where,
            todo=f"Ids go from 0 to {LARGEST_VOCABULARY - 1:,}.",
        )
