"""Mistral 7B and its kin: Llama with a sliding window over the last tokens."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import Family
from rhapsode.model.families.llama import MODULES, UNUSED, read_plain, write_sizes
from rhapsode.model.fields import Fields


def _read(fields: Fields) -> dict[str, Any]:
    sizes = read_plain(fields)
    window = fields.integer("sliding_window", 0)
    return sizes | {"windows": (window,) * sizes["layers"] if window else ()}


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config) | {"hidden_act": "silu", "sliding_window": config.window(0) or None}


MISTRAL = Family(
    name="mistral",
    kind="decoder",
    architectures=("MistralForCausalLM",),
    traits={},
    modules=MODULES,
    read=_read,
    write=_write,
    unused=UNUSED,
)
