"""Tiny Shakespeare by characters: our whole command beside nanoGPT's CPU recipe, in seconds and validation loss.

    python benchmarks/tiny_shakespeare.py
    python benchmarks/tiny_shakespeare.py --curve 1 3 10 20

The first prints, for each seed in turn, the wall time of both whole commands (start-up included) and the loss over the
whole validation part, in nats per character, in windows of each model's own context that do not overlap. The second
gives `--minutes` alone and prints what it reaches.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rhapsode
from rhapsode.base.machine import prepare, processor, threads
from rhapsode.corpus.corpus import Corpus
from rhapsode.inference.evaluation import evaluate

HERE = Path(__file__).parent
TEXT = HERE.parent / "rhapsode" / "corpus" / "examples" / "shakespeare.txt"


def whole_command(*words: str) -> tuple[float, str]:
    """Seconds of a command from start to end, and what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads()), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began, done.stdout


def nats_per_character(run: Path) -> float:
    """Of a run's model, over its whole validation part, whatever its tokenizer."""
    model = rhapsode.load(run, device="cpu")
    (text,) = Corpus.open(run / "corpus").documents("validation")
    tokens = model.tokenizer.encode_batch([text])[0]
    context = model.config.context_length
    found = evaluate(
        model.model, tokens, context=context, stride=context, bytes_of_text=len(text.encode("utf-8")), batch=64
    )
    return found.nats_per_token * found.tokens / (len(text) - 1)


def train(run: Path, minutes: float, seed: int, *more: str) -> float:
    words = ["rhapsode", "train", str(TEXT), "--minutes", f"{minutes:g}", "--seed", str(seed), "--out", str(run), *more]
    seconds, _ = whole_command(sys.executable, "-m", *words)
    return seconds


def race(seeds: int, minutes: float) -> None:
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    print(f"{'seed':>4}{'recipe, s':>12}{'loss':>9}{'rhapsode, s':>14}{'loss':>9}{'ratio':>8}")
    for seed in range(seeds):
        peer = whole_command(sys.executable, str(HERE / "peers" / "nanogpt_recipe.py"), str(TEXT), "--seed", str(seed))
        theirs.append((peer[0], float(peer[1].split()[-1])))
        with tempfile.TemporaryDirectory() as folder:
            seconds = train(Path(folder) / "run", minutes, seed, "--tokenizer", "character")
            ours.append((seconds, nats_per_character(Path(folder) / "run")))
        (a, b), (c, d) = theirs[-1], ours[-1]
        print(f"{seed:4}{a:12.1f}{b:9.4f}{c:14.1f}{d:9.4f}{c / a:8.3f}", flush=True)
    a, b, c, d = (statistics.median(pair[i] for pair in side) for side in (theirs, ours) for i in (0, 1))
    print(f"{'med.':>4}{a:12.1f}{b:9.4f}{c:14.1f}{d:9.4f}{c / a:8.3f}")


def curve(minutes: list[float], runs: Path) -> None:
    print(f"{'minutes':>8}{'seconds':>10}{'asked for':>11}{'nats/character':>16}{'bits/byte':>11}")
    for asked in minutes:
        run = runs / f"shakespeare-{asked:g}-minutes"
        seconds = train(run, asked, 0, "--force")
        loss = nats_per_character(run)
        print(
            f"{asked:8g}{seconds:10.1f}{seconds / 60 / asked:11.1%}{loss:16.4f}{loss / math.log(2):11.4f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0.4, help="what our command is given in the race")
    parser.add_argument("--curve", type=float, nargs="+", help="minutes to train for, one run each")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    a = parser.parse_args()
    prepare("cpu")
    print(f"{processor()}, {threads()} threads")
    if a.curve:
        curve(a.curve, a.runs)
    else:
        race(a.seeds, a.minutes)


if __name__ == "__main__":
    main()
