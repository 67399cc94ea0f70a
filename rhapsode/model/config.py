"""The shape of a transformer: what `config.json` says of it, in the field's terms and checked.

One dataclass serves all families. A family sets its traits (which norm, where, which positions, ...); sizes come from
the file or the planner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rhapsode.base.errors import InputError

Kind = Literal["decoder", "encoder", "encoder-decoder"]
"""Predicts the next token; fills masks and reads; turns one text into another."""

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

LARGEST_SIZE = 1 << 26
"""Of any one size: what no model reaches, and no product of two overflows at."""

MOST_LAYERS = 1024
"""Of a tower. Lists are made from it before any file with weights is seen."""

MOST_EXPERTS = 1024
"""Of a layer."""


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with texts beyond the context; within it, as here always, nothing changes."""

    factor: float


@dataclass(frozen=True)
class YarnScaling:
    """Slow pairs are interpolated, fast ones are not (Peng et al. 2023)."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """Of cosines and sines; None: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """Whether the ends of the ramp are whole numbers of pairs."""


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs divided by a factor, fast ones left, a ramp between (Llama 3.1)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021)."""

    theta: float = 10_000.0
    """Base of the wavelengths."""
    share: float = 1.0
    """Share of each head that is turned; the rest stays."""
    scaling: LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | None = None


@dataclass(frozen=True)
class RelativeBuckets:
    """Distances in tokens by the bucket, each with a learned bias for every head (Raffel et al. 2020)."""

    count: int = 32
    furthest: int = 128
    """Distances from here on share the last bucket."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the feed-forward (Shazeer et al. 2017)."""

    count: int
    chosen: int
    """Experts that each token uses."""
    intermediate_size: int
    normalised: bool
    """Whether the weights of the chosen ones add up to one."""
    layers: tuple[int, ...]
    """Which layers have them."""


