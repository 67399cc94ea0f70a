"""What kernels compute, in numpy and as plainly as it can be said: number by number, sums in fp64 or whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhapsode.model.packed import PackedMatrix

EPSILON = float(np.finfo(np.float32).eps)
BLOCK = 32


def numbers_of(packed: PackedMatrix) -> npt.NDArray[np.int64]:
    """The whole numbers (rows, padded columns) of a matrix, each looked up where `PackedMatrix` says that it is."""
    r = np.arange(packed.rows)[:, None]
    c = np.arange(packed.weights.shape[1] * BLOCK)[None]
    g, b, lane = r // 8, c // BLOCK, 4 * (r % 8) + c % 4
    if packed.bits == 8:
        return packed.weights[g, b, c % BLOCK // 4, lane].astype(np.int64) - 128
    both = packed.weights[g, b, c % BLOCK // 8, lane].astype(np.int64)
    return np.where(c % 8 >= 4, both >> 4, both & 15)


def scales_of(packed: PackedMatrix) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The scales and the minimums (rows, blocks) of a matrix."""
    r = np.arange(packed.rows)
    halves = packed.scales.view(np.float16).astype(np.float64)
    minimums = halves[r // 8, :, 8 + r % 8] if packed.bits == 4 else np.zeros((packed.rows, halves.shape[1]))
    return halves[r // 8, :, r % 8], minimums


@dataclass
class Small:
    """Vectors (tokens, padded columns) in 8 bits: a factor for each 32 of their whole numbers."""

    numbers: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]

    @classmethod
    def of(cls, x: npt.NDArray[np.float32]) -> Small:
        """x (tokens, padded columns); what is next to nothing is nothing, what is no number or infinite makes NaN."""
        blocks = x.reshape(len(x), -1, BLOCK)
        with np.errstate(all="ignore"):
            largest = np.abs(blocks).max(axis=2)
            inverse = np.where(largest > 1e-36, np.float32(127) / largest, np.float32(0)).astype(np.float32)
            numbers = np.rint(blocks * inverse[..., None])
            factors = largest / np.float32(127)
        factors[~np.isfinite(largest)] = np.nan
        return cls(numbers.reshape(x.shape), factors)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """What they stand for (tokens, padded columns)."""
        return self.numbers.astype(np.float64) * np.repeat(self.factors.astype(np.float64), BLOCK, axis=1)

    @property
    def sums(self) -> npt.NDArray[np.float64]:
        """Of whole numbers, (tokens, blocks)."""
        return self.numbers.reshape(*self.factors.shape, BLOCK).astype(np.float64).sum(axis=2)


def product(packed: PackedMatrix, small: Small) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A packed matrix times vectors in 8 bits, (tokens, rows), and the sums of the sizes of what is added up."""
    weights = numbers_of(packed).reshape(packed.rows, -1, BLOCK)
    vectors = small.numbers.astype(np.int64).reshape(len(small.numbers), -1, BLOCK)
    whole = np.einsum("rbc,tbc->trb", weights, vectors)  # exact
    scales, minimums = scales_of(packed)
    factors = small.factors.astype(np.float64)[:, None]  # (tokens, 1, blocks)
    terms = whole * factors * scales
    least = small.sums[:, None] * factors * minimums
    return (terms + least).sum(axis=2), (np.abs(terms) + np.abs(least)).sum(axis=2)
