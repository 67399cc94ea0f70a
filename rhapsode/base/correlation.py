"""How well two series agree, whatever their scales: Spearman's rank correlation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]


def spearman(a: Real, b: Real) -> float | None:
    """Spearman's rank correlation of two series (count,): Pearson's of their ranks, where equals share their mean rank.

    None where it is not defined: fewer than two values, or a series of equals.
    """
    if len(a) < 2:
        return None
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread else None


def _ranks(values: Real) -> Real:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Real = (last - (counts - 1) / 2)[which]
    return ranks