@dataclass(frozen=True)
class StackSizes:
    """One tower of blocks."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. What is not given is the plain decoder of today: Llama's.

    Raises:
        InputError: a size is not positive, heads do not divide, or parts do not fit together.
    """

    vocabulary_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    layers: int
    """Blocks; of the encoder, where there are two towers."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; each serves `heads / kv_heads` query heads (grouped-query attention)."""
    head_dim: int
    """Width of a head."""
    intermediate_size: int
    """Width inside the feed-forward."""
    context_length: int
    """Longest sequence, in tokens."""
    family: str = "llama"
    """Which family's folder format this is."""
    kind: Kind = "decoder"
    decoder: StackSizes | None = None
    """The second tower of an encoder-decoder."""

    norm: Literal["rms", "layer"] = "rms"
    """Root mean square, or mean and variance (Ba et al. 2016)."""
    norm_epsilon: float = 1e-6
    """Added to the mean square, or the variance, before its root."""
    norm_bias: bool = False
    """Whether layer norms add a learned bias."""
    norm_unit_offset: bool = False
    """Whether gains are stored as their difference from 1 (Gemma)."""
    order: Literal["pre", "post", "output", "sandwich", "parallel"] = "pre"
    """Where norms stand around a part f of a block: x + f(norm(x)); norm(x + f(x)); x + norm(f(x));
    x + norm(f(norm(x))); or both parts side by side, x + attention(norm(x)) + feed_forward(norm(x))."""
    first_attention_norm: bool = True
    """Whether the first block has a norm before its attention (ModernBERT's embedding has been normed already)."""

    positions: Literal["rotary", "learned", "sinusoidal", "relative"] = "rotary"
    rope: Rope = Rope()
    """Rotary positions of layers that see everything."""
    local_rope: Rope | None = None
    """Rotary positions of layers with a window, where they differ."""
    position_offset: int = 0
    """Rows of learned positions before that of the first token."""
    buckets: RelativeBuckets = RelativeBuckets()
    """Relative positions."""

    windows: tuple[int, ...] = ()
    """For each layer, how far it sees: the last so many tokens, itself counted (decoder), or so many to each side
    (encoder); 0 for everything. Empty: everything everywhere."""
    query_bias: bool = False
    """Whether queries, keys and values have biases."""
    output_bias: bool = False
    """Whether the output of attention has one."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Queries and keys normed: not, each head alone, or all heads together."""
    attention_scale: float | None = None
    """Factor of the scores; None: 1 / sqrt(head_dim)."""

    gated: bool = True
    """down(act(gate(x)) * up(x)), else down(act(up(x)))."""
    activation: Activation = "silu"
    feed_forward_bias: bool = False
    experts: Experts | None = None

    embedding_scale: float = 1.0
    """Factor of token embeddings."""
    embedding_norm: bool = False
    """Whether embeddings are normed before the first block."""
    shared_embeddings: bool = True
    """Whether two towers have one embedding; else a tied head is the decoder's."""
    token_types: int = 0
    """Rows of a learned embedding of segments; all tokens are of the first."""

    tied_embeddings: bool = True
    """The head is the embedding."""
    has_head: bool = True
    """Whether there is a head at all: encoders published for their hidden states have none."""
    head_bias: Literal["none", "learned", "fixed"] = "none"
    """Fixed: read and written, not trained."""
    head_transform: bool = False
    """Whether a dense layer, an activation and a norm stand before the head (masked language models)."""
    head_transform_bias: bool = True
    head_activation: Activation = "gelu"
    """Of that dense layer."""
    head_scale: float = 1.0
    """Factor of hidden states before the head."""

    start_id: int | None = None
    """The token that a decoder of an encoder-decoder begins with."""

    def __post_init__(self) -> None:
        sizes = (
            "vocabulary_size",
            "hidden_size",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "intermediate_size",
            "context_length",
        )
        for field in sizes:
            _check_size(field, getattr(self, field))
        if self.decoder is not None:
            for field, value in vars(self.decoder).items():
                _check_size(f"the decoder's {field}", value)
        if max(tower.layers for tower in self.towers) > MOST_LAYERS:
            raise _misfit(f"there may be {MOST_LAYERS} layers at most")
        if (self.decoder is not None) != (self.kind == "encoder-decoder"):
            raise _misfit("an encoder-decoder, and nothing else, has a second tower")
        for tower in self.towers:
            if tower.heads % tower.kv_heads:
                raise _misfit(f"heads ({tower.heads}) must be a multiple of kv_heads ({tower.kv_heads})")
        if self.kind != "encoder-decoder" and not self.shared_embeddings:
            raise _misfit("there is one tower, and so one embedding")
        if self.positions == "rotary":
            for rope in (self.rope, self.local_rope or self.rope):
                if not 0 < rope.share <= 1 or rope.theta <= 1:
                    raise _misfit(f"rotary positions cannot have base {rope.theta:g} and share {rope.share:g}")
                turned = int(self.head_dim * rope.share)
                if turned % 2 or turned == 0:
                    what = "head_dim must be even" if rope.share == 1 else "the turned share of head_dim must be even"
                    raise _misfit(f"{what}, not {turned}")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise _misfit(f"hidden_size must be even for sinusoidal positions, not {self.hidden_size}")
        if self.positions == "relative" and not (
            4 <= self.buckets.count <= 4096 and self.buckets.count // 2 < self.buckets.furthest <= LARGEST_SIZE
        ):
            raise _misfit(f"{self.buckets.count} buckets cannot reach to distance {self.buckets.furthest}")
        if self.windows and len(self.windows) != self.layers:
            raise _misfit(f"{len(self.windows)} windows are given for {self.layers} layers")
        if any(not 0 <= window <= LARGEST_SIZE for window in self.windows):
            raise _misfit("a window is out of range")
        if not 0 <= self.position_offset <= LARGEST_SIZE or not 0 <= self.token_types <= LARGEST_SIZE:
            raise _misfit("position_offset or token_types is out of range")
        if self.experts is not None:
            if not 1 <= self.experts.count <= MOST_EXPERTS:
                raise _misfit(f"experts must be between 1 and {MOST_EXPERTS}, not {self.experts.count}")
            _check_size("the experts' intermediate_size", self.experts.intermediate_size)
            if not 1 <= self.experts.chosen <= self.experts.count:
                raise _misfit(f"{self.experts.chosen} of {self.experts.count} experts cannot be chosen")
        if self.start_id is not None and not 0 <= self.start_id < self.vocabulary_size:
            raise _misfit(f"start_id {self.start_id} is not in the vocabulary")

    @cached_property
    def towers(self) -> tuple[StackSizes, ...]:
        """The one stack of blocks, or encoder and decoder."""
        first = StackSizes(self.layers, self.heads, self.kv_heads, self.head_dim, self.intermediate_size)
        return (first,) if self.decoder is None else (first, self.decoder)

    def scale(self, tower: StackSizes) -> float:
        """Factor of a tower's attention scores."""
        return self.attention_scale if self.attention_scale is not None else 1.0 / math.sqrt(tower.head_dim)

    def window(self, layer: int) -> int:
        """How far a layer sees; 0 for everything."""
        return self.windows[layer] if self.windows else 0

    def rope_of(self, layer: int) -> Rope:
        """The rotary positions of a layer."""
        return self.local_rope if self.local_rope is not None and self.window(layer) else self.rope

    def has_experts(self, layer: int) -> bool:
        """Whether a layer is a mixture of experts."""
        return self.experts is not None and layer in self.experts.layers

    @property
    def matrix_parameters(self) -> int:
        """Parameters that multiply every token: the hidden matrices that it meets and the head, not the look-up."""
        total = self.vocabulary_size * self.hidden_size if self.has_head else 0
        for number, tower in enumerate(self.towers):
            attention = 2 * self.hidden_size * tower.head_dim * (tower.heads + tower.kv_heads)
            attention *= 1 + (number == 1)  # a decoder's second attention, to the encoder
            for layer in range(tower.layers):
                width = tower.intermediate_size
                if self.experts is not None and self.has_experts(layer):
                    width = self.experts.chosen * self.experts.intermediate_size
                    total += self.hidden_size * self.experts.count
                total += attention + (2 + self.gated) * self.hidden_size * width
        return total

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once, a head's fixed bias not at all."""
        norm = self.hidden_size * (1 + self.norm_bias)
        learned = self.context_length + self.position_offset if self.positions == "learned" else 0
        total = (self.vocabulary_size + self.token_types) * self.hidden_size
        for number, tower in enumerate(self.towers):
            query, key = tower.heads * tower.head_dim, tower.kv_heads * tower.head_dim
            attention = 2 * self.hidden_size * (query + key)
            attention += self.query_bias * (query + 2 * key) + self.output_bias * self.hidden_size
            attention += {"none": 0, "head": 2 * tower.head_dim, "all": query + key}[self.qk_norm]
            norms = 4 if self.order == "sandwich" else 2
            if number == 1:
                attention, norms = 2 * attention, 3
            for layer in range(tower.layers):
                total += attention + norms * norm
                if self.experts is not None and self.has_experts(layer):
                    total += self.experts.count * self.hidden_size * (1 + 3 * self.experts.intermediate_size)
                else:
                    width = tower.intermediate_size
                    total += (2 + self.gated) * self.hidden_size * width
                    total += self.feed_forward_bias * ((1 + self.gated) * width + self.hidden_size)
            total += norm * (self.order != "post") + learned * self.hidden_size + norm * self.embedding_norm
            total += self.buckets.count * tower.heads if self.positions == "relative" else 0
        total -= norm * (not self.first_attention_norm)
        total += 0 if self.shared_embeddings else self.vocabulary_size * self.hidden_size
        if self.has_head:
            total += 0 if self.tied_embeddings else self.vocabulary_size * self.hidden_size
            total += self.vocabulary_size if self.head_bias == "learned" else 0
            if self.head_transform:
                total += self.hidden_size * (self.hidden_size + self.head_transform_bias) + norm
        return total

    def training_flops_per_token(self, context_length: int | None = None) -> float:
        """Arithmetic of forward and backward for one token: 6 per matrix parameter, and the causal half of attention.

        Chowdhery et al. 2022 (PaLM), appendix B; attention there is counted in full, here only what is not masked.
        Of an encoder-decoder each token, of the one text or the other, goes through one of two towers.
        """
        context = context_length or self.context_length
        share = 0.5 if self.kind == "encoder-decoder" else 1.0
        return 6.0 * share * (self.matrix_parameters + self.layers * self.heads * self.head_dim * context)


def _check_size(field: str, value: int) -> None:
    if not 1 <= value <= LARGEST_SIZE:
        raise InputError(f"{field} must be between 1 and {LARGEST_SIZE}, not {value}", where="model shape")


def _misfit(what: str) -> InputError:
    return InputError(what, where="model shape")
