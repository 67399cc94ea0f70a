"""Packed matrices as GGUF has them: the very same numbers, in blocks of another layout.

    stored = gguf_blocks(matrix)

Rows are whole in both, so they can be put into another order, or one below another, without touching a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rhapsode.exchange.rotary import neighbours
from rhapsode.model.packed import COLUMNS, ROWS, PackedMatrix, values_of

TYPES = {8: "Q8_0", 4: "Q4_1"}
"""What GGUF calls weights of so many bits."""


def packed_type(matrices: Sequence[PackedMatrix]) -> str | None:
    """The type in which GGUF can hold matrices one below another; None where it has none for them."""
    bits = {matrix.bits for matrix in matrices}
    whole = all(matrix.columns % COLUMNS == 0 for matrix in matrices)
    return TYPES[bits.pop()] if len(bits) == 1 and whole else None


def gguf_blocks(matrices: Sequence[PackedMatrix], heads: int = 0) -> npt.NDArray[np.uint8]:
    """Matrices one below another, as bytes (rows, bytes of a row) of what `packed_type` says.

    Args:
        heads: of rotary positions whose rows GGUF has in another order; 0 for none.
    """
    stored = np.concatenate([_blocks(matrix) for matrix in matrices])
    return stored[neighbours(torch.arange(len(stored)), heads).numpy()] if heads else stored


def _blocks(matrix: PackedMatrix) -> npt.NDArray[np.uint8]:
    """ggml's `block_q8_0`: a scale, 32 numbers; or its `block_q4_1`: a scale, a minimum, 32 halves of bytes."""
    groups, blocks = matrix.weights.shape[:2]
    numbers = values_of(matrix).view(np.uint8).reshape(groups * ROWS, blocks, COLUMNS)[: matrix.rows]
    if matrix.bits == 4:
        low, high = numbers[..., : COLUMNS // 2], numbers[..., COLUMNS // 2 :]
        numbers = np.bitwise_or(low, np.left_shift(high, 4), dtype=np.uint8)
    kinds = matrix.scales.reshape(groups, blocks, -1, ROWS)  # scales, or scales and minimums
    scales = np.ascontiguousarray(kinds.transpose(0, 3, 1, 2)).astype("<u2").view(np.uint8)
    of_rows = scales.reshape(groups * ROWS, blocks, -1)[: matrix.rows]
    return np.concatenate((of_rows, numbers), axis=-1).reshape(matrix.rows, -1)
