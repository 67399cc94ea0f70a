"""Norm, rotation, gate and loss with backward passes of their own, because autograd's make several times the traffic.

Each is the textbook formula in the forward direction; the tests compare values and gradients with autograd's. Where no
gradient is wanted the formula stands alone: a model that writes one token at a time feels what autograd would set up.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rhapsode.base.machine import made_by_intel


def _normed(x: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + epsilon) * gain, and what it was divided by, inverted (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., 1)
    inverse = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(epsilon))
    return (x * inverse).mul_(gain), inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        normed, inverse = _normed(x, gain, epsilon)
        ctx.save_for_backward(x, gain, inverse)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, inverse = ctx.saved_tensors
        # Layer norm's kernel, given a mean of zero, differs from what is wanted by the mean of (gradient * gain).
        dx, dgain, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, [x.shape[-1]], torch.zeros_like(inverse), inverse, gain, None, [True, True, False]
        )
        mean = (gradient.reshape(-1, x.shape[-1]) @ gain).view_as(inverse).div_(x.shape[-1])
        return dx.addcmul_(mean, inverse), dgain, None


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * gain over the last axis (Zhang and Sennrich 2019)."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return _normed(x, gain, epsilon)[0]
        return _RMSNorm.apply(x, gain, epsilon)  # type: ignore[no-any-return, no-untyped-call]
    return F.rms_norm(x, (x.shape[-1],), gain, epsilon)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    pairs = cosine.shape[-1]
    first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    out = torch.empty_like(x)
    torch.mul(first, cosine, out=out[..., :pairs]).addcmul_(second, sine, value=-direction)
    torch.mul(second, cosine, out=out[..., pairs : 2 * pairs]).addcmul_(first, sine, value=direction)
    if 2 * pairs < x.shape[-1]:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, sine, -1), None, None


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + pairs]) by their angles (Su et al. 2021, section 3.4.2); what is beyond them stays.

    Args:
        x: (batch, time, heads, head_dim).
        cosine: (time, 1, pairs), or with the batch in front.
        sine: as `cosine`.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula, and cannot follow writes into views
        pairs = cosine.shape[-1]
        first, second, rest = torch.split(x, [pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)
    if not torch.is_grad_enabled():
        return _rotated(x, cosine, sine, 1)
    return _Rotate.apply(x, cosine, sine)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        active = F.silu(gate)
        ctx.save_for_backward(gate, up, active)
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, active = ctx.saved_tensors
        dgate = torch.ops.aten.silu_backward(gradient * up, gate)
        return dgate, gradient.mul(active)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, "GLU variants improve transformer")."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


@cache
def _in_parts() -> bool:
    return bool(torch.backends.mkl.is_available()) and not made_by_intel()  # type: ignore[no-untyped-call]


FEW_ROWS = 64
PARTS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b over the last axis, where weight is (out, in).

    With few rows and no gradient the matrix is multiplied in parts where MKL runs on another maker's processor than
    Intel's: there it reads it with one thread for one row, and repacks it for a few (two rows: 4 to 9 GB/s of the 30
    that there are), but a batch of products it shares out and reads as it lies. On Intel's the opposite is true: 20 to
    26 GB/s, and 7 in parts (docs/lab.md, 2026-11-25 and 2026-11-27).
    """
    rows, out = x.numel() // x.shape[-1], weight.shape[0]
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu" or not _in_parts()
    if plain or x.dtype != torch.float32 or not 0 < rows <= FEW_ROWS or out % PARTS or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t().expand(PARTS, x.shape[-1], rows)
    y = torch.bmm(weight.view(PARTS, out // PARTS, -1), columns).view(out, rows).t()  # (rows, out)
    return (y.contiguous() if bias is None else y + bias).view(*x.shape[:-1], out)


LOGITS_AT_ONCE = 2**22
LEAST_ROWS = 256


def rows_at_once(vocabulary: int) -> int:
    """Tokens whose logits are there at one time: few enough for the cache, enough for products to be fast."""
    return max(LEAST_ROWS, LOGITS_AT_ONCE // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed while the logits are still in the cache: nothing of the vocabulary's size is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smooth: float
    ) -> Tensor:
        vocabulary, rows = weight.shape[0], rows_at_once(weight.shape[0])
        loss = torch.zeros((), dtype=torch.float64)
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        dbias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        logits = hidden.new_empty(min(rows, len(hidden)), vocabulary)
        for begin in range(0, len(hidden), rows):
            part, wanted = hidden[begin : begin + rows], targets[begin : begin + rows, None]
            scores = torch.mm(part, weight.t(), out=logits[: len(part)])  # (rows, vocabulary)
            if bias is not None:
                scores += bias
            largest, right = scores.amax(dim=-1), scores.gather(1, wanted)
            mean = scores.mean(dim=-1).sum() if smooth else 0.0
            p = torch.softmax(scores, dim=-1, out=scores)
            normaliser = largest - p.amax(dim=-1).log()  # ln of the sum of exp(scores)
            loss += normaliser.sum() - (1 - smooth) * right.sum() - smooth * mean
            # d loss / d scores = p - target
            if smooth:
                p -= smooth / vocabulary
            p.scatter_add_(1, wanted, p.new_full(wanted.shape, smooth - 1))
            torch.mm(p, weight, out=dhidden[begin : begin + rows])
            if dweight is not None:
                dweight.addmm_(p.t(), part)
            if dbias is not None:
                dbias += p.sum(dim=0)
        ctx.save_for_backward(dhidden, dweight, dbias)
        return loss.to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight, dbias = (None if saved is None else gradient * saved for saved in ctx.saved_tensors)
        return dhidden, dweight, dbias, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The sum over all targets of -ln softmax(weight hidden + bias)[target]; targets below zero do not count.

    Args:
        hidden: (tokens, hidden).
        weight: (vocabulary, hidden).
        bias: (vocabulary,).
        targets: (tokens,).
        label_smoothing: share of each target that is spread over the whole vocabulary (Szegedy et al. 2016).
    """
    on_cpu = hidden.device.type == "cpu" and hidden.dtype == weight.dtype == torch.float32
    if on_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        counted = targets >= 0
        if not bool(counted.all()):
            hidden, targets = hidden[counted], targets[counted]
        return _LinearCrossEntropy.apply(  # type: ignore[no-any-return, no-untyped-call]
            hidden, weight, bias, targets, label_smoothing
        )
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=-1, label_smoothing=label_smoothing)
