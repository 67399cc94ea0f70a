"""BERT: learned positions and segments, norms after each part, and a head that fills masks."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import ACTIVATIONS, WRITTEN, Family
from rhapsode.model.fields import Fields

TRAITS: dict[str, Any] = {
    "norm": "layer",
    "norm_epsilon": 1e-12,
    "norm_bias": True,
    "order": "post",
    "positions": "learned",
    "query_bias": True,
    "output_bias": True,
    "gated": False,
    "activation": "gelu",
    "feed_forward_bias": True,
    "embedding_norm": True,
    "token_types": 2,
    "head_bias": "learned",
    "head_transform": True,
}


def modules(prefix: str) -> dict[str, str]:
    """The names below the head, which RoBERTa shares."""
    block, theirs = "stack.blocks.{layer}", f"{prefix}.encoder.layer.{{layer}}"
    return {
        "embedding": f"{prefix}.embeddings.word_embeddings",
        "stack.positions": f"{prefix}.embeddings.position_embeddings",
        "stack.token_types": f"{prefix}.embeddings.token_type_embeddings",
        "stack.embedding_norm": f"{prefix}.embeddings.LayerNorm",
        f"{block}.attention.query": f"{theirs}.attention.self.query",
        f"{block}.attention.key": f"{theirs}.attention.self.key",
        f"{block}.attention.value": f"{theirs}.attention.self.value",
        f"{block}.attention.output": f"{theirs}.attention.output.dense",
        f"{block}.attention_norm": f"{theirs}.attention.output.LayerNorm",
        f"{block}.feed_forward.up": f"{theirs}.intermediate.dense",
        f"{block}.feed_forward.down": f"{theirs}.output.dense",
        f"{block}.feed_forward_norm": f"{theirs}.output.LayerNorm",
    }


def read_sizes(fields: Fields) -> dict[str, Any]:
    """What BERT and RoBERTa say in the same words."""
    fields.only("position_embedding_type", "absolute")
    fields.only("is_decoder", False)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden,
        "layers": fields.layers("num_hidden_layers"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // max(1, heads),
        "intermediate_size": fields.size("intermediate_size"),
        "context_length": fields.size("max_position_embeddings"),
        "norm_epsilon": fields.number("layer_norm_eps", 1e-12),
        "activation": fields.choice("hidden_act", ACTIVATIONS, "gelu"),
        "token_types": fields.size("type_vocab_size", 2),
        "tied_embeddings": fields.flag("tie_word_embeddings", True),
    }


def _read(fields: Fields) -> dict[str, Any]:
    sizes = read_sizes(fields)
    return sizes | {"head_activation": sizes["activation"]}


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_sizes`."""
    return {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": WRITTEN[config.activation],
        "type_vocab_size": config.token_types,
        "tie_word_embeddings": config.tied_embeddings,
    }


def _untied(config: ModelConfig) -> dict[str, str]:
    """A head of its own has its bias under another name."""
    return {} if config.tied_embeddings else {"head.bias": "cls.predictions.decoder.bias"}


BERT = Family(
    name="bert",
    kind="encoder",
    architectures=("BertForMaskedLM", "BertForPreTraining"),
    traits=TRAITS,
    modules=modules("bert")
    | {
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.weight": "cls.predictions.decoder.weight",
        "head.bias": "cls.predictions.bias",
    },
    read=_read,
    write=write_sizes,
    variant=_untied,
    prefix="bert.",
    headless="BertModel",
    aliases=(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
    unused=(
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "cls.predictions.bias",
    ),
)
