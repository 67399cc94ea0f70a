"""How kernels are compiled: once for each kind of processor, without the interpreter's lock, and kept on disk."""

from __future__ import annotations

from numba import njit

compiled = njit(cache=True, nogil=True, error_model="numpy")
"""Sums stay in the order in which they are written: nothing is computed faster by being rounded otherwise."""
