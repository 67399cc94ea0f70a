"""Kernels compiled otherwise: with checked bounds, and for processors with less, give the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from .whole import computed, ended, start

CHECKED = {"NUMBA_BOUNDSCHECK": "1"}
WITHOUT_BYTE_PRODUCTS = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avx,+sse4.2,+bmi,+bmi2,+popcnt",
}


def compare(tmp_path: Path, words: Sequence[str], environment: dict[str, str]) -> dict[str, np.ndarray]:
    """What another build computes, which is what this one does."""
    out = tmp_path / "found.npz"
    process = start(out, words, environment)
    expected = computed(words)
    found = ended(process, out)
    assert found.keys() == expected.keys() and len(found) > 5
    for name, right in expected.items():
        if name not in ("byte products", "refused"):
            np.testing.assert_array_equal(found[name], right, err_msg=name)
    return found


def test_products_of_a_processor_without_byte_products(tmp_path: Path) -> None:
    found = compare(tmp_path, ["products"], WITHOUT_BYTE_PRODUCTS)
    assert not found["byte products"]


@pytest.mark.slow
def test_steps_of_a_processor_without_byte_products(tmp_path: Path) -> None:
    found = compare(tmp_path, ["products", "float32", "float16", "int8"], WITHOUT_BYTE_PRODUCTS)
    assert not found["byte products"]


def test_nothing_reaches_beyond_an_array(tmp_path: Path) -> None:
    found = compare(tmp_path, ["products", "float32"], CHECKED)
    assert len(found) > 30


@pytest.mark.slow
def test_nothing_reaches_beyond_an_array_of_any_cache(tmp_path: Path) -> None:
    compare(tmp_path, ["float16", "int8"], CHECKED)


def test_what_reaches_beyond_an_array_would_be_seen(tmp_path: Path) -> None:
    out = tmp_path / "found.npz"
    found = ended(start(out, ["bounds"], CHECKED), out)
    places = np.arange(28) - 10
    beyond = (places < 0) | (places > 8)
    np.testing.assert_array_equal(found["refused"], [beyond, beyond])
