"""Marian: the transformer of "Attention Is All You Need": sinusoidal positions, norms after each part, two towers."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families import bart
from rhapsode.model.families.family import Family
from rhapsode.model.fields import Fields


def _read(fields: Fields) -> dict[str, Any]:
    fields.only("decoder_vocab_size", fields.any("vocab_size"))
    fields.only("normalize_embedding", False)
    sizes = bart.read_sizes(fields, "gelu")
    return sizes | {
        "start_id": fields.integer("decoder_start_token_id", sizes["vocabulary_size"] - 1),
        "shared_embeddings": sizes["tied_embeddings"] and fields.flag("share_encoder_decoder_embeddings", True),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    # An untied model whose embeddings are said to be shared has three matrices in transformers as well.
    shared = config.shared_embeddings
    return bart.write_sizes(config) | {
        "share_encoder_decoder_embeddings": shared,
        "decoder_vocab_size": config.vocabulary_size,
    }


MARIAN = Family(
    name="marian",
    kind="encoder-decoder",
    architectures=("MarianMTModel", "MarianModel"),
    traits=bart.TRAITS | {"positions": "sinusoidal", "activation": "relu"},
    modules=bart.MODULES,
    packed=(bart.LOGITS_BIAS,),
    variant=bart.embeddings,
    read=_read,
    write=_write,
    scaled_embeddings=True,
    aliases=bart.ALIASES,
    unused=(*bart.UNUSED, "embed_positions.weight"),
)
