"""What comes in through any door: a model, its tokenizer, and where they are from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rhapsode.model.config import ModelConfig
from rhapsode.model.model import Model
from rhapsode.model.packed import PackedModel, unpacked_model
from rhapsode.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model of whatever format, open.

    Args:
        weights: a model in fp32, ready to compute, or packed weights.
        tokenizer: its tokenizer.
        end_ids: tokens that end a text, the tokenizer's end of text among them or not.
        where: the file or folder, for messages.
        files: what it was read from.
        format: "Hugging Face", "packed", "GGUF" or "llama2.c".
        origin: the hub's name and commit, where it was fetched: "owner/name@commit".
        provenance: the content of its rhapsode.json; None for what others made.
        generation: its generation_config.json, empty where it has none.
        device: where it computes.
    """

    weights: Model | PackedModel
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    where: str
    files: tuple[Path, ...]
    format: str
    origin: str | None = None
    provenance: dict[str, Any] | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    device: torch.device | str = "cpu"

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.weights.config

    @cached_property
    def model(self) -> Model:
        """The model in fp32; packed weights are unpacked when it is first asked for."""
        return unpacked_model(self.weights, self.device) if isinstance(self.weights, PackedModel) else self.weights
