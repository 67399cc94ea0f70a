"""Opens damaged tokenizer files one by one, as a program of its own: python mutants.py FOLDER FIRST LAST

FOLDER holds one tokenizer. Mutant n is a pure function of n and its files. Before each, its number is printed; the
program ends by itself when one is done in no way that it may be: a second line says how. A hang kills it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from rhapsode.base.errors import RhapsodeError
from rhapsode.tokenizer.tokenizer import Tokenizer

SECONDS = 5
MEMORY = 100 * 2**20  # bytes, beyond twice the files
LARGEST = 8 * 2**20  # bytes of a mutant

TEXTS = ("Hello  wörld 🦙 1984\n\n ### e\u0301ｱ\u0301 </s>", "a" * 60 + "!" + "ab" * 40 + " " * 70, "")
NUMBERS = (
    "-1",
    "0",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "1e308",
    "9" * 5000,
)
STRINGS = (
    "",
    "a",
    "\ud800",
    "\x00",
    "(a+)+$",
    "(a|aa)+(b|bb)*!!",
    "(?:" * 3000,
    "(" * 400 + "a" + ")" * 400,
    "[" * 50,
    "\\p{L}{1000}{1000}",
    "a{1,99999}b{1,99999}",
    "(?=a*)*",
    "",
    "▁" * 1000,
    "[UNK]",
    "x" * 100_000,
)
TYPES = (
    *("BPE", "Unigram", "WordPiece", "WordLevel", "Sequence", "Precompiled", "Replace", "Split", "ByteLevel", "Strip"),
    *("Metaspace", "TemplateProcessing", "BertProcessing", "Fuse", "ByteFallback", "CTC", "WordPiece", "Digits"),
    *("FixedLength", "UnicodeScripts", "StripAccents", "Prepend", "NFKC", "Nmt", "Lowercase", "Truncate"),
)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """`data` with one to three kinds of damage."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        kinds = [_flip, _cut, _insert, _repeat, _remove, _number, _ones]
        kinds += [_json] * 5 if data.lstrip()[:1] == b"{" else [_line, _line]
        data = draw.choice(kinds)(data, draw)[:LARGEST]
    return data


def _place(data: bytes, draw: random.Random) -> int:
    """A place in `data`, often near its beginning, where the rules stand, or its end."""
    if draw.random() < 0.3:
        return draw.randrange(min(200, len(data)) + 1)
    if draw.random() < 0.2:
        return len(data) - draw.randrange(min(1000, len(data)) + 1)
    return draw.randrange(len(data) + 1)


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20, 1000))):
        if changed:
            changed[min(_place(data, draw), len(changed) - 1)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: _place(data, draw)]


