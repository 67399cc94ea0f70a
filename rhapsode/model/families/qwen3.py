"""Qwen3 (dense): RMSNorm, rotary positions, grouped queries with normed queries and keys, gated feed-forward.

The family that Rhapsode trains unless told otherwise.
"""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import Family
from rhapsode.model.families.llama import MODULES, UNUSED, read_plain, write_sizes
from rhapsode.model.families.qwen2 import read_upper_windows, write_upper_windows
from rhapsode.model.fields import Fields

NORMED = MODULES | {
    "stack.blocks.{layer}.attention.query_norm": "model.layers.{layer}.self_attn.q_norm",
    "stack.blocks.{layer}.attention.key_norm": "model.layers.{layer}.self_attn.k_norm",
}


def _read(fields: Fields) -> dict[str, Any]:
    sizes, bias = read_plain(fields, head_dim=128), fields.flag("attention_bias", False)
    windows = read_upper_windows(fields, sizes["layers"])
    return sizes | {"query_bias": bias, "output_bias": bias, "windows": windows}


def _write(config: ModelConfig) -> dict[str, Any]:
    chosen = {"hidden_act": "silu", "attention_bias": config.query_bias}
    return write_sizes(config) | chosen | write_upper_windows(config)


QWEN3 = Family(
    name="qwen3",
    kind="decoder",
    architectures=("Qwen3ForCausalLM",),
    traits={"qk_norm": "head"},
    modules=NORMED,
    read=_read,
    write=_write,
    unused=UNUSED,
)
