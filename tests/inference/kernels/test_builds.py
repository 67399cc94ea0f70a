"""Kernels compiled otherwise, with checked bounds and for processors with less: they compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from .models import off_by
from .whole import computed, ended, start

CHECKED = {"NUMBA_BOUNDSCHECK": "1"}
WITH_LESS = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avx,+sse4.2,+bmi,+bmi2,+popcnt",
}


def compare(tmp_path: Path, words: Sequence[str], environment: dict[str, str]) -> dict[str, np.ndarray]:
    """What another build computes, which is what this one does: packed weights to the bit, whole numbers are exact.

    In fp32, what AVX-512 has adds up in another order.
    """
    out = tmp_path / "found.npz"
    process = start(out, words, environment)
    expected = computed(words)
    found = ended(process, out)
    assert found.keys() == expected.keys() and len(found) > 5
    same_lanes = found["lanes"] == expected["lanes"]
    for name, right in expected.items():
        if name in ("byte products", "lanes"):
            continue
        if " 32 " in name and not same_lanes:
            assert off_by([found[name]], [right]).max() < 1e-4, name
        else:
            np.testing.assert_array_equal(found[name], right, err_msg=name)
    return found


def test_products_of_a_processor_with_less(tmp_path: Path) -> None:
    found = compare(tmp_path, ["products"], WITH_LESS)
    assert not found["byte products"] and found["lanes"] == 8


@pytest.mark.slow
def test_steps_of_a_processor_with_less(tmp_path: Path) -> None:
    found = compare(tmp_path, ["products", "float32", "float16", "int8"], WITH_LESS)
    assert not found["byte products"] and found["lanes"] == 8


def test_no_product_reaches_beyond_an_array(tmp_path: Path) -> None:
    """And what does would be seen."""
    out = tmp_path / "bounds.npz"
    refused = ended(start(out, ["bounds"], CHECKED), out)["refused"]
    places = np.arange(28) - 10
    beyond = (places < 0) | (places > 8)
    np.testing.assert_array_equal(refused, [beyond, beyond])
    compare(tmp_path, ["products"], CHECKED)


@pytest.mark.slow
@pytest.mark.parametrize("cache_type", ["float32", "float16", "int8"])
def test_no_step_reaches_beyond_an_array(tmp_path: Path, cache_type: str) -> None:
    compare(tmp_path, [cache_type], CHECKED)
