"""Patterns that several files learn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rhapsode.foundations.estimator import Array


@pytest.fixture(scope="session")
def bars_and_stripes() -> Array:
    """(14, 9): the pictures of 3 x 3 whose rows are all alike, or whose columns are (MacKay 2003, chapter 43)."""
    rows = [np.repeat(bits, 3) for bits in product((0, 1), repeat=3)]
    columns = [np.tile(bits, 3) for bits in product((0, 1), repeat=3)]
    return np.unique(rows + columns, axis=0).astype(float)
