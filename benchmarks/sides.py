"""The two sides of the decoding benchmarks, ours and llama.cpp's, driven alike: given tokens are read, none is drawn.

Run by decode.py, one process for each side, which waits for a line and answers with one:

    facts                bytes of the weights that a step reads, and of a number in the cache, as JSON
    1x128+64             seconds of a measure; when it is first asked for, the fastest way is found out
    ways                 how each measure is run, as JSON
    logits 1x128+64 FILE puts those of its last text, after its last token, into a file (.npy)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rhapsode.base.progress import quantity
from rhapsode.base.random import generator

SHORTEST_TURN = 0.3  # seconds; what takes less is done again
TRIAL = 8  # tokens written to find out which way is fastest
TRIALS = 2  # of each way, in turn


@dataclass(frozen=True)
class Measure:
    """What is timed: writing `new` tokens of so many texts after prompts, or reading the prompts where none is new."""

    texts: int
    prompt: int
    new: int

    def __str__(self) -> str:
        return f"{self.texts}x{self.prompt}+{self.new}"

    @staticmethod
    def parse(text: str) -> Measure:
        """What `str` gave."""
        texts, _, tokens = text.partition("x")
        prompt, _, new = tokens.partition("+")
        return Measure(int(texts), int(prompt), int(new))

    @property
    def title(self) -> str:
        if not self.new:
            return f"prompt of {quantity(self.prompt, 'tokens')}"
        return "1 text" if self.texts == 1 else f"{self.texts} texts"

    @property
    def tokens(self) -> int:
        """Read or written in the time that is taken."""
        return self.texts * (self.new or self.prompt)

    def ids(self, vocabulary_size: int) -> npt.NDArray[np.int64]:
        """(texts, prompt + new), the same for every side."""
        shape = (self.texts, self.prompt + self.new)
        return generator(0, "decoding", self.texts, self.prompt).integers(0, vocabulary_size, shape)


class Room(Protocol):
    """The keys and values of some texts, and what was computed last."""

    def read(self, text: int, ids: Sequence[int], wanted: int = 1) -> None:
        """Read a text from its start; of so many of its last tokens the logits are wanted."""

    def write(self, ids: Sequence[int], past: int) -> None:
        """Read one more token of each text, after its first `past`; what else came after those is forgotten."""

    def logits(self) -> npt.NDArray[np.float32]:
        """(rows, vocabulary) of the last call: the wanted ones, or one for each text."""


class Side(Protocol):
    """A model, open.

    Attributes:
        weight_bytes: that a step reads.
        number_bytes: of a number in the cache, its share of a scale included.
    """

    vocabulary_size: int
    weight_bytes: int
    number_bytes: float

    def rooms(self, texts: int, tokens: int) -> Mapping[str, Room]:
        """Room for so many texts of so many tokens, by the ways in which they can be computed."""


def turn(room: Room, measure: Measure, ids: npt.NDArray[np.int64], most: int | None = None) -> float:
    """Do a measure once; its seconds. Prompts before new tokens must have been read.

    Args:
        ids: (texts, prompt + new).
        most: new tokens, where that is less.
    """
    if not measure.new:
        prompts = ids.tolist()
        begin = time.perf_counter()
        for text, prompt in enumerate(prompts):
            room.read(text, prompt)
        return time.perf_counter() - begin
    steps = ids[:, measure.prompt :][:, :most].T.tolist()
    begin = time.perf_counter()
    for past, step in enumerate(steps, start=measure.prompt):
        room.write(step, past)
    return time.perf_counter() - begin


def fastest(side: Side, measure: Measure) -> tuple[str, Room]:
    """The fastest way of a side to do a measure, its prompts read."""
    rooms = side.rooms(measure.texts, measure.prompt + measure.new)
    ids = measure.ids(side.vocabulary_size)
    for room in rooms.values():
        for text, prompt in enumerate(ids[:, : measure.prompt].tolist()):
            room.read(text, prompt)
    seconds = dict.fromkeys(rooms, float("inf"))
    for _ in range(TRIALS if len(rooms) > 1 else 0):
        for way, room in rooms.items():
            seconds[way] = min(seconds[way], turn(room, measure, ids, TRIAL))
    way = min(seconds, key=lambda way: seconds[way])
    return way, rooms[way]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder: ours; a GGUF file: llama.cpp")
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--cache-type", default="float32")
    parser.add_argument("--threads", type=int, required=True)
    a = parser.parse_args()
    side: Side
    if a.model.is_dir():
        from our_side import Ours

        side = Ours(a.model, a.blocks, a.threads, a.cache_type)
    else:  # without torch, whose OpenMP might take the place of its own
        from peers.llama_cpp_side import LlamaCpp

        side = LlamaCpp(a.model, a.threads)
    ways: dict[Measure, tuple[str, Room]] = {}
    for line in sys.stdin:
        match line.split():
            case ["facts"]:
                answer = json.dumps([side.weight_bytes, side.number_bytes])
            case ["ways"]:
                answer = json.dumps({str(measure): way for measure, (way, _) in ways.items()})
            case ["logits", name, path]:
                np.save(path, ways[Measure.parse(name)][1].logits()[-1], allow_pickle=False)
                answer = path
            case [name]:
                measure = Measure.parse(name)
                if measure not in ways:
                    ways[measure] = fastest(side, measure)
                _, room = ways[measure]
                ids, seconds = measure.ids(side.vocabulary_size), list[float]()
                while sum(seconds) < SHORTEST_TURN:
                    seconds.append(turn(room, measure, ids))
                answer = str(sum(seconds) / len(seconds))
            case _:
                raise SystemExit(f"{line!r} is not understood")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
