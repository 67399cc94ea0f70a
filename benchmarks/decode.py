"""Decoding on a CPU beside llama.cpp: the same weights, threads and tokens, sides in turn, each in its own process.

    python benchmarks/decode.py [--shapes 135m 500m stories260K small] [--rounds 5] [--work FOLDER]

Two shapes of Llama with random weights: 128 tokens after 128 of one text, fewer of 8 and 32 texts together, a prompt
of 512. Two models that fit the cache: stories260K, and one trained here (--small); llama.cpp with one thread and with
all, of which the better counts. llama.cpp reads our own GGUF export, with or without its flash attention, whichever is
faster. Nothing is drawn: the tokens are given, and what each side computes after them is held to what torch computes.
A step reads every weight once, and what the cache holds of its texts; the memory's limit is measured in each round.
Ends with 1 if a side computes something else, or if ours is slower than it shall be. --work keeps the random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from our_side import exported, in_bits, step_for
from peers.llama_cpp_side import about
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sides import Measure
from turns import Worker

from rhapsode.base.machine import memory_bandwidth, prepare, processor, threads
from rhapsode.exchange.opened import Opened
from rhapsode.exchange.opening import open_model
from rhapsode.inference.cache_type import NUMBER_BYTES
from rhapsode.inference.engine import Engine
from rhapsode.inference.sampling import Sampling
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.decoder import Decoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.model import new_model
from rhapsode.tokenizer.train import train_tokenizer

SIDES = Path(__file__).with_name("sides.py")
STORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "weights" / "stories260K" / "stories260K.bin"
PUBLISHED = "expected_greedy_200.txt"  # beside it: what run.c writes

SHAPES = {
    "tiny": (512, 64, 2, 4, 2, 16, 160, 1024),
    "135m": (49152, 576, 30, 9, 3, 64, 1536, 2048),
    "500m": (151936, 896, 24, 14, 2, 64, 4864, 2048),
}
"""Vocabulary, width, layers, heads, key-value heads, their width, feed-forward, context."""
SMALL = ("stories260K", "small")
COUNTERPART = {32: "F32", 8: "Q8_0", 4: "Q4_0"}
"""llama.cpp's type of as many bits."""
REST = 0.02  # seconds, in which the threads of the side before fall asleep
PROMPT, PREFILL, TEXTS = 128, 512, (8, 32)
FEWER = 4  # times: tokens of each of several texts

WANTED_ALONE = {
    "135m": {8: 1.5, 4: 1.3},
    "500m": {8: 1.3, 4: 1.3},
    "stories260K": {32: 1.0},
    "small": {32: 1.0, 8: 1.0, 4: 1.0},
}
WANTED_TOGETHER = {name: {8: 1.2, 4: 1.2} for name in ("135m", "500m")}
WANTED_PROMPT = {name: {8: 1.0, 4: 1.0} for name in ("135m", "500m")}
"""How many times as fast as llama.cpp ours shall be, at so many bits."""

FARTHEST = {"F32": 0.01, "F16": 0.01, "Q8_0": 0.1, "Q4_0": 0.8}
"""From the logits that torch computes in fp32, relative; what computes something else is off by 1.4,
and Q4_0 of random weights by up to 0.61 in 24 layers."""


@dataclass
class Seat:
    """One side of one model, in its process.

    Attributes:
        type: of its weights; ours by the name of llama.cpp's.
        weights: bytes that each step reads.
        cached: bytes of one token's keys and values.
        seconds: of each measure, by rounds.
        ways: how each measure is computed.
        distances: of each measure's logits from torch's, relative.
    """

    name: str
    bits: int | None
    type: str
    worker: Worker
    weights: int = 0
    cached: float = 0.0
    seconds: dict[Measure, list[float]] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    distances: dict[Measure, float] = field(default_factory=dict)

    def rates(self, measure: Measure) -> list[float]:
        """Tokens in a second, by rounds."""
        return [measure.tokens / seconds for seconds in self.seconds[measure]]

    def bytes_of_step(self, measure: Measure) -> float:
        """The weights, and the keys and values of all texts half-way."""
        return self.weights + measure.texts * self.cached * (measure.prompt + measure.new / 2)


def random_model(folder: Path, sizes: Sequence[int]) -> Opened:
    """A Llama with random weights, as written into a folder the first time."""
    path = folder / "32-bits"
    if not path.exists():
        model = new_model(FAMILIES["llama"].config(*sizes, tied_embeddings=True)).eval()
        noise = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # gains stay 1
                torch.nn.init.normal_(parameter, std=0.02, generator=noise)
        in_bits(Opened(model, train_tokenizer(["text"], "byte"), (), "", (), ""), folder, 32)
    return open_model(path)


