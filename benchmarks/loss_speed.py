"""Head and loss, forward and backward: time beside torch's cross_entropy over a linear layer, in turn.

python benchmarks/loss_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rhapsode.base.machine import prepare, processor
from rhapsode.model.functions import linear_cross_entropy

SHAPES = ((2048, 128, 512, 0.0), (2048, 192, 4096, 0.0), (1024, 128, 10_000, 0.1), (2048, 256, 16_384, 0.0))
"""Tokens, width, vocabulary, label smoothing."""


def plain(hidden: Tensor, weight: Tensor, bias: None, targets: Tensor, smoothing: float) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)


def seconds(loss: Callable[..., Tensor], inputs: tuple[Tensor, Tensor], targets: Tensor, smoothing: float) -> float:
    for x in inputs:
        x.grad = None
    began = time.perf_counter()
    (loss(*inputs, None, targets, smoothing) / len(targets)).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    a = parser.parse_args()
    prepare("cpu")
    torch.set_num_threads(1)  # as in training, where each thread has a micro-batch of its own
    print(f"{processor()}, one thread, medians of {a.rounds} in turn\n")
    print(f"{'tokens':>7}{'width':>7}{'vocabulary':>12}{'smoothing':>11}{'torch':>10}{'rhapsode':>11}{'ratio':>8}")
    for tokens, width, vocabulary, smoothing in SHAPES:
        inputs = (torch.randn(tokens, width).requires_grad_(), (0.1 * torch.randn(vocabulary, width)).requires_grad_())
        targets = torch.randint(0, vocabulary, (tokens,))
        times: dict[Callable[..., Tensor], list[float]] = {plain: [], linear_cross_entropy: []}
        for _ in range(1 + a.rounds):
            for loss, measured in times.items():
                measured.append(seconds(loss, inputs, targets, smoothing))
        theirs, ours = (statistics.median(measured[1:]) for measured in times.values())
        print(
            f"{tokens:7,}{width:7}{vocabulary:12,}{smoothing:11}{theirs * 1e3:7.1f} ms{ours * 1e3:8.1f} ms"
            f"{theirs / ours:8.2f}"
        )


if __name__ == "__main__":
    main()
