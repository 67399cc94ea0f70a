"""How a model knows where a token stands: rotary angles, sinusoids, and biases by distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rhapsode.model.config import LinearScaling, Llama3Scaling, RelativeBuckets, Rope, YarnScaling


def rotary_frequencies(rope: Rope, head_dim: int, device: torch.device | str = "cpu") -> tuple[Tensor, float]:
    """How fast each pair turns, in radians a token, and the factor of its cosine and sine.

    Without scaling: theta^(-2i / size), i < size / 2, of the share of head_dim that is turned (Su et al. 2021,
    equation 15), and 1.

    Returns:
        (pairs,) in fp32, and the factor.
    """
    size = int(head_dim * rope.share)
    exponents = torch.arange(0, size, 2, dtype=torch.int64, device=device).float() / size
    frequencies = 1.0 / rope.theta**exponents  # (pairs,)
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        factor = scaling.attention_factor
        if factor is None:
            factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        return _yarn(frequencies, scaling, rope.theta, size), factor
    return frequencies, 1.0


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)  # (pairs,): in the context it was trained with
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    ramp = (turns - low) / (high - low)
    between = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    slow = torch.where(turns < low, frequencies / scaling.factor, between)
    return torch.where(turns > high, frequencies, slow)


def _yarn(frequencies: Tensor, scaling: YarnScaling, theta: float, size: int) -> Tensor:
    def pair_that_turns(turns: float) -> float:
        return size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(size // 2, dtype=torch.float32, device=frequencies.device)
    interpolated = ((pairs - low) / (high - low)).clamp(0, 1)  # (pairs,): 0 for fast ones, 1 for slow ones
    return frequencies / scaling.factor * interpolated + frequencies * (1 - interpolated)


def rotary_angles(
    positions: Tensor, rope: Rope, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position times frequency.

    Args:
        positions: (..., time) integers.

    Returns:
        two tensors (..., time, 1, pairs); the 1 broadcasts over heads.
    """
    frequencies, factor = rotary_frequencies(rope, head_dim, positions.device)
    angles = positions[..., None].float() * frequencies  # (..., time, pairs)
    cosine, sine = angles.cos() * factor, angles.sin() * factor
    return cosine.to(dtype)[..., None, :], sine.to(dtype)[..., None, :]


def sinusoids(positions: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """sin(position / 10000^(2i / size)) for i < size / 2, then the cosines (Vaswani et al. 2017, section 3.5).

    The paper has sines and cosines in turn; Marian has them in two halves, which is the same up to the order of rows.

    Args:
        positions: (..., time) integers.

    Returns:
        (..., time, size).
    """
    exponents = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device) / size
    angles = positions[..., None].double() / 10_000.0**exponents  # (..., time, size / 2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)


class RelativeBias(nn.Module):
    """A learned bias of each head's scores by the distance between query and key (Raffel et al. 2020, section 2.1)."""

    def __init__(self, buckets: RelativeBuckets, heads: int, causal: bool) -> None:
        super().__init__()
        self.buckets, self.causal = buckets, causal
        self.weight = nn.Parameter(torch.zeros(buckets.count, heads))

    def forward(self, queries: int, keys: int) -> Tensor:
        """The biases (1, heads, queries, keys) of the last `queries` of `keys` tokens."""
        device = self.weight.device
        row = torch.arange(keys - queries, keys, device=device)[:, None]
        distance = torch.arange(keys, device=device)[None, :] - row  # (queries, keys), positive for what follows
        return self.weight[self._bucket(distance)].permute(2, 0, 1)[None]

    def _bucket(self, distance: Tensor) -> Tensor:
        """The bucket of each distance: near ones exactly, far ones by their logarithm."""
        count, first = self.buckets.count, torch.zeros_like(distance)
        if self.causal:
            distance = (-distance).clamp(min=0)
        else:
            count //= 2
            first = (distance > 0).long() * count
            distance = distance.abs()
        exact = count // 2
        ratio = torch.log(distance.float() / exact) / math.log(self.buckets.furthest / exact)
        far = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)
