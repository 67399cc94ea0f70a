"""Patterns that several files learn."""

from __future__ import annotations

import pytest

from rhapsode.foundations.demonstrations import rbm
from rhapsode.foundations.estimator import Array


@pytest.fixture(scope="session")
def bars_and_stripes() -> Array:
    """(14, 9): the pictures of 3 x 3 whose rows are all alike, or whose columns are."""
    return rbm.bars_and_stripes()
