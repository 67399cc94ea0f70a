"""The two orders in which files keep the rows of a head that rotary positions turn.

Turned together are rows i and i + size / 2 of a head here and in Hugging Face's files, rows 2i and 2i + 1 in Meta's,
llama2.c's and, for Llama and Mistral, llama.cpp's.
"""

from __future__ import annotations

from torch import Tensor


def halves(rows: Tensor, heads: int) -> Tensor:
    """A matrix (heads * size, ...) or vector whose heads are in pairs of neighbours, in halves."""
    rest = rows.shape[1:]
    return rows.view(heads, -1, 2, *rest).transpose(1, 2).reshape(-1, *rest)


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """The reverse of `halves`."""
    rest = rows.shape[1:]
    return rows.view(heads, 2, -1, *rest).transpose(1, 2).reshape(-1, *rest)
