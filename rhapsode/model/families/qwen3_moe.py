"""Qwen3 as a mixture of experts: some or all layers send each token through a few of many feed-forwards."""

from __future__ import annotations

from typing import Any

from rhapsode.model.config import Experts, ModelConfig
from rhapsode.model.families.family import Family
from rhapsode.model.families.llama import UNUSED, read_plain, write_sizes
from rhapsode.model.families.qwen3 import NORMED
from rhapsode.model.fields import Fields

_EXPERT = "stack.blocks.{layer}.feed_forward.experts.{expert}"
_THEIR_EXPERT = "model.layers.{layer}.mlp.experts.{expert}"


def _read(fields: Fields) -> dict[str, Any]:
    fields.only("use_sliding_window", False)
    fields.any("sliding_window"), fields.any("max_window_layers")
    sizes, bias = read_plain(fields), fields.flag("attention_bias", False)
    every, layers = fields.integer("decoder_sparse_step", 1), sizes["layers"]
    plain = fields.any("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(type(layer) is int for layer in plain) or len(plain) > layers:
        raise fields.wrong("mlp_only_layers", "must be a list of layers", plain)
    count = fields.size("num_local_experts" if "num_local_experts" in fields else "num_experts", 128)
    experts = Experts(
        count=count,
        chosen=fields.size("num_experts_per_tok", 8),
        intermediate_size=fields.size("moe_intermediate_size", 768),
        normalised=fields.flag("norm_topk_prob", False),
        layers=tuple(layer for layer in range(layers) if layer not in plain and (layer + 1) % max(1, every) == 0),
    )
    return sizes | {"query_bias": bias, "output_bias": bias, "experts": experts}


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    assert experts is not None
    return write_sizes(config) | {
        "hidden_act": "silu",
        "attention_bias": config.query_bias,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.layers) if layer not in experts.layers],
        "num_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        "moe_intermediate_size": experts.intermediate_size,
        "norm_topk_prob": experts.normalised,
    }


QWEN3_MOE = Family(
    name="qwen3_moe",
    kind="decoder",
    architectures=("Qwen3MoeForCausalLM",),
    traits={"qk_norm": "head"},
    modules=NORMED
    | {"stack.blocks.{layer}.feed_forward.router": "model.layers.{layer}.mlp.gate"}
    | {f"{_EXPERT}.{part}": f"{_THEIR_EXPERT}.{part}_proj" for part in ("gate", "up", "down")},
    read=_read,
    write=_write,
    unused=UNUSED,
)
