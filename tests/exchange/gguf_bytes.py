"""GGUF files made byte by byte, a second way to write them: also such as no writer would."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
NUMBERS = (UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, UINT64, INT64, FLOAT64)
FORMATS = dict(zip(NUMBERS, "BbHhIifBQqd", strict=True))


class Typed(NamedTuple):
    """A metadata value with its type; of arrays also the type of their elements."""

    type: int
    value: object
    of: int | None = None


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def payload(typed: Typed) -> bytes:
    """A value without its type."""
    if typed.type == STRING:
        assert isinstance(typed.value, str | bytes)
        return string(typed.value)
    if typed.type == ARRAY:
        assert isinstance(typed.value, Sequence) and typed.of is not None
        items = [item if isinstance(item, Typed) else Typed(typed.of, item) for item in typed.value]
        return struct.pack("<IQ", typed.of, len(items)) + b"".join(map(payload, items))
    return struct.pack("<" + FORMATS[typed.type], typed.value)


def entry(key: str | bytes, typed: Typed) -> bytes:
    return string(key) + struct.pack("<I", typed.type) + payload(typed)


def tensor_info(name: str | bytes, shape: Sequence[int], type: int, offset: int) -> bytes:
    """Args: shape: outermost first, as numpy has it."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return string(name) + dimensions + struct.pack("<IQ", type, offset)


def gguf(
    entries: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    keys: int | None = None,
    tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file. Args: keys, tensors: the numbers that its head gives, when others than the true ones."""
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(infos) if tensors is None else tensors, len(entries) if keys is None else keys
    )
    head += b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment if infos else 0) + data


def small(seed: int = 0) -> bytes:
    """A file with every type of value and several tensors, some quantised."""
    numbers = np.random.default_rng(seed)
    entries = [
        entry("general.architecture", Typed(STRING, "llama")),
        *(entry(f"test.{type}", Typed(type, 1)) for type in FORMATS),
        *(entry(f"test.array.{type}", Typed(ARRAY, [0, 1, 1], type)) for type in FORMATS),
        entry("test.words", Typed(ARRAY, ["", "a", "日本", "🦙" * 9], STRING)),
        entry("test.nested", Typed(ARRAY, [Typed(ARRAY, [1, 2], INT32), Typed(ARRAY, ["x"], STRING)], ARRAY)),
    ]
    infos, data = [], b""
    for name, shape, type, size in (
        ("a.weight", (3, 8), 0, 96),
        ("b.weight", (5,), 0, 20),
        ("c.weight", (2, 64), 8, 136),
        ("d.weight", (1, 256), 12, 144),
        ("e.weight", (2, 3, 4), 1, 48),
    ):
        infos.append(tensor_info(name, shape, type, len(data)))
        data += numbers.integers(0, 120, size, dtype=np.uint8).tobytes()
        data += bytes(-len(data) % 32)
    return gguf(entries, infos, data)
