"""Dropout whose masks are a pure function of (seed, step, sample, place), and nearly free.

torch draws its mask with one thread, one number per element; here 16 random bits do, from a counter-based generator.
Each sample has its own stretch of the count, so that a batch has the same masks however it is cut into micro-batches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rhapsode.base.random import generator


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        # x * mask * scale in one pass
        return torch.ops.aten.native_dropout_backward(x, mask, scale)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradient, mask, ctx.scale), None, None


ELEMENTS_AT_ONCE = 16
"""The generator counts blocks of 256 bits."""


class ResidualDropout:
    """Dropout on the embedding and on what each attention and feed-forward adds to the residual stream.

    Args:
        rate: share of the elements zeroed, to the nearest 1/65536.
        seed: the run's seed.
        step: the training step.
        sample: the first sample of the micro-batch, of all samples of the run.
    """

    def __init__(self, rate: float, seed: int, step: int, sample: int) -> None:
        zeroed = min(65535, round(rate * 65536))
        self.threshold = zeroed - 32768
        self.scale = 65536 / (65536 - zeroed)
        self.seed, self.step, self.sample = seed, step, sample

    def __call__(self, x: Tensor, place: int) -> Tensor:
        samples, elements = len(x), x[0].numel()
        blocks = math.ceil(elements / ELEMENTS_AT_ONCE)
        draw = generator(self.seed, "dropout", self.step, place).bit_generator
        assert isinstance(draw, np.random.Philox)
        draw.advance(self.sample * blocks)
        bits = torch.from_numpy(draw.random_raw(4 * blocks * samples).view(np.int16))
        bits = bits.view(samples, blocks * ELEMENTS_AT_ONCE)[:, :elements]
        mask = (bits >= self.threshold).reshape(x.shape).to(x.device)
        return _Masked.apply(x, mask, self.scale)  # type: ignore[no-any-return, no-untyped-call]
