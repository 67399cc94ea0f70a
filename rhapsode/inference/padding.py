"""Texts of several lengths side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (texts, time) of texts of several lengths, and where they are real; None where all are."""
    time = max(map(len, texts))
    ids = torch.zeros(len(texts), time, dtype=torch.long)
    real = torch.zeros(len(texts), time, dtype=torch.bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(text)
        real[row, : len(text)] = True
    return ids.to(device), None if bool(real.all()) else real.to(device)


def groups_of_like_length(texts: Mapping[int, Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """The keys of texts in groups of about one length, none of which has more than `tokens` with its padding.

    A longer text stands alone.
    """
    group: list[int] = []
    for key in sorted(texts, key=lambda key: len(texts[key])):
        if group and (len(group) + 1) * len(texts[key]) > tokens:
            yield group
            group = []
        group.append(key)
    if group:
        yield group
