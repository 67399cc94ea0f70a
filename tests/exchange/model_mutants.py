"""Spoils model folders and checkpoints of llama2.c in seeded ways and opens what comes of it.

    python -m tests.exchange.model_mutants FOLDER KIND FIRST COUNT

FOLDER has sound ones, each a folder. Of them KIND is spoilt: "safetensors", "config.json" or "llama2.c". Mutant n is
always the same. Prints as JSON how many ended how, and each that crashed, hung, took too much memory, ran code or
ended in anything but one error of Rhapsode's own.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import forked
from .forked import Files

ODD = [-(2**63), -(2**31), -1, 0, 1, 3, 7, 255, 2**16, 2**20, 2**26, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**64]
NUMBERS = [*ODD, 10**400, 0.0, 1e-40, 0.5, 1e38, float("nan"), float("inf"), -float("inf")]
OTHERS = [None, True, False, "", "evil.Model", "\ud800", "x" * 100_000, [], {}, [[]], {"": None}, [0] * 1000]
DEPTHS = [3, 100, 900, 5000, 100_000]

EVIL = b"from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Model: pass\n"
"""Code that lies in each folder as evil.py, and must never run: it would leave a file."""
CODE = ["auto_map", "custom_pipelines", "trust_remote_code", "attn_implementation", "kernel_config", "architectures"]


# --- bytes of any file ---


def flip(data: bytearray, draw: random.Random) -> None:
    end = min(len(data), 2000) if draw.random() < 0.7 else len(data)  # most mutants shall be of the head
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def lengthen(data: bytearray, draw: random.Random) -> None:
    data += draw.randbytes(draw.choice([1, 100, 10_000]))


def move(data: bytearray, draw: random.Random) -> None:
    """A run of bytes goes, comes twice, or moves."""
    start, size = draw.randrange(len(data)), draw.choice([1, 4, 8, 32, 1000])
    run = bytes(data[start : start + size])
    if draw.random() < 0.6:
        del data[start : start + size]
    place = draw.randrange(len(data) + 1)
    data[place:place] = run


def nest(data: bytearray, draw: random.Random) -> None:
    """Brackets, very many."""
    place, depth = draw.randrange(min(len(data), 2000)), draw.choice(DEPTHS)
    data[place:place] = draw.choice([b"[", b'{"a":', b"[{}," * 2]) * depth


BYTES = (flip, cut, lengthen, move, nest)


# --- JSON ---


def nested(value: Any, draw: random.Random) -> Any:
    """A value in lists or objects, deep."""
    for _ in range(draw.choice([1, 50, 400])):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value


def spoil_value(old: Any, draw: random.Random) -> Any:
    choice = draw.random()
    if choice < 0.4 or isinstance(old, bool) or old is None:
        return draw.choice([*NUMBERS, *OTHERS])
    if isinstance(old, int):
        return draw.choice([old + 1, old - 1, 2 * old, -old, old ^ (1 << draw.randrange(40)), float(old), str(old)])
    if isinstance(old, float):
        return draw.choice([-old, old * 1e10, old / 1e10, str(old), [old]])
    if isinstance(old, list) and old:
        return draw.choice([old[:-1], old + old, old[::-1], [spoil_value(old[0], draw), *old[1:]], old * 100])
    if choice < 0.6:
        return nested(old, draw)
    return draw.choice([str(old) * 2, str(old)[:-1], str(old).upper(), [old]])


def spoil_json(content: Any, draw: random.Random) -> bytes:
    """Some values become others, go, come twice under one name, or are swapped."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        holder = content
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw.choice(keys)
            if isinstance(holder[key], dict | list) and draw.random() < 0.7:
                holder = holder[key]
                continue
            change = draw.random()
            if change < 0.7:
                holder[key] = spoil_value(holder[key], draw)
            elif change < 0.8:
                del holder[key]
            elif isinstance(holder, dict):
                other = draw.choice(keys)
                holder[key], holder[other] = holder[other], holder[key]
            break
    text = json.dumps(content)
    if draw.random() < 0.1 and isinstance(content, dict) and content:
        name, value = draw.choice(sorted(content)), draw.choice([*NUMBERS, *OTHERS, *content.values()])
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(value)}}}"
    return text.encode()


# --- each kind of file ---


