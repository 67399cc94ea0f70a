"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and windows in the upper layers on request."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import ModelConfig
from rhapsode.model.families.family import Family, read_windows
from rhapsode.model.families.llama import MODULES, UNUSED, read_plain, write_sizes
from rhapsode.model.fields import Fields


def read_upper_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """Windows from layer `max_window_layers` on, if the file wants any."""
    wanted = fields.flag("use_sliding_window", False)
    window, first = fields.integer("sliding_window", 4096), fields.integer("max_window_layers", 28)
    by_number = tuple(wanted and layer >= first for layer in range(layers))
    return read_windows(fields, layers, window, by_number) if wanted else _none(fields, layers)


def _none(fields: Fields, layers: int) -> tuple[int, ...]:
    types = fields.several("layer_types", layers)
    if types is not None and any(kind != "full_attention" for kind in types):
        raise fields.wrong("layer_types", "must all be full_attention where use_sliding_window is false", types)
    return ()


def write_upper_windows(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_upper_windows`."""
    if not any(config.windows):
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.layers}
    kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
    first = kinds.index("sliding_attention")
    return {
        "use_sliding_window": True,
        "sliding_window": max(config.windows),
        "max_window_layers": first,
        "layer_types": kinds,
    }


def _read(fields: Fields) -> dict[str, Any]:
    sizes = read_plain(fields)
    return sizes | {"windows": read_upper_windows(fields, sizes["layers"])}


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_sizes(config) | {"hidden_act": "silu"} | write_upper_windows(config)


QWEN2 = Family(
    name="qwen2",
    kind="decoder",
    architectures=("Qwen2ForCausalLM",),
    traits={"query_bias": True},
    modules=MODULES,
    read=_read,
    write=_write,
    unused=UNUSED,
)
