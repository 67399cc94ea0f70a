"""What 8 and 4 bits cost: perplexity, and divergence from fp32, of ours and llama.cpp's formats on the same windows.

    python benchmarks/quantization.py [runs/novels] [--windows 64] [--text FILE...]

The text is the validation part of the run that the model is from, unless --text names another. Windows of it, evenly
apart, are read by all sides; the second half of each is predicted, each token after at least half a window. The
weights are the same, llama.cpp's by our GGUF export. "more" is perplexity beside plain fp32 by torch, with the standard
error over the windows; the divergence is KL(fp32 || quantised), the mean over all predicted tokens.
Ends with 1 if ours costs more than it shall.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from our_side import Ours, exported, in_bits
from peers.llama_cpp_side import LlamaCpp, about
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sides import Room, Side

from rhapsode.base.machine import prepare, processor, threads
from rhapsode.exchange.opening import model_folder, open_model
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.decoder import Decoder
from rhapsode.tokenizer.store import TokenStore
from rhapsode.tokenizer.tokenizer import Tokenizer

MOST = {8: 0.005, 4: 0.03}
"""By what share perplexity may be higher than in fp32, at so many bits."""

Numbers = npt.NDArray[np.float64]


class Costs:
    """What one side costs, gathered window by window.

    Attributes:
        more: nats a token above fp32, the mean of each window.
        divergences: in nats, the mean of each window.
        agreeing: the share of places where the likeliest token is fp32's, of each window.
    """

    def __init__(self) -> None:
        self.more: list[float] = []
        self.divergences: list[float] = []
        self.agreeing: list[float] = []

    def add(self, right: Numbers, found: Numbers, targets: npt.NDArray[np.int64]) -> None:
        """One window: ln p by fp32 and by this side, (places, vocabulary), and the tokens that came."""
        places = np.arange(len(targets))
        self.more.append(float((right[places, targets] - found[places, targets]).mean()))
        self.divergences.append(float((np.exp(right) * (right - found)).sum(axis=-1).mean()))
        self.agreeing.append(float((right.argmax(axis=-1) == found.argmax(axis=-1)).mean()))


def log_probabilities(logits: npt.NDArray[np.float32]) -> Numbers:
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)
    found: Numbers = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return found


def tokens_of(texts: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> npt.NDArray[np.int64]:
    """The ids of the text that is predicted."""
    if not texts:
        store = TokenStore.open(folder.parent / "tokens" / "validation", tokenizer=tokenizer)
        return store.tokens.astype(np.int64)
    end = [] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id]
    parts = [[*tokenizer.encode(path.read_text(encoding="utf-8")), *end] for path in texts]
    return np.concatenate(parts).astype(np.int64)


def windows(tokens: npt.NDArray[np.int64], count: int, context: int) -> Iterator[npt.NDArray[np.int64]]:
    """(context + 1,) ids each, evenly apart."""
    for start in np.linspace(0, len(tokens) - context - 1, count).astype(int):
        yield tokens[start : start + context + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("runs/novels"), help="a run or model folder")
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--context", type=int, default=256, help="tokens of a window")
    parser.add_argument("--bits", nargs="+", type=int, default=[32, 8, 4], choices=[32, 8, 4])
    parser.add_argument("--types", nargs="+", default=["F32", "Q8_0", "Q4_1", "Q4_0"], help="of llama.cpp's files")
    parser.add_argument("--threads", type=int, default=threads())
    a = parser.parse_args()
    prepare("cpu", a.threads)
    folder = model_folder(a.model)
    opened = open_model(folder)
    assert isinstance(opened.model, Decoder), "only decoders write"
    tokens = tokens_of(a.text, opened.tokenizer, folder)
    if len(tokens) <= a.context:
        parser.error(f"a text of {len(tokens)} tokens has no window of {a.context}")
    wanted = a.context // 2
    print(f"{processor()}, {a.threads} threads, torch {torch.__version__}, {about()}")
    print(
        f"{folder}: {opened.model.config.parameters / 1e6:.2f} million parameters; {a.windows} windows of {a.context}, "
        f"of a text of {len(tokens):,} tokens; {a.windows * wanted:,} predicted"
    )
    with tempfile.TemporaryDirectory(prefix="rhapsode-quantization-") as temporary:
        blocks = -(-a.context // BLOCK)
        sides: dict[str, Side] = {}
        for bits in a.bits:
            sides[f"rhapsode, {bits} bits"] = Ours(in_bits(opened, Path(temporary), bits), blocks, a.threads)
        for kind in a.types:
            sides[f"llama.cpp {kind}"] = LlamaCpp(exported(opened, Path(temporary), kind), a.threads)
        rooms: dict[str, Room] = {name: next(iter(side.rooms(1, a.context).values())) for name, side in sides.items()}
        costs = {name: Costs() for name in sides}
        nats = list[float]()
        for ids in track(list(windows(tokens, a.windows, a.context)), "predicting", transient=True):
            targets = ids[-wanted:]
            with torch.no_grad():
                logits = opened.model(torch.from_numpy(ids[None, :-1]))[0, -wanted:].numpy()
            right = log_probabilities(logits)  # (wanted, vocabulary)
            nats.append(-float(right[np.arange(wanted), targets].mean()))
            for name, room in rooms.items():
                room.read(0, ids[:-1].tolist(), wanted)
                costs[name].add(right, log_probabilities(room.logits()), targets)
    faults = []
    table = Table(title=f"perplexity in fp32: {math.exp(np.mean(nats)):.4f}")
    for heading in ("", "MB a step", "perplexity", "more", "", "divergence", "same likeliest", "wanted"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, cost in costs.items():
        more, error = math.expm1(np.mean(cost.more)), np.std(cost.more, ddof=1) / math.sqrt(a.windows)
        most = next((MOST[bits] for bits in MOST if name == f"rhapsode, {bits} bits"), None)
        if most is not None and not more <= most:
            faults.append(f"{name}: perplexity is {more:.2%} higher than in fp32; {most:.1%} are allowed")
        table.add_row(
            name,
            f"{sides[name].weight_bytes / 1e6:,.1f}",
            f"{math.exp(np.mean(nats) + np.mean(cost.more)):.4f}",
            f"{more:+.3%}",
            f"± {error:.3%}",
            f"{np.mean(cost.divergences):.2e}",
            f"{np.mean(cost.agreeing):.1%}",
            "" if most is None else f"{most:.1%} {'[red]missed' if more > most else '[green]reached'}",
        )
    Console(width=130).print(table)
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
