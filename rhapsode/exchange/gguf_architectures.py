"""The shapes of models in GGUF metadata: what llama.cpp calls an architecture, read and written.

llama.cpp computes each architecture in one way; what is not in the metadata is fixed in its code. So reading an
architecture gives the shape that llama.cpp computes, and a model can be written if reading gives its own shape back.
The facts are llama.cpp's (its converter, and the loader of each architecture).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.base.progress import note
from rhapsode.model.config import (
    DynamicScaling,
    Experts,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    Rope,
    YarnScaling,
)
from rhapsode.model.families import FAMILIES
from rhapsode.model.fields import Fields
from rhapsode.model.positions import rotary_frequencies

Factors = npt.NDArray[np.float32]
"""By which each pair's frequency is divided, (pairs,)."""

ROPE_FACTORS = "rope_freqs.weight"
GEMMA_PATTERN, GEMMA_LOCAL_BASE = 6, 10_000.0
GEMMA_LARGEST = 62  # layers, of the one that scales attention by its width and not by that of a head

WITHOUT_EFFECT = frozenset({"vocab_size", "attention.causal", "rope.scaling.finetuned", "expert_weights_norm"})

IDENTICAL = {
    "embedding": "TOKEN_EMBD",
    "stack.positions": "POS_EMBD",
    "stack.final_norm": "OUTPUT_NORM",
    "head": "OUTPUT",
}
BLOCK = {
    "attention.query": "ATTN_Q",
    "attention.key": "ATTN_K",
    "attention.value": "ATTN_V",
    "attention.output": "ATTN_OUT",
    "attention.query_norm": "ATTN_Q_NORM",
    "attention.key_norm": "ATTN_K_NORM",
    "attention_norm": "ATTN_NORM",
    "attention_output_norm": "ATTN_POST_NORM",
    "feed_forward_norm": "FFN_NORM",
    "feed_forward_output_norm": "FFN_POST_NORM",
    "feed_forward.gate": "FFN_GATE",
    "feed_forward.up": "FFN_UP",
    "feed_forward.down": "FFN_DOWN",
    "feed_forward.router": "FFN_GATE_INP",
    "feed_forward.experts.gate": "FFN_GATE_EXP",
    "feed_forward.experts.up": "FFN_UP_EXP",
    "feed_forward.experts.down": "FFN_DOWN_EXP",
}
"""Our modules, and what the `gguf` package calls their tensors."""

AFTER = {"attention_norm": "ATTN_POST_NORM", "feed_forward_norm": "FFN_POST_NORM"}
"""Of those, what has another name where norms stand after each part alone."""


@dataclass(frozen=True)
class Sources:
    """What besides the metadata says how a model is made.

    Args:
        vocabulary_size: rows of the embedding.
        names: of the file's tensors.
        factors: the tensor `rope_freqs.weight`, if there is one.
    """

    vocabulary_size: int
    names: frozenset[str]
    factors: Factors | None = None

    def has(self, name: str) -> bool:
        """Whether the first block has a tensor."""
        return f"blk.0.{name}" in self.names


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp."""

    name: str
    families: tuple[str, ...]
    """Ours that it holds; it is read as the first."""
    read: Callable[[Fields, dict[str, Any], Sources], dict[str, Any]] = lambda fields, sizes, sources: {}
    """The fields of ModelConfig beyond the sizes, rotary positions, and the family's traits."""
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """The metadata beyond the sizes and rotary positions."""
    blocks: Mapping[str, str] = field(default_factory=lambda: BLOCK)
    fused: bool = False
    """Whether queries, keys and values are one tensor, which always has biases."""
    neighbours: bool = False
    """Whether rotary positions turn neighbouring rows (see exchange.rotary)."""
    factors: bool = False
    """Whether rotary positions can be scaled by a factor for each pair."""
    own_head: bool = False
    """Whether the head must be in the file even where it is the embedding."""


def _read_gpt2(fields: Fields, sizes: dict[str, Any], sources: Sources) -> dict[str, Any]:
    return {"norm_epsilon": fields.number("attention.layer_norm_epsilon")}


def _write_layer_norm(config: ModelConfig) -> dict[str, Any]:
    return {"attention.layer_norm_epsilon": config.norm_epsilon}


