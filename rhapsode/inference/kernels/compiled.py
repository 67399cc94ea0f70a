"""How kernels are compiled: once for each kind of processor, without the interpreter's lock, and kept on disk.

What is kept belongs to the sources as they are: Numba looks at the file of a function, but not at those of the
functions that it calls. Where nothing can be written or read, kernels are compiled in every process anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config
from numba.core.caching import FunctionCache

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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # code: nobody else may write there
        return folder if os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # no home folder
        return None


class Kept(FunctionCache):
    """What is kept of a function: a disk that is full and a file that is damaged cost time, and nothing else."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        # By numbers alone, processes that compile at once would write over each other's files.
        self._cache_file._data_name_pattern = f"{self._impl.filename_base}.{uuid.uuid4().hex[:8]}.{{number:d}}.nbc"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # what a damaged file raises may be anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(sig, data)


def compiled(function: Function) -> Function:
    """A function for the processor. Its sums stay in the order in which they are written."""
    done: Any = numba.njit(nogil=True, error_model="numpy")(function)
    if kept_in() is not None:
        usual, config.CACHE_DIR = config.CACHE_DIR, str(kept_in())  # asked for now, not when something is compiled
        try:
            done._cache = Kept(function)
        finally:
            config.CACHE_DIR = usual
    return done  # type: ignore[no-any-return]


def is_kept(function: str) -> bool:
    """Whether a function was compiled before, on a processor like this or another."""
    folder = kept_in()
    return folder is not None and any(folder.rglob(f"*{function}*.nbi"))
