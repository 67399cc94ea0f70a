"""T5 (1.0 and 1.1): an encoder-decoder whose positions are biases by distance; RMSNorm before each part, no biases."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig, RelativeBuckets, StackSizes
from rhapsode.model.families.family import ACTIVATIONS, Family
from rhapsode.model.fields import Fields

CONTEXT = 512
"""Positions have no end; this is what the published models were trained with."""

_PROJECTIONS = {name: (name, False) for name in ACTIVATIONS} | {
    f"gated-{name}": ("gelu_new" if name == "gelu" else name, True) for name in ACTIVATIONS
}


def _modules() -> dict[str, str]:
    names = {"embedding": "shared", "head": "lm_head"}
    for tower in ("encoder", "decoder"):
        block, theirs = f"{tower}.blocks.{{layer}}", f"{tower}.block.{{layer}}.layer"
        last = 1 if tower == "encoder" else 2
        attentions = {"attention": "0.SelfAttention"}
        if tower == "decoder":
            attentions["cross_attention"] = "1.EncDecAttention"
        for ours, their in attentions.items():
            names |= {f"{block}.{ours}.{part}": f"{theirs}.{their}.{part[0]}" for part in ("query", "key", "value")}
            names |= {
                f"{block}.{ours}.output": f"{theirs}.{their}.o",
                f"{block}.{ours}_norm": f"{theirs}.{their[0]}.layer_norm",
            }
        names |= {
            f"{tower}.relative_bias": f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias",
            f"{block}.feed_forward_norm": f"{theirs}.{last}.layer_norm",
            f"{tower}.final_norm": f"{tower}.final_layer_norm",
        }
    return names


def _feed_forward(config: ModelConfig) -> dict[str, str]:
    """The plain one of 1.0 and the gated one of 1.1 have other names."""
    theirs = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    return {
        f"{tower}.blocks.{{layer}}.feed_forward.{ours}": f"{tower}.block.{{layer}}.layer.{last}.DenseReluDense.{their}"
        for tower, last in (("encoder", 1), ("decoder", 2))
        for ours, their in theirs.items()
    }


def _read(fields: Fields) -> dict[str, Any]:
    hidden, heads, width = fields.size("d_model"), fields.size("num_heads"), fields.size("d_ff")
    layers, head_dim = fields.layers("num_layers"), fields.size("d_kv")
    activation, gated = fields.choice("feed_forward_proj", _PROJECTIONS, "relu")
    fields.any("dense_act_fn"), fields.any("is_gated_act"), fields.any("n_positions"), fields.any("output_past")
    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied)
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": width,
        "context_length": fields.size("n_positions", CONTEXT),
        "decoder": StackSizes(fields.layers("num_decoder_layers", layers), heads, heads, head_dim, width),
        "norm_epsilon": fields.number("layer_norm_epsilon", 1e-6),
        "buckets": RelativeBuckets(
            fields.size("relative_attention_num_buckets", 32), fields.size("relative_attention_max_distance", 128)
        ),
        "gated": gated,
        "activation": ACTIVATIONS[activation],
        "tied_embeddings": tied,
        "head_scale": hidden**-0.5 if scaled else 1.0,
        "start_id": fields.integer("decoder_start_token_id", 0),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    decoder = config.decoder
    assert decoder is not None
    name = {"gelu_tanh": "gelu" if config.gated else "gelu_new"}.get(config.activation, config.activation)
    return {
        "is_encoder_decoder": True,
        "vocab_size": config.vocabulary_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.layers,
        "num_decoder_layers": decoder.layers,
        "num_heads": config.heads,
        "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "relative_attention_num_buckets": config.buckets.count,
        "relative_attention_max_distance": config.buckets.furthest,
        "feed_forward_proj": f"gated-{name}" if config.gated else name,
        "tie_word_embeddings": config.tied_embeddings,
        "scale_decoder_outputs": config.head_scale != 1.0,
        "decoder_start_token_id": config.start_id,
    }


T5 = Family(
    name="t5",
    kind="encoder-decoder",
    architectures=("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    traits={"positions": "relative", "attention_scale": 1.0, "activation": "gelu_tanh"},
    modules=_modules(),
    variant=_feed_forward,
    read=_read,
    write=_write,
    prefix="",
    unused=(
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
)