def _read_gpt_neox(fields: Fields, sizes: dict[str, Any], sources: Sources) -> dict[str, Any]:
    return {
        "norm_epsilon": fields.number("attention.layer_norm_epsilon"),
        "order": "parallel" if fields.flag("use_parallel_residual", True) else "pre",
    }


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    return _write_layer_norm(config) | {"use_parallel_residual": config.order == "parallel"}


def _rms(fields: Fields) -> dict[str, Any]:
    return {"norm_epsilon": fields.number("attention.layer_norm_rms_epsilon")}


def _write_rms(config: ModelConfig) -> dict[str, Any]:
    return {"attention.layer_norm_rms_epsilon": config.norm_epsilon}


def _read_llama(fields: Fields, sizes: dict[str, Any], sources: Sources) -> dict[str, Any]:
    fields.only("expert_count", 0)
    fields.only("expert_used_count", 0)
    biased = sources.has("attn_q.bias") or sources.has("attn_output.bias")
    fed = sources.has("ffn_up.bias") or sources.has("ffn_down.bias")
    return _rms(fields) | {"query_bias": biased, "output_bias": biased, "feed_forward_bias": fed}


def _read_plain(fields: Fields, sizes: dict[str, Any], sources: Sources) -> dict[str, Any]:
    return _rms(fields)


def _read_qwen3_moe(fields: Fields, sizes: dict[str, Any], sources: Sources) -> dict[str, Any]:
    fields.only("expert_weights_scale", 1.0, 0.0)
    experts = Experts(
        count=fields.size("expert_count"),
        chosen=fields.size("expert_used_count"),
        intermediate_size=fields.size("expert_feed_forward_length"),
        normalised=True,
        layers=tuple(range(sizes["layers"])),
    )
    return _rms(fields) | {"experts": experts}


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    assert experts is not None
    return _write_rms(config) | {
        "expert_count": experts.count,
        "expert_used_count": experts.chosen,
        "expert_feed_forward_length": experts.intermediate_size,
    }


def _read_gemma3(fields: Fields, sizes: dict[str, Any], sources: Sources) -> dict[str, Any]:
    fields.only("final_logit_softcapping")
    fields.only("attn_logit_softcapping")
    window, layers = fields.size("attention.sliding_window"), sizes["layers"]
    every = fields.size("attention.sliding_window_pattern", GEMMA_PATTERN)
    width = sizes["hidden_size"] // sizes["heads"] if layers == GEMMA_LARGEST else sizes["head_dim"]
    return _rms(fields) | {
        "windows": tuple(0 if (layer + 1) % every == 0 else window for layer in range(layers)),
        "local_rope": Rope(fields.number("rope.freq_base_swa", GEMMA_LOCAL_BASE)),
        "attention_scale": max(1, width) ** -0.5,
        "embedding_scale": math.sqrt(sizes["hidden_size"]),
    }


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    window = max(config.windows, default=0)
    return _write_rms(config) | ({"attention.sliding_window": window} if window else {})


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("gpt2", ("gpt2",), _read_gpt2, _write_layer_norm, fused=True),
        Architecture("gptneox", ("gpt_neox",), _read_gpt_neox, _write_gpt_neox, fused=True, own_head=True),
        Architecture("llama", ("llama", "mistral"), _read_llama, _write_rms, neighbours=True, factors=True),
        Architecture("qwen2", ("qwen2",), _read_plain, _write_rms),
        Architecture("qwen3", ("qwen3",), _read_plain, _write_rms),
        Architecture("qwen3moe", ("qwen3_moe",), _read_qwen3_moe, _write_qwen3_moe),
        Architecture("gemma3", ("gemma3_text",), _read_gemma3, _write_gemma3),
        Architecture("olmo2", ("olmo2",), _read_plain, _write_rms, blocks=BLOCK | AFTER, own_head=True),
    )
}
HELD = tuple(family for architecture in ARCHITECTURES.values() for family in architecture.families)
"""Families that GGUF holds."""


