"""What the tests share: real data when it is there, tiny models and texts made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("thorough", max_examples=1000)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, tokenizers and weights by others (its README.md lists them)."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """The bundled plays of Shakespeare, 1.1 MB."""
    return Path(__file__).resolve().parents[1] / "rhapsode" / "corpus" / "examples" / "shakespeare.txt"
