"""Gemma 3 (text): norms before and after each part, windows in five of six layers, scaled embeddings."""

from __future__ import annotations

import math
from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import Family, read_rope, read_windows, write_scaling
from rhapsode.model.families.llama import UNUSED, read_sizes, write_sizes
from rhapsode.model.families.qwen3 import NORMED
from rhapsode.model.fields import Fields

EVERY = 6
"""Of so many layers, the last one sees everything."""


def _read(fields: Fields) -> dict[str, Any]:
    fields.only("hidden_activation", "gelu_pytorch_tanh")
    fields.only("hidden_act", "gelu_pytorch_tanh")
    fields.only("use_bidirectional_attention", False)
    fields.only("final_logit_softcapping")
    fields.only("attn_logit_softcapping")
    sizes = read_sizes(fields, head_dim=256)
    context, layers = sizes["context_length"], sizes["layers"]
    both, near = fields.object("rope_parameters"), {"rope_theta": fields.any("rope_local_base_freq")}
    if both is None:
        rope = read_rope(fields, context, default=1_000_000.0)
    else:
        rope = read_rope(_alone(both, "full_attention"), context, default=1_000_000.0)
        near = {"rope_parameters": both.any("sliding_attention")}
    every = fields.integer("sliding_window_pattern", EVERY)
    by_number = tuple((layer + 1) % max(1, every) != 0 for layer in range(layers))
    bias = fields.flag("attention_bias", False)
    return sizes | {
        "rope": rope,
        "local_rope": read_rope(Fields(near, fields.where), context),
        "windows": read_windows(fields, layers, fields.integer("sliding_window", 4096), by_number),
        "attention_scale": fields.number("query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": math.sqrt(sizes["hidden_size"]),
        "query_bias": bias,
        "output_bias": bias,
        "tied_embeddings": fields.flag("tie_word_embeddings", True),
    }


def _alone(both: Fields, kind: str) -> Fields:
    """The rotary positions of one kind of layer, as if they were the model's only ones."""
    return Fields({"rope_parameters": both.any(kind)}, both.where)


def _write(config: ModelConfig) -> dict[str, Any]:
    kinds = ["sliding_attention" if config.window(layer) else "full_attention" for layer in range(config.layers)]
    scalar = config.scale(config.towers[0]) ** -2
    return write_sizes(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.query_bias,
        "rope_local_base_freq": (config.local_rope or config.rope).theta,
        "rope_scaling": write_scaling(config.rope),
        "sliding_window": max(config.windows, default=0) or 4096,
        "layer_types": kinds,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }


GEMMA3 = Family(
    name="gemma3_text",
    kind="decoder",
    architectures=("Gemma3ForCausalLM",),
    traits={
        "norm_unit_offset": True,
        "order": "sandwich",
        "qk_norm": "head",
        "activation": "gelu_tanh",
    },
    modules=NORMED
    | {
        "stack.blocks.{layer}.attention_output_norm": "model.layers.{layer}.post_attention_layernorm",
        "stack.blocks.{layer}.feed_forward_norm": "model.layers.{layer}.pre_feedforward_layernorm",
        "stack.blocks.{layer}.feed_forward_output_norm": "model.layers.{layer}.post_feedforward_layernorm",
    },
    scaled_embeddings=True,
    read=_read,
    write=_write,
    unused=UNUSED,
)
