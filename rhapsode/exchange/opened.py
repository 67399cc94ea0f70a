"""What comes in through any door: a model, its tokenizer, and where they are from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhapsode.model.model import Model
from rhapsode.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model of whatever format, open.

    Args:
        model: in fp32, ready to compute.
        tokenizer: its tokenizer.
        end_ids: tokens that end a text, the tokenizer's end of text among them or not.
        where: the file or folder, for messages.
        files: what it was read from.
        format: "Hugging Face", "GGUF" or "llama2.c".
        origin: the hub's name and commit, where it was fetched: "owner/name@commit".
        provenance: the content of its rhapsode.json; None for what others made.
        generation: its generation_config.json, empty where it has none.
    """

    model: Model
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    where: str
    files: tuple[Path, ...]
    format: str
    origin: str | None = None
    provenance: dict[str, Any] | None = None
    generation: dict[str, Any] = field(default_factory=dict)
