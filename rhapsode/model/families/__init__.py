"""One file per public family: its configuration mapped, its tensor names mapped, its defaults; nothing else."""

from __future__ import annotations

from types import ModuleType

from rhapsode.model.families import qwen3

FAMILIES: dict[str, ModuleType] = {"qwen3": qwen3}
