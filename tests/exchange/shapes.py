"""Small models of every family, with every number at random, and a tokenizer for all of them."""

from __future__ import annotations

from typing import Any

import torch

from rhapsode.model.config import Experts, ModelConfig, Rope, StackSizes
from rhapsode.model.families import FAMILIES
from rhapsode.model.model import Model, new_model
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer


def byte_pairs() -> Tokenizer:
    """Byte-level BPE of 266 tokens."""
    return train_tokenizer(["To be, or not to be"], "bpe", 266, pre_tokenizer="llama-bpe")


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    model = new_model(config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw) * 0.15
            gain = 1.0 if name.endswith("norm.weight") and not config.norm_unit_offset else 0.0
            parameter.copy_(noise + gain)
    return model.eval()


def shape_of(name: str, *, rows: int = 266, context: int = 24, **fields: Any) -> ModelConfig:
    """A small shape of a family; of a decoder, one that llama.cpp computes."""
    family = FAMILIES[name]
    if name == "qwen3_moe":
        fields = {"experts": Experts(3, 2, 20, True, (0, 1))} | fields
    if name == "gemma3_text":
        scales = {"attention_scale": 8**-0.5, "embedding_scale": 32**0.5}
        fields = scales | {"windows": (4, 4), "local_rope": Rope()} | fields
    if name == "modernbert":
        fields = {"windows": (0, 6), "local_rope": Rope()} | fields
    if name == "roberta":
        fields = {"position_offset": 2} | fields
    if name == "t5":
        context = 512  # which is not in its configuration
    if family.kind == "encoder-decoder":
        fields = {"decoder": StackSizes(2, 4, 4, 8, 48), "start_id": 1} | fields
    kv_heads = 2 if family.kind == "decoder" and name not in ("gpt2", "gpt_neox") else 4
    return family.config(rows, 32, 2, 4, kv_heads, 8, 48, context, **fields)
