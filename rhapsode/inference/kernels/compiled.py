"""How kernels are compiled: once for each kind of processor, without the interpreter's lock, and kept on disk.

What is kept belongs to the sources as they are: Numba looks at the file of a function, but not at those of the
functions that it calls. Where nothing can be written, kernels are compiled in every process anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import numba
from numba.core import config

Function = TypeVar("Function", bound=Callable[..., object])


def caches() -> Path:
    """Where programs of this user keep what they can make again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@cache
def kept_in() -> Path | None:
    """The folder for compiled kernels; None where none can be made."""
    digest = hashlib.sha256(f"{numba.__version__} {config.BOUNDSCHECK}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    try:
        folder = caches() / "rhapsode" / f"kernels-{digest.hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # no home folder
        return None


def compiled(function: Function) -> Function:
    """A function for the processor. Its sums stay in the order in which they are written."""
    folder, usual = kept_in(), config.CACHE_DIR
    config.CACHE_DIR = "" if folder is None else str(folder)  # Numba asks for it now, not when it compiles
    try:
        done: Function = numba.njit(cache=folder is not None, nogil=True, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = usual
    return done


def is_kept(function: str) -> bool:
    """Whether a function was compiled before, on a processor like this or another."""
    folder = kept_in()
    return folder is not None and any(folder.rglob(f"*{function}*.nbi"))
