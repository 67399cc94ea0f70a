"""What the tests share: real data when it is there, tiny models and texts made once."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Two tests at a time share two cores. Threads that wait by looking again and again take them from the other test, which
# may be what they wait for. Libraries read this when they are loaded, here and in processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy, as `one_thread` for torch

import torch

# No deadline for one example: what else the machine does may take its time, and pytest has a limit for the whole test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("repeatable")

# A shell lets what it starts in the background ignore Ctrl-C, and so would every process that is interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The models here are so small that threads would wait for each other longer than they compute."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short_collections() -> None:
    """What is there before a test stays: libraries, a million objects. Who collects garbage within it, as a parity
    check does for every peer, need not look through them each time.
    """
    gc.collect()
    gc.freeze()


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
