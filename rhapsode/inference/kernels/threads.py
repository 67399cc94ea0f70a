"""Several threads in one step: they share out its work as they go, and wait for each other between its parts.

    team().run(lambda thread, threads: kernel(thread, threads, synchronisation, ...), synchronisation)

One step at a time in a process, however many models there are: more threads than cores would only wait for each other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from rhapsode.base.machine import threads as cores
from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.vectors import atomic_add, atomic_load, atomic_store, pause

ARRIVED, ROUND, FAILED, CLAIMS = 0, 8, 16, 24
"""Places in an array of synchronisation, each on a line of the cache of its own; claims of parts from the last one on."""
APART = 8
PATIENCE = 2_000
"""Looks at a number that another thread shall change, before others may have the core."""

_give_way = types.ExternalFunction(
    "SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32()
)


def synchronisation(parts: int) -> np.ndarray:
    """What threads of a step of so many parts have in common, as they find it in the beginning."""
    return np.zeros(CLAIMS + APART * parts, np.int64)


@compiled
def claim(shared, part):  # type: ignore[no-untyped-def]
    """The next piece of a part of the step that nobody has yet."""
    return atomic_add(shared, CLAIMS + APART * part, 1)


@compiled
def wait_for_all(shared, threads):  # type: ignore[no-untyped-def]
    """Go on when every thread has come here, or one has failed."""
    if threads == 1:
        return
    before = atomic_load(shared, ROUND)
    if atomic_add(shared, ARRIVED, 1) == threads - 1:
        atomic_store(shared, ARRIVED, 0)
        atomic_store(shared, ROUND, before + 1)
        return
    looks = 0
    while atomic_load(shared, ROUND) == before and atomic_load(shared, FAILED) == 0:
        looks += 1
        if looks < PATIENCE:
            pause()
        else:
            _give_way()


Work = Callable[[int, int], None]


class Team:
    """Threads that wait for steps; whoever runs a step is the first of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._work: Work | None = None
        self._count = 1
        self._shared: np.ndarray | None = None
        self._errors: list[BaseException] = []
        self._starts = [threading.Semaphore(0) for _ in range(size - 1)]
        self._ends = threading.Semaphore(0)
        for number, start in enumerate(self._starts, start=1):
            threading.Thread(target=self._serve, args=(number, start), daemon=True, name=f"step {number}").start()

    def run(self, work: Work, shared: np.ndarray, threads: int) -> None:
        """Call `work(thread, threads)` for each of so many threads at once, at most as many as there are.

        Args:
            shared: the work's synchronisation, as new.
        """
        threads = min(threads, self.size)
        with self._lock:
            if threads == 1:
                work(0, 1)
                return
            self._work, self._count, self._shared, self._errors = work, threads, shared, []
            for start in self._starts[: threads - 1]:
                start.release()
            self._do(0)
            for _ in range(threads - 1):
                self._ends.acquire()
            self._work = self._shared = None
            if self._errors:
                raise self._errors[0]

    def _serve(self, number: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            self._do(number)
            self._ends.release()

    def _do(self, number: int) -> None:
        assert self._work is not None and self._shared is not None
        try:
            self._work(number, self._count)
        except BaseException as error:  # it is raised where the step was asked for
            self._errors.append(error)
            self._shared[FAILED] = 1


@cache
def team() -> Team:
    """This process's team: a thread for each physical core that it may use."""
    return Team(cores())
