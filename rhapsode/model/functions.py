"""Norm, rotation and gate with backward passes of their own, because autograd's make several times the memory traffic.

Each is the textbook formula in the forward direction; the tests compare values and gradients with autograd's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        size = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (..., 1)
        inverse = torch.rsqrt(norm.square_().div_(size).add_(epsilon))
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

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
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]
