"""The wire format of protocol buffers, as much of it as SentencePiece models need.

A message is a row of fields; each is a number and a value: an integer of variable length, 4 or 8 bytes, or a length
and that many bytes. Nothing is believed of a length before it is compared with the bytes there are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from rhapsode.base.errors import DamagedError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | memoryview


def fields(data: memoryview, where: str) -> Iterator[tuple[int, Value]]:
    """The number and value of each field of a message; strings, messages and numbers of fixed size are bytes.

    Raises:
        DamagedError: the bytes are no message.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position, where)
        number, kind = key >> 3, key & 7
        value: Value
        if kind == VARINT:
            value, position = _varint(data, position, where)
        else:
            if kind == BYTES:
                size, position = _varint(data, position, where)
            elif kind in (FIXED64, FIXED32):
                size = 8 if kind == FIXED64 else 4
            else:
                raise DamagedError(f"is not a protocol buffer (a field of the unknown type {kind})", where=where)
            if size > end - position:
                raise DamagedError("ends in the middle of a field", where=where)
            value = data[position : position + size]
            position += size
        if number == 0:
            raise DamagedError("is not a protocol buffer (a field has the number 0)", where=where)
        yield number, value


def integer(value: Value, where: str) -> int:
    """A field's value as a whole number, negative ones as two's complement of 64 bits."""
    if not isinstance(value, int):
        raise DamagedError("a number is missing where one must stand", where=where)
    return value - 2**64 if value >= 2**63 else value


def single(value: Value, where: str) -> float:
    """A field's value as a floating-point number of 32 bits."""
    if isinstance(value, int) or len(value) != 4:
        raise DamagedError("a floating-point number is missing where one must stand", where=where)
    number: float = struct.unpack("<f", value)[0]
    return number


def block(value: Value, where: str) -> memoryview:
    """A field's value as bytes."""
    if isinstance(value, int):
        raise DamagedError("a number stands where bytes must", where=where)
    return value


def string(value: Value, where: str) -> str:
    """A field's value as text."""
    try:
        return str(block(value, where), "utf-8")
    except UnicodeDecodeError:
        raise DamagedError("a text in it is not UTF-8", where=where) from None


def _varint(data: memoryview, position: int, where: str) -> tuple[int, int]:
    """The integer of variable length at `position`, and where it ends."""
    number = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (2**64 - 1), position
        shift += 7
    raise DamagedError("is not a protocol buffer (a number does not end)", where=where)