def config_from_gguf(
    architecture: Architecture, metadata: Mapping[str, Any], sources: Sources, where: str
) -> ModelConfig:
    """The shape that llama.cpp computes for this metadata. What it says that is not followed is told.

    Raises:
        InputError: it asks for what is not computed here.
        DamagedError: a key is missing or out of range.
    """
    prefix = f"{architecture.name}."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    said = Fields(values, f"{where}, {architecture.name}")
    hidden, heads = said.size("embedding_length"), said.size("attention.head_count")
    head_dim = said.size("attention.key_length", hidden // heads)
    said.only("attention.value_length", head_dim)
    family = FAMILIES[architecture.families[0]]
    sizes: dict[str, Any] = {
        "vocabulary_size": sources.vocabulary_size,
        "hidden_size": hidden,
        "layers": said.layers("block_count"),
        "heads": heads,
        "kv_heads": said.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": said.size("feed_forward_length"),
        "context_length": said.size("context_length"),
        "tied_embeddings": "output.weight" not in sources.names,
    }
    if family.traits.get("positions", "rotary") == "rotary":
        sizes["rope"] = _read_rope(said, sizes, sources.factors if architecture.factors else None)
    config = family.config(**(sizes | architecture.read(said, sizes, sources)))
    if left := [key for key in said.unasked() if key not in WITHOUT_EFFECT]:
        note(f"{where}: nothing is known of {', '.join(left)}; what it asks for is not done.")
    return config


def metadata_for(config: ModelConfig) -> tuple[Architecture, dict[str, Any], Factors | None, list[str]]:
    """What GGUF says of a shape: architecture, metadata, factors of rotary positions, and what will be otherwise.

    Raises:
        InputError: llama.cpp computes nothing like it; the message says what differs, and what is near.
    """
    architecture = next((one for one in ARCHITECTURES.values() if config.family in one.families), None)
    if architecture is None:
        raise InputError(
            f"GGUF cannot hold the family {config.family}: of what is known here, llama.cpp computes {_held()}",
            todo="The nearest: --format hugging-face, which holds every family.",
        )
    wanted, notices = _as_computed(architecture, config)
    values: dict[str, Any] = {
        "vocab_size": wanted.vocabulary_size,
        "context_length": wanted.context_length,
        "embedding_length": wanted.hidden_size,
        "block_count": wanted.layers,
        "feed_forward_length": wanted.intermediate_size,
        "attention.head_count": wanted.heads,
        "attention.head_count_kv": wanted.kv_heads,
        "attention.key_length": wanted.head_dim,
        "attention.value_length": wanted.head_dim,
    }
    factors = None
    if wanted.positions == "rotary":
        written, factors = _write_rope(wanted)
        values |= written
        factors = factors if architecture.factors else None
    values |= architecture.write(wanted)
    metadata = {f"{architecture.name}.{key}": value for key, value in values.items()}
    if differences := _differences(architecture, wanted, metadata, factors):
        raise InputError(
            f"GGUF cannot hold this {config.family}: llama.cpp computes {architecture.name} with "
            + "; ".join(differences),
            todo="The nearest: --format hugging-face, which holds it as it is.",
        )
    return architecture, metadata, factors, notices


def _held() -> str:
    return ", ".join(HELD)


def _as_computed(architecture: Architecture, config: ModelConfig) -> tuple[ModelConfig, list[str]]:
    """The shape in the form that llama.cpp computes, where that gives the same numbers, and what is to be known."""
    notices: list[str] = []
    changes: dict[str, Any] = {}
    if architecture.own_head:
        changes["tied_embeddings"] = False  # it is written once more
    if architecture.fused:
        changes |= {"query_bias": True, "output_bias": True}  # of zeros
    window = min((window for window in config.windows if window), default=0)
    if window and config.family != "gemma3_text":
        changes["windows"] = ()
        if window < config.context_length:
            changes["context_length"] = window
            notices.append(
                f"llama.cpp's {architecture.name} sees everything where this model sees the last {window} tokens: it "
                f"is written with a context of {window}, within which that is the same"
            )
    if isinstance(config.rope.scaling, DynamicScaling):
        changes["rope"] = replace(config.rope, scaling=None)
        notices.append("llama.cpp does not stretch rotary positions beyond the context as this model would")
    if config.positions != "rotary":
        changes["rope"] = Rope()
    if config.family == "gpt_neox":
        notices.append("llama.cpp computes gelu by its tanh form, up to 0.0005 beside the exact one")
    return replace(config, **changes), notices


def _differences(
    architecture: Architecture, wanted: ModelConfig, metadata: Mapping[str, Any], factors: Factors | None
) -> list[str]:
    """What llama.cpp would compute otherwise than the shape that is wanted: each field, with both values."""
    biases = {"attn_q.bias": wanted.query_bias, "ffn_up.bias": wanted.feed_forward_bias}
    names = {f"blk.0.{name}" for name, there in biases.items() if there}
    names |= set() if wanted.tied_embeddings else {"output.weight"}
    try:
        read = config_from_gguf(
            architecture, metadata, Sources(wanted.vocabulary_size, frozenset(names), factors), "it"
        )
    except InputError as error:
        return [error.message]
    found = []
    for each in fields(ModelConfig):
        theirs, ours = getattr(read, each.name), getattr(wanted, each.name)
        same = theirs == ours or (isinstance(ours, float) and isinstance(theirs, float) and math.isclose(theirs, ours))
        if each.name == "rope" and not same and theirs.scaling is not None and ours.scaling is not None:
            same = _turn_alike(theirs, ours, wanted.head_dim)
        if not same and each.name != "family":
            found.append(f"{each.name} {theirs}, not {ours}")
    return found


def _turn_alike(one: Rope, other: Rope, head_dim: int) -> bool:
    (ours, our_factor), (theirs, their_factor) = (rotary_frequencies(rope, head_dim) for rope in (one, other))
    close = bool(((ours - theirs).abs() <= 1e-6 * ours.abs()).all())
    return close and math.isclose(our_factor, their_factor, rel_tol=1e-6)


def _write_rope(config: ModelConfig) -> tuple[dict[str, Any], Factors | None]:
    """The keys of rotary positions, and the factors of Llama 3's scaling. What has no keys is left out."""
    rope, scaling = config.rope, config.rope.scaling
    values: dict[str, Any] = {
        "rope.dimension_count": int(config.head_dim * rope.share),
        "rope.freq_base": rope.theta,
    }
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    elif isinstance(scaling, YarnScaling):
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original_context,
        }
    elif isinstance(scaling, Llama3Scaling):
        plain, _ = rotary_frequencies(replace(rope, scaling=None), config.head_dim)
        scaled, _ = rotary_frequencies(rope, config.head_dim)
        return values, (plain.double() / scaled.double()).float().numpy()
    return values, None


