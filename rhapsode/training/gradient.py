"""The gradient of one step: its micro-batches are shared among threads, each of which computes whole ones alone.

Two threads that split every product wait for each other some hundred times a step; two that split the batch, once
(docs/lab.md, 2026-11-24). On a GPU, and where torch.compile made the loss, one worker computes all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from rhapsode.model.model import Model
from rhapsode.model.stack import Dropout

MicroBatch = tuple[tuple[Tensor, ...], Dropout | None]
"""The first arguments of the loss, and the dropout of these samples."""

MOST_WORKERS = 8
"""Each has gradients of its own; more cores than this work together on each micro-batch."""


def workers_for(device: torch.device, compiled: bool, threads: int) -> int:
    """How many micro-batches are computed side by side."""
    return 1 if device.type != "cpu" or compiled or threads > MOST_WORKERS else threads


class Gradient:
    """Computes the gradient of a model's summed loss over micro-batches.

    The result depends on the number of workers by rounding only, and not on which of them is faster.

    Args:
        model: whose `.grad`s are filled.
        loss: `model.loss`, possibly compiled; `model.loss` unless given.
        workers: see `workers_for`; the threads of torch are divided among them.
        options: further arguments of the loss.
    """

    def __init__(
        self, model: Model, loss: Callable[..., Tensor] | None = None, *, workers: int, **options: Any
    ) -> None:
        self.model, self.options = model, options
        # A replica shares the weights and has gradients of its own; tied weights stay tied.
        shared = {id(weight): weight for weight in model.parameters()}
        replicas = [
            copy.deepcopy(model, {key: _shared(weight) for key, weight in shared.items()}) for _ in range(workers - 1)
        ]
        self.losses = [loss or model.loss, *(replica.loss for replica in replicas)]
        self.weights = [list(model.parameters()), *(list(replica.parameters()) for replica in replicas)]
        if workers > 1:
            threads = max(1, torch.get_num_threads() // workers)
            self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))

    def compute(self, batches: Sequence[MicroBatch], tokens: int) -> float:
        """Fill the gradients of (sum of all losses / tokens), whatever they held; returns that mean loss."""
        for weights in self.weights:
            for weight in weights:
                weight.grad = None
        workers = min(len(self.losses), len(batches))
        if workers == 1:
            return self._share(0, batches, tokens) / tokens
        shares = [self.pool.submit(self._share, number, batches[number::workers], tokens) for number in range(workers)]
        total = sum(share.result() for share in shares)
        gradients = [[weight.grad for weight in weights if weight.grad is not None] for weights in self.weights]
        for theirs in gradients[1:workers]:
            torch._foreach_add_(gradients[0], theirs)
        return total / tokens

    def _share(self, worker: int, batches: Sequence[MicroBatch], tokens: int) -> float:
        """The sum of the losses of one worker's micro-batches, one after another."""
        total = 0.0
        for tensors, dropout in batches:
            loss = self.losses[worker](*tensors, dropout=dropout, **self.options)
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total


def _shared(weight: nn.Parameter) -> nn.Parameter:
    """Another parameter with the same numbers."""
    return nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
