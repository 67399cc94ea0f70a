"""GPT-NeoX and Pythia: attention and feed-forward side by side, rotary positions on part of each head, layer norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import ACTIVATIONS, WRITTEN, Family, Packed, read_rope, write_scaling
from rhapsode.model.fields import Fields

_BLOCK, _THEIRS = "stack.blocks.{layer}", "gpt_neox.layers.{layer}"


def _read(fields: Fields) -> dict[str, Any]:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    context = fields.size("max_position_embeddings")
    share = fields.number("rotary_pct", 0.25)
    rope = read_rope(fields, context, theta="rotary_emb_base")
    fields.any("rope_theta"), fields.any("partial_rotary_factor")
    today = fields.object("rope_parameters")
    if today is None or "partial_rotary_factor" not in today:
        rope = replace(rope, share=share)
    bias = fields.flag("attention_bias", True)
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": fields.layers("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // max(1, heads),
        "intermediate_size": fields.size("intermediate_size"),
        "context_length": context,
        "norm_epsilon": fields.number("layer_norm_eps", 1e-5),
        "rope": rope,
        "order": "parallel" if fields.flag("use_parallel_residual", True) else "pre",
        "query_bias": bias,
        "output_bias": bias,
        "activation": fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        "tied_embeddings": fields.flag("tie_word_embeddings", False),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "layer_norm_eps": config.norm_epsilon,
        "rotary_emb_base": config.rope.theta,
        "rotary_pct": config.rope.share,
        "rope_scaling": write_scaling(config.rope),
        "use_parallel_residual": config.order == "parallel",
        "attention_bias": config.query_bias,
        "hidden_act": WRITTEN[config.activation],
        "tie_word_embeddings": config.tied_embeddings,
    }


GPT_NEOX = Family(
    name="gpt_neox",
    kind="decoder",
    architectures=("GPTNeoXForCausalLM",),
    traits={
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "norm_bias": True,
        "order": "parallel",
        "query_bias": True,
        "output_bias": True,
        "gated": False,
        "activation": "gelu",
        "feed_forward_bias": True,
    },
    modules={
        "embedding": "gpt_neox.embed_in",
        f"{_BLOCK}.attention_norm": f"{_THEIRS}.input_layernorm",
        f"{_BLOCK}.attention.output": f"{_THEIRS}.attention.dense",
        f"{_BLOCK}.feed_forward_norm": f"{_THEIRS}.post_attention_layernorm",
        f"{_BLOCK}.feed_forward.up": f"{_THEIRS}.mlp.dense_h_to_4h",
        f"{_BLOCK}.feed_forward.down": f"{_THEIRS}.mlp.dense_4h_to_h",
        "stack.final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    },
    packed=(
        Packed(
            f"{_THEIRS}.attention.query_key_value",
            tuple(f"{_BLOCK}.attention.{part}" for part in ("query", "key", "value")),
            "heads",
        ),
    ),
    read=_read,
    write=_write,
    prefix="gpt_neox.",
    aliases=(("embed_out", "lm_head"),),
    unused=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq", "embed_out.weight", "lm_head.weight"),
)
