"""What the tests share: real data when it is there, tiny models and texts made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline for one example: what else the machine does may take its time, and pytest has a limit for the whole test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models here are so small that threads would wait for each other longer than they compute."""
    torch.set_num_threads(1)


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
