"""The shapes of new models: which families there are to choose from, and a model's sizes from those that are chosen."""

from __future__ import annotations

import math

from rhapsode.base.errors import InputError, nearest
from rhapsode.model.config import Kind, ModelConfig, Rope, StackSizes
from rhapsode.model.families import FAMILIES
from rhapsode.model.families.family import Family
from rhapsode.training.settings import TrainSettings

NEW_FAMILIES: dict[Kind, tuple[str, ...]] = {
    "decoder": ("qwen3", "llama", "mistral", "qwen2", "gemma3_text", "olmo2", "gpt2", "gpt_neox"),
    "encoder": ("modernbert", "bert"),
    "encoder-decoder": ("marian", "bart", "t5"),
}
"""Families that a new model can be of; of each kind the first one is taken unless another is asked for."""

SHAPES = (
    (64, 2),
    (96, 3),
    (128, 4),
    (192, 4),
    (256, 5),
    (320, 6),
    (384, 6),
    (512, 8),
    (640, 10),
    (768, 12),
    (1024, 16),
    (1536, 20),
    (2048, 24),
)
"""Widths and depths to choose from: deeper as they get wider, as published families are."""


def family_of(settings: TrainSettings) -> Family:
    """The family that settings ask for.

    Raises:
        InputError: no new model of their kind can be of that family.
    """
    choices = NEW_FAMILIES[settings.kind]
    name = settings.family or choices[0]
    if name not in choices:
        raise InputError(
            f"a new {settings.kind} cannot be of the family {name!r}", where="--family", todo=nearest(name, choices)
        )
    return FAMILIES[name]


def shape(settings: TrainSettings, vocabulary_size: int, start_id: int | None = None) -> ModelConfig:
    """The model's shape from settings in which every size is chosen, or follows from those that are.

    Args:
        start_id: the token that a decoder of two towers begins with.

    Raises:
        InputError: the sizes do not fit together, or the family cannot have them.
    """
    family = family_of(settings)
    plain = family.config(vocabulary_size, 2, 1, 1, 1, 2, 1, 2, **_towers(family, StackSizes(1, 1, 1, 2, 1), None))
    hidden, layers = settings.hidden_size, settings.layers
    heads = settings.heads or max(1, hidden // (settings.head_dim or 64))
    share = 8 / 3 if plain.gated else 4.0
    width = settings.intermediate_size or max(1, round(hidden * share / 32)) * 32
    kv_heads, head_dim = settings.kv_heads or heads, settings.head_dim or hidden // heads
    second = StackSizes(settings.decoder_layers or layers, heads, kv_heads, head_dim, width)
    wanted = {
        "hidden_size": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": width,
        "context_length": settings.context_length,
        "tied_embeddings": settings.tied_embeddings,
        **({"rope": Rope(settings.rope_theta, plain.rope.share)} if plain.positions == "rotary" else {}),
        **({"embedding_scale": math.sqrt(hidden)} if family.scaled_embeddings else {}),
        **_towers(family, second, start_id),
    }
    return family.new(vocabulary_size=vocabulary_size, **wanted)


def _towers(family: Family, second: StackSizes, start_id: int | None) -> dict[str, object]:
    return {"decoder": second, "start_id": start_id} if family.kind == "encoder-decoder" else {}
