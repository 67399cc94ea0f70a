"""The layers that every family is made of, besides attention: norms, feed-forwards, mixtures of experts, the head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhapsode.model.config import Activation, ModelConfig
from rhapsode.model.functions import linear, linear_cross_entropy, rms_norm, swiglu

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class Linear(nn.Linear):
    """A matrix and a bias; `linear` in `functions` says what is different."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Divide by the root mean square, multiply by a learned gain."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


class UnitOffsetRMSNorm(RMSNorm):
    """The same, with the gain stored as its difference from 1."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, 1.0 + self.weight, self.epsilon)


def norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """The family's norm, over `size` numbers (the residual stream's width unless given)."""
    size = size or config.hidden_size
    if config.norm == "layer":
        return nn.LayerNorm(size, config.norm_epsilon, bias=config.norm_bias)
    return (UnitOffsetRMSNorm if config.norm_unit_offset else RMSNorm)(size, config.norm_epsilon)


class FeedForward(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.hidden_size, width, bias=config.feed_forward_bias)
        self.down = Linear(width, config.hidden_size, bias=config.feed_forward_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(config.hidden_size, width, bias=config.feed_forward_bias)
        self.up = Linear(config.hidden_size, width, bias=config.feed_forward_bias)
        self.down = Linear(width, config.hidden_size, bias=config.feed_forward_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        inside = swiglu(gate, up) if self.activation is F.silu else self.activation(gate) * up
        return self.down(inside)  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """Each token goes through its `chosen` most likely experts, weighted by the router's probabilities."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.chosen, self.normalised = config.experts.chosen, config.experts.normalised
        self.router = Linear(config.hidden_size, config.experts.count, bias=False)
        self.experts = nn.ModuleList(
            GatedFeedForward(config, config.experts.intermediate_size) for _ in range(config.experts.count)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # (tokens, hidden)
        probabilities = self.router(tokens).softmax(dim=-1)  # (tokens, experts)
        weights, experts = probabilities.topk(self.chosen, dim=-1)  # (tokens, chosen) each
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        mixed = torch.zeros_like(tokens)
        for number in experts.unique().tolist():
            rows, places = torch.where(experts == number)
            answer = self.experts[number](tokens[rows]) * weights[rows, places, None]
            mixed = mixed.index_add(0, rows, answer)
        return mixed.view_as(x)


def feed_forward(config: ModelConfig, layer: int, width: int) -> nn.Module:
    """The family's feed-forward in one layer."""
    if config.has_experts(layer):
        return MixtureOfExperts(config)
    return (GatedFeedForward if config.gated else FeedForward)(config, width)


class Head(nn.Module):
    """From hidden states to logits: a matrix, and before it, in masked language models, a small transform.

    Args:
        embedding: the token embedding, whose weights are the head's where they are tied.
    """

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.scale = config.head_scale
        self.activation = ACTIVATIONS[config.head_activation]
        if config.head_transform:
            self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.head_transform_bias)
            self.norm = norm(config)
        self.weight = embedding.weight
        if not config.tied_embeddings:
            self.weight = nn.Parameter(torch.zeros(config.vocabulary_size, config.hidden_size))
        self.bias: nn.Parameter | None = None
        if config.head_bias != "none":
            learned = config.head_bias == "learned"
            self.bias = nn.Parameter(torch.zeros(config.vocabulary_size), requires_grad=learned)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of hidden states (..., hidden)."""
        return linear(self._transformed(hidden), self.weight, self.bias)

    def loss(self, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The sum of -ln p(target) over targets (tokens,), given hidden states (tokens, hidden), in nats."""
        return linear_cross_entropy(self._transformed(hidden), self.weight, self.bias, targets, label_smoothing)

    def _transformed(self, hidden: Tensor) -> Tensor:
        if "dense" in self._modules:
            hidden = self.norm(self.activation(self.dense(hidden)))
        return hidden * self.scale if self.scale != 1.0 else hidden