def _insert(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    inserted = draw.choice(
        (draw.randbytes(draw.randrange(1, 50)), b"[" * 100_000, b"\n" * 1000, b"\xff\xff\xff\xff\x0f")
    )
    return data[:place] + inserted + data[place:]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + data[place : place + draw.choice((10, 1000, 50_000))] * draw.choice((2, 3, 10)) + data[place:]


def _remove(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + data[place + draw.choice((1, 4, 100, 10_000)) :]


def _number(data: bytes, draw: random.Random) -> bytes:
    """A number becomes another, or twelve bytes a huge length."""
    places = [place for place in (_place(data, draw) for _ in range(50)) if data[place : place + 1].isdigit()]
    if not places:
        place = _place(data, draw)
        return data[:place] + b"\xff" * 9 + b"\x01" + data[place + draw.randrange(12) :]
    start = end = places[0]
    while data[end : end + 1].isdigit():
        end += 1
    return data[:start] + draw.choice(NUMBERS).encode() + data[end:]


def _ones(data: bytes, draw: random.Random) -> bytes:
    place = _place(data, draw)
    return data[:place] + draw.choice((b"\xff", b"\x00")) * draw.choice((1, 4, 8)) + data[place + 4 :]


def _line(data: bytes, draw: random.Random) -> bytes:
    """A line is moved, doubled, or much longer."""
    lines = data.split(b"\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one] = draw.choice((lines[other], lines[one] * 2000, lines[one] + b" " + lines[other], b" ", b"\xf0\x9f"))
    return b"\n".join(lines)


def _json(data: bytes, draw: random.Random) -> bytes:
    """A value somewhere becomes another, a field appears twice, or all of it is nested deeply."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(data, draw)
    for _ in range(draw.choice((1, 1, 2, 4))):
        holder: Any = content
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            keys = [key for key in keys if key not in ("vocab", "merges")] or keys if draw.random() < 0.7 else keys
            key = draw.choice(keys)
            if isinstance(holder[key], dict | list) and draw.random() < 0.8:
                holder = holder[key]
                continue
            holder[key] = _value(holder[key], draw, content)
            break
    try:
        text = json.dumps(content)
    except RecursionError:
        return b"[" * 1000 + data
    if draw.random() < 0.1:
        field = draw.choice(("model", "normalizer", "added_tokens", "vocab"))
        text = text.replace(f'"{field}":', f'"{field}": null, "{field}":', 1)
    return text.encode("ascii")


def _value(old: Any, draw: random.Random, content: Any) -> Any:
    kind = draw.randrange(9)
    if kind == 0:
        return json.loads(draw.choice(NUMBERS[:-1]))
    if kind == 1:
        return draw.choice(STRINGS)
    if kind == 2:
        return draw.choice((None, True, False, [], {}, [[]], {"": None}))
    if kind == 3:
        deep: Any = old
        field = draw.choice(("normalizers", "pretokenizers", "decoders", "processors"))
        for _ in range(draw.choice((5, 100, 400))):
            deep = [deep] if draw.random() < 0.5 else {"type": "Sequence", field: [deep]}
        return deep
    if kind == 4 and isinstance(old, str):
        return draw.choice(TYPES)
    if kind == 5 and isinstance(content, dict):
        with contextlib.suppress(RecursionError):
            return copy.deepcopy(draw.choice([*content.values()]))
    if kind == 6 and isinstance(old, str):
        return old * draw.choice((2, 1000))
    if kind == 7 and isinstance(old, int):
        return old + draw.choice((1, -1, 1000, 2**31))
    if kind == 8:
        return {
            "type": draw.choice(TYPES),
            "pattern": {"Regex": draw.choice(STRINGS)},
            "content": draw.choice(STRINGS),
        } | {
            "behavior": "Isolated",
            "invert": draw.random() < 0.5,
        }
    return old


def use(folder: Path) -> str:
    """Open the tokenizer and use it as everything here does; what it came to, in one word."""
    try:
        tokenizer = Tokenizer.load(folder)
        tokenizer.prepare()
        assert len(tokenizer.frame) == 2
        for text in TEXTS:
            try:
                tokenizer.decode(tokenizer.encode(text))
            except RhapsodeError:
                continue
        return "opened"
    except RhapsodeError as error:
        assert "\n" not in error.message and len(error.message) < 2000, error.message
        return "refused"


def memory() -> int:
    """The bytes this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path, first: int, last: int) -> None:
    originals = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    counts = {"opened": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, last):
            print(number, flush=True)
            draw = random.Random(f"{folder.name} {number}")
            damaged = draw.choice(sorted(originals))
            content = originals | {damaged: mutate(originals[damaged], draw)}
            for file, data in content.items():
                (Path(name) / file).write_bytes(data)
            before, peak_before = memory(), peak()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            with contextlib.redirect_stderr(io.StringIO()):
                result = use(Path(name))
            signal.setitimer(signal.ITIMER_REAL, 0)
            counts[result] += 1
            grown = peak() - before
            if peak() > peak_before and grown > 2 * sum(map(len, content.values())) + MEMORY:
                sys.exit(f"mutant {number} took {grown / 2**20:.0f} MB")
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
