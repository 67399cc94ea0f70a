"""Spoils GGUF files in seeded ways and reads what comes of it.

    python -m tests.exchange.gguf_mutants FOLDER FIRST COUNT

FOLDER has sound files, *.gguf. Mutant n is always the same. Prints how many were read and how many refused, as JSON,
and each that crashed, hung, took too much memory or ended in anything but one error of Rhapsode's own.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import forked
from .forked import Files

NAME = "mutant.gguf"
LARGE = 300_000  # bytes from which building a tokenizer takes a second: done for every eighth mutant only

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ODD = [0, 1, 2, 7, 31, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


class Field(NamedTuple):
    """A number or a text in the head of a file, by its place and size."""

    what: str
    start: int
    size: int


def fields(data: bytes) -> Iterator[Field]:
    """What the head of a sound file consists of."""
    position = 0

    def number(what: str, format: str) -> tuple[int, Field]:
        nonlocal position
        size = struct.calcsize(format)
        field = Field(what, position, size)
        position += size
        return struct.unpack_from(f"<{format}", data, field.start)[0], field

    def text(what: str) -> Iterator[Field]:
        nonlocal position
        length, field = number(f"length of {what}", "Q")
        yield field
        yield Field(what, position, length)
        position += length

    def value(type: int) -> Iterator[Field]:
        nonlocal position
        if type == 8:
            yield from text("string")
        elif type == 9:
            of, field = number("type", "I")
            yield field
            count, field = number("count", "Q")
            yield field
            if of in SIZES:
                yield Field("numbers", position, count * SIZES[of])
                position += count * SIZES[of]
                return
            for _ in range(count):
                yield from value(of)
        else:
            yield Field("number", position, SIZES[type])
            position += SIZES[type]

    yield Field("magic", 0, 4)
    position = 4
    yield number("version", "I")[1]
    tensors, field = number("count", "Q")
    yield field
    keys, field = number("count", "Q")
    yield field
    for _ in range(keys):
        yield from text("name")
        type, field = number("type", "I")
        yield field
        yield from value(type)
    for _ in range(tensors):
        yield from text("name")
        dimensions, field = number("count", "I")
        yield field
        for _ in range(dimensions):
            yield number("dimension", "Q")[1]
        yield number("type", "I")[1]
        yield number("offset", "Q")[1]


def flip(data: bytearray, head: list[Field], rng: random.Random) -> None:
    end = head[-1].start + 8 if rng.random() < 0.8 else len(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        data[rng.randrange(min(end, len(data)))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, head: list[Field], rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def lengthen(data: bytearray, head: list[Field], rng: random.Random) -> None:
    data += rng.randbytes(rng.choice([1, 100, 10_000]))


def set_number(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """Huge counts, negative and enormous shapes, offsets anywhere, types that do not exist."""
    kinds = ["count", "type", "dimension", "offset", "length of name", "length of string", "number"]
    wanted = rng.choice(kinds)
    found = [field for field in head if field.what == wanted] or [field for field in head if field.what == "count"]
    field = rng.choice(found)
    old = int.from_bytes(data[field.start : field.start + field.size], "little")
    new = rng.choice([*ODD, old + 1, old - 1, old * 2, old + 32, old ^ (1 << rng.randrange(8 * field.size))])
    data[field.start : field.start + field.size] = (new % 2 ** (8 * field.size)).to_bytes(field.size, "little")


def set_id(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """Some numbers, the ids of special tokens among them, become small ones, or each other."""
    found = [field for field in head if field.what == "number" and field.size == 4]
    for field in rng.sample(found, min(len(found), rng.choice([1, 3, 6]))):
        data[field.start : field.start + 4] = struct.pack("<I", rng.choice([0, 1, 2, 3, rng.randrange(1000)]))


def overlap(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """One tensor's offset, or one name, becomes another's."""
    wanted = rng.choice(["offset", "name"])
    found = [field for field in head if field.what == wanted]
    if len(found) < 2:
        return
    one, other = rng.sample(found, 2)
    length = struct.pack("<Q", other.size)
    text = data[other.start : other.start + other.size]
    if wanted == "name":
        data[one.start - 8 : one.start + one.size] = length + text
    else:
        data[one.start : one.start + one.size] = text


def nest(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """An array of arrays of arrays in place of a value."""
    field = rng.choice([field for field in head if field.what == "type"])
    depth = rng.choice([2, 4, 5, 1000, 50_000])
    data[field.start : field.start + 4] = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth


def numbers(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """Numbers in an array become others: types, scores, character maps."""
    found = [field for field in head if field.what == "numbers" and field.size]
    if not found:
        flip(data, head, rng)
        return
    field = rng.choice(found)
    for _ in range(rng.choice([1, 10, 1000])):
        start = field.start + rng.randrange(field.size)
        size = min(rng.choice([1, 4]), field.start + field.size - start)
        data[start : start + size] = rng.choice(
            [bytes(size), b"\xff" * size, rng.randbytes(size), b"\x00\x00\xc0\x7f"[:size]]
        )


def texts(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """Strings become others, of other lengths or of no text."""
    found = [field for field in head if field.what in ("string", "name")]
    for field in sorted(rng.sample(found, min(len(found), rng.choice([1, 1, 3]))), key=lambda field: -field.start):
        old = bytes(data[field.start : field.start + field.size])
        choices = [b"", b"\xff", b" ", old + old, old[:-1], b"a" * 100_000, "🦙".encode() * 99, b"<0x41>", old[::-1]]
        new = rng.choice(choices)
        data[field.start - 8 : field.start + field.size] = struct.pack("<Q", len(new)) + new


def shuffle(data: bytearray, head: list[Field], rng: random.Random) -> None:
    """A run of bytes goes, comes twice, or moves."""
    start, size = rng.randrange(len(data)), rng.choice([1, 4, 8, 32, 1000])
    run = bytes(data[start : start + size])
    if rng.random() < 0.6:
        del data[start : start + size]
    place = rng.randrange(len(data) + 1)
    data[place:place] = run


MUTATIONS: list[Callable[[bytearray, list[Field], random.Random], None]] = [
    *(
        flip,
        cut,
        lengthen,
        set_number,
        set_number,
        set_number,
        set_id,
        overlap,
        nest,
        numbers,
        numbers,
        texts,
        texts,
        shuffle,
    )
]


def mutant(sound: list[bytes], heads: list[list[Field]], number: int) -> tuple[str, bytes]:
    """Mutant `number`, and what was done."""
    rng = random.Random(number)
    which = rng.randrange(len(sound))
    data = bytearray(sound[which])
    mutation = rng.choice(MUTATIONS)
    mutation(data, heads[which], rng)
    return mutation.__name__, bytes(data)


def read(folder: Path, number: int) -> None:
    """Do with a file all that can be done with it."""
    from rhapsode.exchange.gguf_file import GgufFile
    from rhapsode.exchange.gguf_tokenizer import tokenizer_from_gguf

    path = folder / NAME
    file = GgufFile(path)
    for name in file.tensors:
        file.tensor(name).tobytes()
    if "tokenizer.ggml.model" in file.metadata and (path.stat().st_size < LARGE or number % 8 == 0):
        tokenizer = tokenizer_from_gguf(file.metadata)
        ids = tokenizer.encode("To be,  or not\n to be: naïve 日本 🦙 <|endoftext|> 1984 </s>")
        tokenizer.decode(ids)
        _ = tokenizer.frame


def main(folder: Path, first: int, count: int) -> None:
    # Here and not in each child, so that what the libraries take is not the mutants'.
    import gguf  # noqa: F401
    import tokenizers  # noqa: F401

    import rhapsode.exchange.gguf_tokenizer  # noqa: F401

    sound = [path.read_bytes() for path in sorted(folder.glob("*.gguf"))]
    heads = [list(fields(data)) for data in sound]

    def made(number: int) -> tuple[str, Files]:
        name, data = mutant(sound, heads, number)
        return name, {NAME: data}

    forked.report(*forked.run(made, read, first, count))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
