"""Thousands of malformed requests at once: the benchmark's, in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "malformed.py"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_malformed_requests_do_no_harm(seed: int) -> None:
    command = [sys.executable, str(SCRIPT), "--requests", "2000", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0 and "0 faults" in done.stdout, done.stdout + done.stderr
