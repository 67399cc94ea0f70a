"""Llama (2 and 3, and what was made in their form): RMSNorm, rotary positions, grouped queries, gated feed-forward."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import SILU, Family, read_rope, write_scaling
from rhapsode.model.fields import Fields

MODULES = {
    "embedding": "model.embed_tokens",
    "stack.blocks.{layer}.attention_norm": "model.layers.{layer}.input_layernorm",
    "stack.blocks.{layer}.attention.query": "model.layers.{layer}.self_attn.q_proj",
    "stack.blocks.{layer}.attention.key": "model.layers.{layer}.self_attn.k_proj",
    "stack.blocks.{layer}.attention.value": "model.layers.{layer}.self_attn.v_proj",
    "stack.blocks.{layer}.attention.output": "model.layers.{layer}.self_attn.o_proj",
    "stack.blocks.{layer}.feed_forward_norm": "model.layers.{layer}.post_attention_layernorm",
    "stack.blocks.{layer}.feed_forward.gate": "model.layers.{layer}.mlp.gate_proj",
    "stack.blocks.{layer}.feed_forward.up": "model.layers.{layer}.mlp.up_proj",
    "stack.blocks.{layer}.feed_forward.down": "model.layers.{layer}.mlp.down_proj",
    "stack.final_norm": "model.norm",
    "head": "lm_head",
}
UNUSED = ("rotary_emb.inv_freq", "lm_head.weight")


def read_sizes(fields: Fields, *, head_dim: int | None = None, epsilon: float = 1e-6) -> dict[str, Any]:
    """What all families in Llama's form say in the same words.

    Args:
        head_dim: where the file does not say it; None: hidden_size / heads.
        epsilon: the norm's, where the file does not say it.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": fields.layers("num_hidden_layers"),
        "heads": heads,
        "kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": fields.size("head_dim", head_dim or hidden // max(1, heads)),
        "intermediate_size": fields.size("intermediate_size"),
        "context_length": fields.size("max_position_embeddings"),
        "norm_epsilon": fields.number("rms_norm_eps", epsilon),
    }


def read_plain(fields: Fields, *, head_dim: int | None = None, epsilon: float = 1e-6) -> dict[str, Any]:
    """`read_sizes`, and what all but Gemma say in the same words besides."""
    fields.choice("hidden_act", SILU, "silu")
    sizes = read_sizes(fields, head_dim=head_dim, epsilon=epsilon)
    return sizes | {
        "rope": read_rope(fields, sizes["context_length"]),
        "tied_embeddings": fields.flag("tie_word_embeddings", False),
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_sizes` and of the rest of `read_plain`, but for the activation."""
    return {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope.theta,
        "rope_scaling": write_scaling(config.rope),
        "tie_word_embeddings": config.tied_embeddings,
    }


def _read(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    biases = {"query_bias": bias, "output_bias": bias, "feed_forward_bias": fields.flag("mlp_bias", False)}
    return read_plain(fields) | biases


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config) | {
        "hidden_act": "silu",
        "attention_bias": config.query_bias,
        "mlp_bias": config.feed_forward_bias,
    }


LLAMA = Family(
    name="llama",
    kind="decoder",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    traits={},
    modules=MODULES,
    read=_read,
    write=_write,
    unused=UNUSED,
)