def _read_rope(said: Fields, sizes: dict[str, Any], factors: Factors | None) -> Rope:
    head_dim = sizes["head_dim"]
    share = said.size("rope.dimension_count", head_dim) / head_dim
    rope = Rope(said.number("rope.freq_base", 10_000.0), share)
    said.only("rope.scaling.attn_factor", 1.0)
    said.only("rope.scaling.yarn_ext_factor", 1.0)
    said.only("rope.scaling.yarn_attn_factor", 1.0)
    said.only("rope.scaling.yarn_log_multiplier", 0.0)
    kind = said.choice("rope.scaling.type", {name: name for name in ("none", "linear", "yarn")}, "linear")
    older = said.number("rope.scale_linear", 1.0)
    factor = said.number("rope.scaling.factor", older)
    if kind == "yarn":
        original = said.size("rope.scaling.original_context_length", sizes["context_length"])
        fast = said.number("rope.scaling.yarn_beta_fast", 32.0)
        slow = said.number("rope.scaling.yarn_beta_slow", 1.0)
        return replace(rope, scaling=YarnScaling(factor, original, fast, slow))
    said.any("rope.scaling.original_context_length")  # of none and linear it means nothing
    if factors is not None:
        return replace(rope, scaling=_scaling_of(factors, rope, head_dim, said.where))
    return replace(rope, scaling=LinearScaling(factor)) if kind == "linear" and factor != 1.0 else rope


def _scaling_of(factors: Factors, rope: Rope, head_dim: int, where: str) -> Llama3Scaling | None:
    """Llama 3's scaling that gives these factors: files hold them, and not what they come from.

    Published models have low and high frequency factors of 1 and 4, and an original context of a power of two.

    Raises:
        InputError: it gives no such factors.
    """
    plain, _ = rotary_frequencies(rope, head_dim)
    if factors.shape == tuple(plain.shape) and np.isfinite(factors).all() and (factors >= 1).all():
        if (factors == 1).all():
            return None
        largest = float(factors.max())
        for factor in dict.fromkeys((round(largest, 4), largest, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)):
            for exponent in range(2, 24):
                scaling = Llama3Scaling(factor, 1.0, 4.0, 2**exponent)
                scaled, _ = rotary_frequencies(replace(rope, scaling=scaling), head_dim)
                if np.allclose((plain / scaled).numpy(), factors, rtol=1e-5):
                    return scaling
    raise InputError(
        "divides rotary frequencies by factors that are not Llama 3's",
        where=f"{where}, tensor {ROPE_FACTORS!r}",
        todo="Name the Hugging Face folder of the model, if there is one.",
    )
