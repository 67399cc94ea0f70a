"""The shape of a decoder: what `config.json` says of it, in the field's terms and checked."""

from __future__ import annotations

from dataclasses import dataclass

from rhapsode.base.errors import InputError

LARGEST_SIZE = 1 << 26
"""Of any one size: what no model reaches, and no product of two overflows at."""


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer.

    Raises:
        InputError: a size is not positive, heads do not divide, or the head width is odd.
    """

    vocabulary_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    layers: int
    """Blocks of attention and feed-forward."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads; each serves `heads / kv_heads` query heads (grouped-query attention)."""
    head_dim: int
    """Width of a head; even, because rotary positions turn pairs."""
    intermediate_size: int
    """Width inside the gated feed-forward."""
    context_length: int
    """Longest sequence, in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    norm_epsilon: float = 1e-6
    """Added to the mean square before its root."""
    tied_embeddings: bool = True
    """The head is the embedding."""
    family: str = "qwen3"
    """Which family's folder format this is."""

    def __post_init__(self) -> None:
        for field in (
            "vocabulary_size",
            "hidden_size",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "intermediate_size",
            "context_length",
        ):
            if not 1 <= getattr(self, field) <= LARGEST_SIZE:
                raise InputError(
                    f"{field} must be between 1 and {LARGEST_SIZE}, not {getattr(self, field)}", where="model shape"
                )
        if self.heads % self.kv_heads:
            raise InputError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})", where="model shape"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim must be even, not {self.head_dim}", where="model shape")

    @property
    def matrix_parameters(self) -> int:
        """Parameters that multiply every token: all hidden matrices and the head, not the embedding look-up."""
        attention = 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        return self.layers * (attention + feed_forward) + self.vocabulary_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        gains = self.layers * (2 * self.hidden_size + 2 * self.head_dim) + self.hidden_size
        untied = 0 if self.tied_embeddings else self.vocabulary_size * self.hidden_size
        return self.matrix_parameters + gains + untied

    def training_flops_per_token(self, context_length: int | None = None) -> float:
        """Arithmetic of forward and backward for one token: 6 per matrix parameter, and the causal half of attention.

        Chowdhery et al. 2022 (PaLM), appendix B; attention there is counted in full, here only what is not masked.
        """
        context = context_length or self.context_length
        return 6.0 * self.matrix_parameters + 6.0 * self.layers * self.heads * self.head_dim * context
