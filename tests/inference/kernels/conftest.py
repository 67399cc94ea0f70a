"""The kernels' tests need a processor that has what kernels need; who chooses them is tested everywhere."""

from __future__ import annotations

from pathlib import Path

from rhapsode.inference.kernels.choice import refused_by_machine

if refused_by_machine() is not None:
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_choice.py"]
