"""BART: an encoder-decoder with learned positions, layer norms after each part, and normed embeddings."""

from __future__ import annotations

import math
from typing import Any

from rhapsode.model.config import ModelConfig, StackSizes
from rhapsode.model.families.family import ACTIVATIONS, WRITTEN, Family, Packed
from rhapsode.model.fields import Fields


def _modules() -> dict[str, str]:
    names = {"head": "lm_head"}
    for tower in ("encoder", "decoder"):
        block, theirs = f"{tower}.blocks.{{layer}}", f"model.{tower}.layers.{{layer}}"
        attentions = {"attention": "self_attn"}
        if tower == "decoder":
            attentions["cross_attention"] = "encoder_attn"
        for ours, their in attentions.items():
            names |= {
                f"{block}.{ours}.query": f"{theirs}.{their}.q_proj",
                f"{block}.{ours}.key": f"{theirs}.{their}.k_proj",
                f"{block}.{ours}.value": f"{theirs}.{their}.v_proj",
                f"{block}.{ours}.output": f"{theirs}.{their}.out_proj",
                f"{block}.{ours}_norm": f"{theirs}.{their}_layer_norm",
            }
        names |= {
            f"{block}.feed_forward.up": f"{theirs}.fc1",
            f"{block}.feed_forward.down": f"{theirs}.fc2",
            f"{block}.feed_forward_norm": f"{theirs}.final_layer_norm",
        }
    return names


MODULES = _modules()
"""The names that BART and Marian share."""


def embeddings(config: ModelConfig) -> dict[str, str]:
    """Where the embeddings are, for they may be one or two."""
    if config.shared_embeddings:
        return {"embedding": "model.shared"}
    return {"embedding": "model.encoder.embed_tokens", "decoder_embedding": "model.decoder.embed_tokens"}


TRAITS: dict[str, Any] = {
    "norm": "layer",
    "norm_epsilon": 1e-5,
    "norm_bias": True,
    "order": "post",
    "query_bias": True,
    "output_bias": True,
    "gated": False,
    "feed_forward_bias": True,
    "head_bias": "fixed",
}
LOGITS_BIAS = Packed("final_logits_bias", ("head.bias",), "vector")
UNUSED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
    "encoder.version",
    "decoder.version",
    "shared.weight",
)
ALIASES = (("encoder.embed_tokens", "shared"), ("decoder.embed_tokens", "shared"))
"""Until 2025, files of untied models held one embedding for both towers."""


def read_sizes(fields: Fields, activation: str) -> dict[str, Any]:
    """What BART and Marian say in the same words."""
    hidden, heads = fields.size("d_model"), fields.size("encoder_attention_heads")
    decoder_heads = fields.size("decoder_attention_heads")
    for key in ("normalize_before", "add_bias_logits", "add_final_layer_norm", "extra_pos_embeddings"):
        fields.only(key, False, 0, 2)  # of files from before 2021
    fields.any("num_hidden_layers"), fields.any("force_bos_token_to_be_generated"), fields.any("gradient_checkpointing")
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": fields.layers("encoder_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // max(1, heads),
        "intermediate_size": fields.size("encoder_ffn_dim"),
        "context_length": fields.size("max_position_embeddings"),
        "decoder": StackSizes(
            layers=fields.layers("decoder_layers"),
            heads=decoder_heads,
            kv_heads=decoder_heads,
            head_dim=hidden // max(1, decoder_heads),
            intermediate_size=fields.size("decoder_ffn_dim"),
        ),
        "activation": fields.choice("activation_function", ACTIVATIONS, activation),
        "embedding_scale": math.sqrt(hidden) if fields.flag("scale_embedding", False) else 1.0,
        "tied_embeddings": (tied := fields.flag("tie_word_embeddings", True)),
        "shared_embeddings": tied,
    }


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_sizes`."""
    decoder = config.decoder
    assert decoder is not None
    return {
        "is_encoder_decoder": True,
        "vocab_size": config.vocabulary_size,
        "d_model": config.hidden_size,
        "encoder_layers": config.layers,
        "encoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.intermediate_size,
        "decoder_layers": decoder.layers,
        "decoder_attention_heads": decoder.heads,
        "decoder_ffn_dim": decoder.intermediate_size,
        "max_position_embeddings": config.context_length,
        "activation_function": WRITTEN[config.activation],
        "scale_embedding": config.embedding_scale != 1.0,
        "tie_word_embeddings": config.tied_embeddings,
        "decoder_start_token_id": config.start_id,
    }


def _read(fields: Fields) -> dict[str, Any]:
    fields.only("normalize_embedding", True)
    return read_sizes(fields, "gelu") | {"start_id": fields.integer("decoder_start_token_id", 2)}


BART = Family(
    name="bart",
    kind="encoder-decoder",
    architectures=("BartForConditionalGeneration", "BartModel"),
    traits=TRAITS | {"positions": "learned", "position_offset": 2, "embedding_norm": True, "activation": "gelu"},
    modules=MODULES
    | {f"{tower}.positions": f"model.{tower}.embed_positions" for tower in ("encoder", "decoder")}
    | {f"{tower}.embedding_norm": f"model.{tower}.layernorm_embedding" for tower in ("encoder", "decoder")},
    packed=(LOGITS_BIAS,),
    variant=embeddings,
    read=_read,
    write=write_sizes,
    aliases=ALIASES,
    unused=UNUSED,
)
