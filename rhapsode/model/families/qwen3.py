"""Qwen3 (dense): RMSNorm, rotary positions, grouped queries with normed queries and keys, gated feed-forward."""

from __future__ import annotations

from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.model.config import DecoderConfig

ARCHITECTURE = "Qwen3ForCausalLM"
UNSUPPORTED = {
    "attention_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
"""Settings that this family's file may carry, with the only value that is computed here."""

_INSIDE_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    """Our parameter name -> the name in this family's files. A tied head is not stored."""
    names = {"embedding.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    for layer in range(config.layers):
        for ours, theirs in _INSIDE_BLOCK.items():
            names[f"blocks.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    if not config.tied_embeddings:
        names["head.weight"] = "lm_head.weight"
    return names


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """The family's `config.json`, without token ids."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "use_cache": True,
        **UNSUPPORTED,
    }


def read_config(values: dict[str, Any], where: str) -> DecoderConfig:
    """The shape that a `config.json` of this family describes.

    Raises:
        InputError: a setting is missing, has the wrong type, or asks for what is not computed here.
    """
    for key, only in UNSUPPORTED.items():
        if values.get(key, only) != only:
            raise InputError(f"{key} = {values[key]!r} is not supported", where=where, todo=f"Only {only!r} is.")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise InputError("scaled rotary positions are not supported", where=f"{where}, rope_scaling")
    theta = values.get("rope_theta", rope.get("rope_theta", 10_000.0))

    def integer(key: str, default: int | None = None) -> int:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{key} must be a whole number, not {value!r}", where=where)
        return value

    def number(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{key} must be a positive number, not {value!r}", where=where)
        return float(value)

    heads = integer("num_attention_heads")
    return DecoderConfig(
        vocabulary_size=integer("vocab_size"),
        hidden_size=integer("hidden_size"),
        layers=integer("num_hidden_layers"),
        heads=heads,
        kv_heads=integer("num_key_value_heads", heads),
        head_dim=integer("head_dim", 128),
        intermediate_size=integer("intermediate_size"),
        context_length=integer("max_position_embeddings"),
        rope_theta=number("rope_theta", theta),
        norm_epsilon=number("rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        family="qwen3",
    )
