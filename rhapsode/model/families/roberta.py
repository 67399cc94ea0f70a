"""RoBERTa: BERT whose positions begin after the padding token's number, with one segment and a head of other names."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families import bert
from rhapsode.model.families.family import Family
from rhapsode.model.fields import Fields


def _read(fields: Fields) -> dict[str, Any]:
    sizes = bert.read_sizes(fields)
    offset = fields.integer("pad_token_id", 1) + 1
    return sizes | {"position_offset": offset, "context_length": sizes["context_length"] - offset}


def _write(config: ModelConfig) -> dict[str, Any]:
    return bert.write_sizes(config) | {
        "max_position_embeddings": config.context_length + config.position_offset,
        "pad_token_id": config.position_offset - 1,
    }


def _untied(config: ModelConfig) -> dict[str, str]:
    """A head of its own has its bias under another name."""
    return {} if config.tied_embeddings else {"head.bias": "lm_head.decoder.bias"}


ROBERTA = Family(
    name="roberta",
    kind="encoder",
    architectures=("RobertaForMaskedLM",),
    traits=bert.TRAITS | {"token_types": 1, "position_offset": 2, "norm_epsilon": 1e-5},
    modules=bert.modules("roberta")
    | {
        "head.dense": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "head.weight": "lm_head.decoder.weight",
        "head.bias": "lm_head.bias",
    },
    read=_read,
    write=_write,
    variant=_untied,
    prefix="roberta.",
    headless="RobertaModel",
    aliases=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
    unused=(
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "lm_head.decoder.weight",
        "lm_head.decoder.bias",
        "lm_head.bias",
    ),
)
