"""Runs that do not wait for what is measured before them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from rhapsode.base.machine import peak_flops
from rhapsode.training import planner, run
from rhapsode.training.timing import step_seconds


@contextmanager
def short_measurements() -> Iterator[None]:
    """Before a run its steps are timed for a second, and the machine for a third of one: longer than a tiny run takes.
    Two steps and one product will do where nothing follows from them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "step_seconds", lambda *given: step_seconds(*given[:-1], budget=0.0))
        patch.setattr(run, "peak_flops", partial(peak_flops, seconds=0.01))
        yield