def seats_for(opened: Opened, name: str, a: argparse.Namespace, folder: Path, blocks: int) -> list[Seat]:
    """The sides of a model, started: ours in all bits, llama.cpp in all types and with all counts of threads.

    Args:
        folder: for folders and GGUF files of it.
        blocks: of our cache.
    """
    bits = [n for n in a.bits if name != "stories260K" or n == 32]
    types = a.types or ([COUNTERPART[n] for n in bits] if name in SMALL else ["F16", "Q8_0", "Q4_0"])
    counts = sorted({1, a.threads}) if name in SMALL else [a.threads]
    places = {n: in_bits(opened, folder, n) for n in bits}
    paths = {type: exported(opened, folder, type) for type in types}

    def worker(path: Path, threads: int, *words: str) -> Worker:
        return Worker(SIDES, str(path), "--threads", str(threads), *words, threads=threads)

    seats = []
    for n in bits:
        words = ("--blocks", str(blocks), "--cache-type", a.cache_type)
        seats.append(Seat(f"rhapsode, {n} bits", n, COUNTERPART[n], worker(places[n], a.threads, *words)))
    for type, path in paths.items():
        for n in counts:
            told = f", threads: {n}" if len(counts) > 1 else ""
            seats.append(Seat(f"llama.cpp {type}{told}", None, type, worker(path, n)))
    return seats


@torch.no_grad()
def expected(opened: Opened, measures: Sequence[Measure]) -> dict[Measure, npt.NDArray[np.float32]]:
    """The logits (vocabulary,) after the last token of each measure's last text, computed plainly."""
    assert isinstance(opened.model, Decoder)
    size = opened.model.config.vocabulary_size
    return {
        measure: opened.model(torch.from_numpy(measure.ids(size)[-1:]))[0, -1].numpy().copy() for measure in measures
    }


def warm_up(seat: Seat, logits: dict[Measure, npt.NDArray[np.float32]], folder: Path) -> None:
    """Each measure once, for what is done only the first time; and what comes out, beside what is expected."""
    for measure, right in logits.items():
        seat.worker.ask(str(measure))
        found = np.load(seat.worker.ask(f"logits {measure} {folder / 'logits.npy'}"), allow_pickle=False)
        seat.distances[measure] = float(np.linalg.norm(found - right) / np.linalg.norm(right))
    seat.ways = json.loads(seat.worker.ask("ways"))


def middle(values: Sequence[float], form: str) -> tuple[str, str, str]:
    """The median, the least and the most."""
    return tuple(f"{value:{form}}" for value in (statistics.median(values), min(values), max(values)))  # type: ignore[return-value]


def table_of_speeds(name: str, seats: Sequence[Seat], measures: Sequence[Measure], limit: float) -> Table:
    table = Table(title=name)
    for heading in ("", "tokens/s", "least", "most", "MB a token", "GB/s", "of limit", "off by", "way"):
        table.add_column(heading, justify="left" if heading in ("", "way") else "right")
    for measure in measures:
        table.add_row(f"[bold]{measure.title}")
        for number, seat in enumerate(seats):
            rates = seat.rates(measure)
            memory = ("", "", "")
            if measure.new:
                size = seat.bytes_of_step(measure) / measure.texts
                speed = size * statistics.median(rates)
                memory = (f"{size / 1e6:,.1f}", f"{speed / 1e9:.1f}", f"{speed / limit:.0%}")
            cells = (*middle(rates, ",.1f"), *memory, f"{seat.distances[measure]:.1e}", seat.ways[str(measure)])
            table.add_row(seat.name, *cells, end_section=number == len(seats) - 1)
    return table


def table_of_ratios(name: str, seats: Sequence[Seat], measures: Sequence[Measure]) -> tuple[Table, list[str]]:
    """Ours beside the best of llama.cpp's with as many bits, or with any for a prompt; and what is too slow."""
    table, slow = Table(title=f"{name}: rhapsode / llama.cpp"), []
    for heading in ("", "", "beside", "ratio", "least", "most", "wanted"):
        table.add_column(heading, justify="left" if heading in ("", "beside") else "right")
    for measure in measures:
        wanted = WANTED_PROMPT if not measure.new else WANTED_ALONE if measure.texts == 1 else WANTED_TOGETHER
        for ours in seats:
            peers = [seat for seat in seats if seat.bits is None and (not measure.new or seat.type == ours.type)]
            if ours.bits is None or not peers:
                continue
            best = max(peers, key=lambda peer: statistics.median(peer.rates(measure)))
            pairs = zip(ours.rates(measure), best.rates(measure), strict=True)
            ratios = [one / other for one, other in pairs]
            least = wanted.get(name, {}).get(ours.bits)
            missed = least is not None and statistics.median(ratios) < least
            if missed:
                slow.append(f"{name}, {measure.title}, {ours.bits} bits: less than {least:g} times {best.name}")
            verdict = "" if least is None else f"{least:g} {'[red]missed' if missed else '[green]reached'}"
            table.add_row(measure.title, ours.name, best.name, *middle(ratios, ".2f"), verdict)
    return table, slow


