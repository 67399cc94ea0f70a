"""GPT-2: learned positions, layer norms, a plain feed-forward, and matrices that are stored transposed."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import ACTIVATIONS, WRITTEN, Family, Packed
from rhapsode.model.fields import Fields

_BLOCK, _THEIRS = "stack.blocks.{layer}", "transformer.h.{layer}"
_QKV = tuple(f"{_BLOCK}.attention.{part}" for part in ("query", "key", "value"))


def _read(fields: Fields) -> dict[str, Any]:
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("reorder_and_upcast_attn", False)
    hidden, heads = fields.size("n_embd"), fields.size("n_head")
    fields.any("n_ctx")
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": fields.layers("n_layer"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // max(1, heads),
        "intermediate_size": fields.size("n_inner", 4 * hidden),
        "context_length": fields.size("n_positions"),
        "norm_epsilon": fields.number("layer_norm_epsilon", 1e-5),
        "activation": fields.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "attention_scale": None if fields.flag("scale_attn_weights", True) else 1.0,
        "tied_embeddings": fields.flag("tie_word_embeddings", True),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary_size,
        "n_embd": config.hidden_size,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": WRITTEN[config.activation],
        "scale_attn_weights": config.attention_scale is None,
        "tie_word_embeddings": config.tied_embeddings,
    }


GPT2 = Family(
    name="gpt2",
    kind="decoder",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    traits={
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "norm_bias": True,
        "positions": "learned",
        "query_bias": True,
        "output_bias": True,
        "gated": False,
        "activation": "gelu_tanh",
        "feed_forward_bias": True,
    },
    modules={
        "embedding": "transformer.wte",
        "stack.positions": "transformer.wpe",
        f"{_BLOCK}.attention_norm": f"{_THEIRS}.ln_1",
        f"{_BLOCK}.feed_forward_norm": f"{_THEIRS}.ln_2",
        "stack.final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    packed=(
        Packed(
            f"{_THEIRS}.attn.c_attn",
            tuple(f"{_BLOCK}.attention.{part}" for part in ("query", "key", "value")),
            "columns",
        ),
        Packed(f"{_THEIRS}.attn.c_proj", (f"{_BLOCK}.attention.output",), "columns"),
        Packed(f"{_THEIRS}.mlp.c_fc", (f"{_BLOCK}.feed_forward.up",), "columns"),
        Packed(f"{_THEIRS}.mlp.c_proj", (f"{_BLOCK}.feed_forward.down",), "columns"),
    ),
    read=_read,
    write=_write,
    prefix="transformer.",
    unused=(".attn.bias", ".attn.masked_bias", "lm_head.weight"),
)