def spoil_config(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    choice = draw.random()
    if choice < 0.2:
        return _bytes(data, draw)
    content = json.loads(data)
    if choice < 0.35:
        for key in draw.sample(CODE, 2):
            content[key] = draw.choice(
                ["evil.Model", {"AutoModel": "evil.Model", "AutoConfig": "evil"}, ["evil"], True]
            )
        return "code", json.dumps(content).encode()
    return "values", spoil_json(content, draw)


def spoil_safetensors(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    choice = draw.random()
    if choice < 0.3:
        return _bytes(data, draw)
    (size,) = struct.unpack_from("<Q", data)
    if choice < 0.4:
        odd = draw.choice([*ODD, size + 1, size - 1, size + 8, len(data), len(data) - 8])
        return "size of the header", struct.pack("<Q", odd % 2**64) + data[8:]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if choice < 0.7:
        head = spoil_json(header, draw)
        return "header", struct.pack("<Q", len(head)) + head + body
    names = [name for name in header if name != "__metadata__"]
    one, other = draw.sample(names, 2) if len(names) > 1 else names * 2
    tensor = header[one]
    start, end = tensor["data_offsets"]
    if choice < 0.8:
        what = "offsets"
        tensor["data_offsets"] = draw.choice(
            [
                header[other]["data_offsets"],
                [end, start],
                [start, start],
                [start + 4, end + 4],
                [start - 4, end - 4],
                [0, len(body)],
                [0, 2**63],
                [2**64 - 4, 2**64],
                [len(body), len(body) + end - start],
            ]
        )
    elif choice < 0.9:
        what = "shape"
        shape = tensor["shape"]
        tensor["shape"] = draw.choice(
            [shape[::-1], [*shape, 1], [1, *shape], [2**32, 2**32], [2**63, 2, 0], [-n for n in shape], [0], []]
        )
    elif choice < 0.95:
        what = "type"
        kinds = ["F64", "F16", "BF16", "I8", "U8", "BOOL", "I64", "F8_E4M3", "F4", "C64", "PICKLE", ""]
        tensor["dtype"] = draw.choice(kinds)
        if draw.random() < 0.5:  # as large as its numbers then are
            body = body.ljust(2 * len(body), b"\0")
    else:
        what = "names"
        text = json.dumps(header).replace(
            json.dumps(one), json.dumps(draw.choice([other, "__metadata__", "", "/../x"]))
        )
        head = text.encode()
        return what, struct.pack("<Q", len(head)) + head + body
    head = json.dumps(header).encode()
    return what, struct.pack("<Q", len(head)) + head + body


def spoil_checkpoint(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    if draw.random() < 0.4:
        return _bytes(data, draw)
    changed = bytearray(data)
    start = 4 * draw.randrange(10)
    (old,) = struct.unpack_from("<i", data, start)
    new = draw.choice([*ODD, old + 1, old - 1, 2 * old, old // 2, -old, old ^ (1 << draw.randrange(31))])
    changed[start : start + 4] = struct.pack("<I", new % 2**32)
    return "size", bytes(changed)


def spoil_pieces(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    if draw.random() < 0.5:
        return _bytes(data, draw)
    places, place = [], 4
    while place < len(data):
        places.append(place)
        place += 8 + int(struct.unpack_from("<i", data, place + 4)[0])
    changed = bytearray(data)
    place = draw.choice(places)
    if draw.random() < 0.5:
        changed[place + 4 : place + 8] = struct.pack("<I", draw.choice(ODD) % 2**32)
        return "length", bytes(changed)
    changed[place : place + 4] = struct.pack("<f", draw.choice([float("nan"), float("inf"), -1e38, 0.0]))
    return "score", bytes(changed)


def _bytes(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    changed = bytearray(data)
    mutation = draw.choice(BYTES)
    mutation(changed, draw)
    return mutation.__name__, bytes(changed)


Spoil = Callable[[bytes, random.Random], tuple[str, bytes]]

KINDS: dict[str, tuple[tuple[str, Spoil], ...]] = {
    "safetensors": ((".safetensors", spoil_safetensors), (".index.json", spoil_config)),
    "config.json": (("config.json", spoil_config),),
    "llama2.c": (("model.bin", spoil_checkpoint), ("tok.bin", spoil_pieces)),
}
"""What is spoilt of each kind: the ends of the files' names, and how."""


def mutant(sound: list[Files], kind: str, number: int) -> tuple[str, Files]:
    """Mutant `number`, and what was done."""
    draw = random.Random(f"{kind} {number}")
    files = draw.choice(sound)
    choices = [(name, spoil) for end, spoil in KINDS[kind] for name in sorted(files) if name.endswith(end)]
    weights = [4 if name.endswith((".safetensors", "model.bin")) else 1 for name, _ in choices]
    ((name, spoil),) = draw.choices(choices, weights)
    what, data = spoil(files[name], draw)
    return what, {**files, name: data, "evil.py": EVIL}


def read(folder: Path, number: int) -> None:
    """Open a model and let it compute, which reads every number of it."""
    import torch

    from rhapsode.exchange.opening import open_model
    from rhapsode.exchange.parity import Ours, Prompt

    file = folder / "model.bin"
    opened = open_model(file if file.exists() else folder)
    ids = opened.tokenizer.encode("To be, or not")[:3]
    with torch.no_grad():
        Ours(opened.model).logits(Prompt(tuple(ids), (0,), (0,)))
    for parameter in opened.model.parameters():
        parameter.detach().numpy().tobytes()


def sound_ones(folder: Path, kind: str) -> list[Files]:
    """The files of each sound model in a folder that has what is to be spoilt."""
    found = [{path.name: path.read_bytes() for path in sorted(one.iterdir())} for one in sorted(folder.iterdir())]
    ends = tuple(end for end, _ in KINDS[kind])
    return [files for files in found if any(name.endswith(ends) for name in files)]


def main(folder: Path, kind: str, first: int, count: int) -> None:
    import torch

    torch.set_num_threads(1)
    for one in folder.iterdir():  # here and not in each child, so that what the libraries take is not the mutants'
        read(one, 0)
    forked.report(*forked.run(partial(mutant, sound_ones(folder, kind), kind), read, first, count))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