def story(folder: Path, opened: Opened) -> str:
    """What our fp32 step writes from the beginning of a text, 200 tokens, the likeliest each."""
    context = opened.model.config.context_length
    step, _ = step_for(folder, -(-context // BLOCK))
    engine = Engine(step, opened.tokenizer, context)
    sampling = Sampling(temperature=0, max_new_tokens=200)
    request = engine.submit(opened.tokenizer.frame[0], [sampling], opened.end_ids)
    return "".join(piece.text for piece in engine.pieces(request))


def compare(name: str, a: argparse.Namespace, work: Path, on: torch.device) -> list[str]:
    """Measure one model and print its tables; what is not as it shall be, a sentence each."""
    with tempfile.TemporaryDirectory(prefix="rhapsode-decode-") as temporary:
        folder = Path(temporary) if name in SMALL else work / name
        folder.mkdir(parents=True, exist_ok=True)
        if name in SMALL:
            opened = open_model(STORIES if name == "stories260K" else a.small)
        else:
            opened = random_model(folder, SHAPES[name])
        measures = [Measure(1, PROMPT, a.new_tokens)]
        if name not in SMALL:
            measures += [Measure(texts, PROMPT, max(1, a.new_tokens // FEWER)) for texts in TEXTS]
            measures += [Measure(1, PREFILL, 0)]
        blocks = sum(measure.texts * -(-(measure.prompt + measure.new) // BLOCK) for measure in measures)
        seats = seats_for(opened, name, a, folder, blocks)
        logits = expected(opened, measures)
        sizes = opened.model.config.towers[-1]
        for seat in seats:  # waits until all are open: what is measured next wants the machine for itself
            seat.weights, number = json.loads(seat.worker.ask("facts"))
            seat.cached = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * number
        for seat in track(seats, f"{name}: warming up", transient=True):
            warm_up(seat, logits, Path(temporary))
        limits, foreign = list[float](), list[float]()
        for number in track(range(a.rounds), f"{name}: rounds", transient=True):
            foreign.append(psutil.cpu_percent(interval=0.5))  # all sides wait
            limits.append(memory_bandwidth(on))
            for measure in measures:
                for seat in seats if number % 2 == 0 else seats[::-1]:
                    time.sleep(REST)
                    seat.seconds.setdefault(measure, []).append(float(seat.worker.ask(str(measure))))
        for seat in seats:
            seat.worker.close()
        parameters = f"{opened.model.config.parameters / 1e6:.2f} million parameters"
        print(f"\n{name}, {parameters}; medians of {a.rounds}; {', '.join(map(str, measures))}")
        print("memory read: {} GB/s ({} to {})".format(*middle([limit / 1e9 for limit in limits], ".1f")), end="; ")
        print("other work: {} % of the processor ({} to {})".format(*middle(foreign, ".0f")))
        Console(width=130).print(table_of_speeds(name, seats, measures, statistics.median(limits)))
        ratios, faults = table_of_ratios(name, seats, measures)
        Console(width=130).print(ratios)
        for seat in seats:
            farthest = max(seat.distances.values())
            if not farthest <= FARTHEST[seat.type]:
                faults.append(f"{name}, {seat.name}: computes something else, its logits are {farthest:.2g} off")
        if name == "stories260K":
            right = STORIES.with_name(PUBLISHED).read_text(encoding="utf-8").removesuffix("\n")
            same = story(in_bits(opened, folder, 32), opened) == right
            print(f"the text in fp32 is {'the published one' if same else 'NOT the published one'}")
            faults += [] if same else [f"{name}: another text than the published one"]
        return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["135m", "500m", *SMALL]
    parser.add_argument("--shapes", nargs="+", default=names, choices=[*names, "tiny"], metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bits", nargs="+", type=int, default=[32, 8, 4], choices=[32, 8, 4])
    parser.add_argument("--types", nargs="+", choices=["F32", "F16", "Q8_0", "Q4_0"], help="of llama.cpp's files")
    parser.add_argument("--new-tokens", type=int, default=128, help="of one text; a fourth of each of several")
    parser.add_argument("--small", type=Path, default=Path("runs/novels/model"), help="a trained model")
    parser.add_argument("--work", type=Path, help="a folder to keep the random weights in, 7 GB")
    parser.add_argument(
        "--cache-type", default="float32", choices=NUMBER_BYTES, help="of our keys and values; llama.cpp's: float16"
    )
    parser.add_argument("--threads", type=int, default=threads())
    a = parser.parse_args()
    for name, path in (("stories260K", STORIES), ("small", a.small)):
        if name in a.shapes and not path.exists():
            parser.error(f"there is no {path}; leave {name} out of --shapes, or name another with --small")
    on = prepare("cpu", a.threads)
    print(f"{processor()}, {a.threads} threads, torch {torch.__version__}, {about()}")
    with tempfile.TemporaryDirectory(prefix="rhapsode-decode-") as temporary:
        faults = [fault for name in a.shapes for fault in compare(name, a, a.work or Path(temporary), on)]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
