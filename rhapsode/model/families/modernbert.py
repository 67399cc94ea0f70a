"""ModernBERT: an encoder with rotary positions, norms before each part, gated feed-forwards, windows in most layers."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig, Rope
from rhapsode.model.families.family import ACTIVATIONS, WRITTEN, Family, Packed, read_rope, read_windows, write_scaling
from rhapsode.model.fields import Fields

_BLOCK, _THEIRS = "stack.blocks.{layer}", "model.layers.{layer}"


def _read(fields: Fields) -> dict[str, Any]:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    layers, context = fields.layers("num_hidden_layers"), fields.size("max_position_embeddings")
    both = fields.object("rope_parameters")
    wide: dict[str, Any] = {"rope_theta": fields.any("global_rope_theta"), "rope_scaling": fields.any("rope_scaling")}
    near: dict[str, Any] = {"rope_theta": fields.any("local_rope_theta"), "rope_scaling": fields.any("rope_scaling")}
    if both is not None:
        wide, near = ({"rope_parameters": both.any(f"{kind}_attention")} for kind in ("full", "sliding"))
    every = fields.integer("global_attn_every_n_layers", 3)
    by_number = tuple(layer % max(1, every) != 0 for layer in range(layers))
    window = fields.integer("local_attention", 128) // 2
    fields.any("sliding_window")
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // max(1, heads),
        "intermediate_size": fields.size("intermediate_size"),
        "context_length": context,
        "norm_epsilon": fields.number("norm_eps", 1e-5),
        "norm_bias": fields.flag("norm_bias", False),
        "rope": read_rope(Fields(wide, fields.where), context, default=160_000.0),
        "local_rope": read_rope(Fields(near, fields.where), context),
        "windows": read_windows(fields, layers, window, by_number),
        "query_bias": (bias := fields.flag("attention_bias", False)),
        "output_bias": bias,
        "activation": fields.choice("hidden_activation", ACTIVATIONS, "gelu"),
        "feed_forward_bias": fields.flag("mlp_bias", False),
        "head_bias": "learned" if fields.flag("decoder_bias", True) else "none",
        "head_transform_bias": fields.flag("classifier_bias", False),
        "head_activation": fields.choice("classifier_activation", ACTIVATIONS, "gelu"),
        "tied_embeddings": fields.flag("tie_word_embeddings", True),
    }


def _write_ropes(wide: Rope, near: Rope) -> dict[str, Any]:
    """In the fields that every reader knows, which have one scaling for both kinds of layer, where that is enough."""
    if wide.scaling == near.scaling:
        scaling = write_scaling(wide)
        return {"global_rope_theta": wide.theta, "local_rope_theta": near.theta, "rope_scaling": scaling}
    ropes = {"full_attention": wide, "sliding_attention": near}
    return {
        "rope_parameters": {
            kind: {"rope_theta": rope.theta} | (write_scaling(rope) or {"rope_type": "default"})
            for kind, rope in ropes.items()
        }
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "norm_eps": config.norm_epsilon,
        "norm_bias": config.norm_bias,
        **_write_ropes(config.rope, config.local_rope or config.rope),
        "layer_types": [
            "sliding_attention" if config.window(layer) else "full_attention" for layer in range(config.layers)
        ],
        "local_attention": 2 * (max(config.windows, default=0) or 64),
        "attention_bias": config.query_bias,
        "hidden_activation": WRITTEN[config.activation],
        "classifier_activation": WRITTEN[config.head_activation],
        "mlp_bias": config.feed_forward_bias,
        "decoder_bias": config.head_bias == "learned",
        "classifier_bias": config.head_transform_bias,
        "tie_word_embeddings": config.tied_embeddings,
    }


MODERNBERT = Family(
    name="modernbert",
    kind="encoder",
    architectures=("ModernBertForMaskedLM",),
    traits={
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "first_attention_norm": False,
        "activation": "gelu",
        "embedding_norm": True,
        "head_bias": "learned",
        "head_transform": True,
        "head_transform_bias": False,
    },
    modules={
        "embedding": "model.embeddings.tok_embeddings",
        "stack.embedding_norm": "model.embeddings.norm",
        f"{_BLOCK}.attention_norm": f"{_THEIRS}.attn_norm",
        f"{_BLOCK}.attention.output": f"{_THEIRS}.attn.Wo",
        f"{_BLOCK}.feed_forward_norm": f"{_THEIRS}.mlp_norm",
        f"{_BLOCK}.feed_forward.down": f"{_THEIRS}.mlp.Wo",
        "stack.final_norm": "model.final_norm",
        "head.dense": "head.dense",
        "head.norm": "head.norm",
        "head": "decoder",
    },
    packed=(
        Packed(
            f"{_THEIRS}.attn.Wqkv", tuple(f"{_BLOCK}.attention.{part}" for part in ("query", "key", "value")), "rows"
        ),
        Packed(f"{_THEIRS}.mlp.Wi", (f"{_BLOCK}.feed_forward.gate", f"{_BLOCK}.feed_forward.up"), "rows"),
    ),
    read=_read,
    write=_write,
    headless="ModernBertModel",
    unused=("decoder.weight",),
)
