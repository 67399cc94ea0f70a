"""OLMo 2: Llama with the norms after attention and feed-forward, and with queries and keys normed over all heads."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import Family
from rhapsode.model.families.llama import UNUSED, read_plain, write_sizes
from rhapsode.model.families.qwen3 import NORMED
from rhapsode.model.fields import Fields


def _read(fields: Fields) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return read_plain(fields, epsilon=1e-5) | {"query_bias": bias, "output_bias": bias}


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config) | {"hidden_act": "silu", "attention_bias": config.query_bias}


OLMO2 = Family(
    name="olmo2",
    kind="decoder",
    architectures=("Olmo2ForCausalLM",),
    traits={"order": "output", "qk_norm": "all"},
    modules=NORMED
    | {
        "stack.blocks.{layer}.attention_norm": "model.layers.{layer}.post_attention_layernorm",
        "stack.blocks.{layer}.feed_forward_norm": "model.layers.{layer}.post_feedforward_layernorm",
    },
    read=_read,
    write=_write,
    unused=UNUSED,
)
