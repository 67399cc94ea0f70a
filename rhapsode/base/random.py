"""Random numbers as a pure function of (seed, what they are for, which one): nothing to save, nothing to restore."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A fresh generator for one `purpose` at one `position` (step, sample, layer, ...).

    The same arguments give the same numbers on every machine; different ones give independent streams
    (NumPy's SeedSequence hashes the key; Philox is counter-based: Salmon et al. 2011).
    """
    key = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode("utf-8")), *position])
    return np.random.Generator(np.random.Philox(key))
