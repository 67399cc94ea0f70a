"""How long a training step of a shape takes on this machine: measured on nonsense, for a time the planner allows."""

from __future__ import annotations

import math
import statistics
import time

import torch
from torch import Tensor

from rhapsode.model.config import ModelConfig
from rhapsode.training.expectation import Text
from rhapsode.training.gradient import Gradient
from rhapsode.training.objectives.span_corruption import spans_in
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.settings import TrainSettings

TOKENS_AT_ONCE = 2048
"""Of a micro-batch that is computed alone; beside others half of it each will do."""


def sides(settings: TrainSettings, text: Text) -> tuple[float, float]:
    """Tokens of a sample that are read, and tokens of it that are written by a second tower, on average."""
    context = settings.context_length
    if settings.kind != "encoder-decoder":
        return context, 0
    if text.pairs is not None:
        return text.pairs.source, text.pairs.target
    cut, spans = round(settings.masked_share * context), spans_in(context, settings.masked_share)
    return context - cut + spans + 1, cut + spans + 1


def sample_tokens(settings: TrainSettings, text: Text) -> float:
    """Tokens of a sample, on average."""
    return sum(sides(settings, text))


def micro_batch_size(settings: TrainSettings, text: Text, workers: int) -> int:
    """Samples of a micro-batch: a worker's share of the batch, as far as `TOKENS_AT_ONCE` go."""
    if settings.micro_batch_size:
        return settings.micro_batch_size
    most = max(1, int(TOKENS_AT_ONCE / sample_tokens(settings, text)))
    return min(most, math.ceil((settings.batch_size or most) / workers))


def step_seconds(
    gradient: Gradient, optimizers: Optimizers, settings: TrainSettings, text: Text, budget: float
) -> tuple[float, float]:
    """Seconds of the gradient of a micro-batch for each worker, and of the optimizers: medians over about `budget`."""
    model, workers = gradient.model, len(gradient.losses)
    count = micro_batch_size(settings, text, workers)
    read, written = (math.ceil(length) for length in sides(settings, text))
    tensors = tuple(tensor.to(model.device) for tensor in nonsense(model.config, count, read, written))
    computes: list[float] = []
    updates: list[float] = []
    begin = time.perf_counter()
    while len(computes) < 2 or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        gradient.compute([(tensors, None)] * workers, workers * count * (written or read))
        middle = time.perf_counter()
        optimizers.step()
        model.embedding.weight[0, 0].item()  # waits for the device
        computes.append(middle - start)
        updates.append(time.perf_counter() - middle)
    return statistics.median(computes[1:]), statistics.median(updates[1:])


def nonsense(config: ModelConfig, count: int, read: int, written: int) -> tuple[Tensor, ...]:
    """The first arguments of a model's loss, of the right sizes."""
    ids = (torch.arange(count * read) * 7919 % config.vocabulary_size).view(count, read)
    if config.kind == "decoder":
        return ids, ids
    if config.kind == "encoder":
        return ids, torch.where(torch.arange(read) % 7 == 0, ids, -1)
    targets = (torch.arange(count * written) * 7919 % config.vocabulary_size).view(count, written)
    return ids, torch.ones_like(ids, dtype=torch.bool), targets, targets
