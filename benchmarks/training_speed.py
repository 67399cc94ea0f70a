"""Training tokens per second beside transformers' Llama of the same shape, with and without dropout.

python benchmarks/training_speed.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from turns import Worker, rounds

from rhapsode.base.machine import peak_flops, prepare, processor, threads
from rhapsode.model.families.qwen3 import QWEN3

STEP = Path(__file__).parent / "peers" / "training_step.py"
PEERS = {
    "transformers Llama, eager, AdamW": ["transformers_llama"],
    "rhapsode, AdamW": ["rhapsode_qwen3"],
    "rhapsode, AdamW, dropout 0.1": ["rhapsode_qwen3", "--dropout", "0.1"],
    "rhapsode, Muon": ["rhapsode_qwen3", "--optimizer", "muon"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=9)
    a = parser.parse_args()
    sizes = ("width", "layers", "heads", "intermediate", "context", "batch", "vocabulary")
    shape = [word for name in sizes for word in (f"--{name}", str(getattr(a, name)))]
    peak = peak_flops(prepare("cpu"), seconds=1.0)
    count = threads()
    print(f"{processor()}, {count} threads, fp32 peak measured {peak / 1e9:.0f} GFLOP/s, torch {torch.__version__}")
    print(
        f"width {a.width}, {a.layers} layers, {a.heads} heads, context {a.context}, batch {a.batch}; {a.rounds} rounds"
    )
    workers = {name: Worker(STEP, *words, *shape, threads=count) for name, words in PEERS.items()}
    rounds(list(workers.values()), a.rounds)
    config = QWEN3.config(
        a.vocabulary, a.width, a.layers, a.heads, a.heads, a.width // a.heads, a.intermediate, a.context
    )
    tokens, flops = a.batch * a.context, config.training_flops_per_token()
    reference = next(iter(workers.values()))
    print(f"{'':36}{'tokens/s':>10}{'min':>9}{'max':>9}{'of peak':>9}{'ratio':>8}")
    for name, worker in workers.items():
        rate = tokens / worker.median()
        ratios = sorted(theirs / ours for theirs, ours in zip(reference.seconds, worker.seconds, strict=True))
        print(
            f"{name:36}{rate:10,.0f}{tokens / max(worker.seconds):9,.0f}{tokens / min(worker.seconds):9,.0f}"
            f"{rate * flops / peak:9.0%}{ratios[len(ratios) // 2]:8.2f}"
        )
    plain, dropped = workers["rhapsode, AdamW"], workers["rhapsode, AdamW, dropout 0.1"]
    slower = sorted(d / p - 1 for d, p in zip(dropped.seconds, plain.seconds, strict=True))
    print(f"dropout 0.1 is {slower[len(slower) // 2]:.1%} slower than none (median of {a.rounds} pairs)")


if __name__ == "__main__":
    main()
