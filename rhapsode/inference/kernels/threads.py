"""Several threads in one step: they share out its work as they go, and wait for each other between its parts.

    team().run(job)

Threads that have finished a step look out for the next one for a while before they sleep: a token's step is over in
less time than it takes to wake a thread. One step at a time in a process, however many models there are: more threads
than cores would only wait for each other. Where other processes have the cores, threads of one step rarely run at the
same time: then the first one computes alone for a while, which changes no bit.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
import weakref
from functools import cache
from typing import Protocol

import numpy as np
from numba import types

from rhapsode.base.machine import threads as cores
from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.vectors import atomic_add, atomic_load, atomic_store, cycles, pause

STEPS, LEAVE, FAILED, ARRIVED, ROUNDS, BEGUN, LOST, FIRST_AWAKE, FIRST_DONE, CLAIMS = (
    8 * n for n in (0, 1, 2, 3, 4, 5, 6, 7, 71, 135)
)
"""Places in what threads have in common, each on a line of the cache of its own: when the step has begun, and cycles
that threads have waited in vain; for each thread one says whether it looks out for steps, one how many it has done; for
each part of a step, from the last one on, how much is taken."""
APART, MOST_THREADS = 8, 64
PATIENCE = 2_000
"""Looks at a number that another thread shall change, before others may have the core."""
LOOKOUT = 5_000_000
"""Cycles for which a thread looks out for the next step: 2 ms, and little less than drawing a token may take."""
TRIAL = 0.05
"""Seconds of steps after which it is seen whether several threads are of use."""
LEAST_ALONE, MOST_ALONE = 0.1, 1.6
"""Seconds for which the first thread computes alone, twice as long each time that they were of none. With two other
processes on two cores, steps of two threads are 50 times slower than alone."""

_give_way = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


def in_common(parts: int) -> np.ndarray:
    """What the threads of steps of so many parts have in common."""
    return np.zeros(CLAIMS + APART * parts, np.int64)


@compiled
def claim(common, part):
    """The next piece of a part of the step that nobody has yet."""
    return atomic_add(common, CLAIMS + APART * part, 1)


@compiled
def wait_for_all(common, threads):
    """Go on when every thread has come here, or one has failed."""
    if threads == 1:
        return
    before = atomic_load(common, ROUNDS)
    if atomic_add(common, ARRIVED, 1) == threads - 1:
        atomic_store(common, ARRIVED, 0)
        atomic_store(common, ROUNDS, before + 1)
        return
    looks = since = 0
    while atomic_load(common, ROUNDS) == before and atomic_load(common, FAILED) == 0:
        looks += 1
        if looks < PATIENCE:
            pause()
            continue
        if since == 0:
            since = cycles()
        _give_way()
    if since != 0:
        atomic_add(common, LOST, cycles() - since)


@compiled
def begin_step(common):
    """Let the threads that look out begin a step."""
    common[CLAIMS:] = 0
    common[BEGUN], common[LOST] = cycles(), 0
    atomic_add(common, STEPS, 1)


@compiled
def next_step(common, thread):
    """Wait for a step that this thread has not done; False if none comes, and it shall sleep."""
    done, since = common[FIRST_DONE + APART * thread], cycles()
    looks = 0
    while atomic_load(common, STEPS) == done:
        if atomic_load(common, LEAVE) != 0 or cycles() - since > LOOKOUT:
            atomic_store(common, FIRST_AWAKE + APART * thread, 0)
            if atomic_load(common, STEPS) == done or atomic_load(common, LEAVE) != 0:
                return False
            atomic_store(common, FIRST_AWAKE + APART * thread, 1)
            break
        looks += 1
        if looks < PATIENCE:
            pause()
        else:
            _give_way()
    return True


@compiled
def is_awake(common, thread):
    """Whether a thread looks out for steps."""
    return atomic_load(common, FIRST_AWAKE + APART * thread) != 0


@compiled
def step_is_done(common, thread):
    """Note that a thread has done one more step."""
    atomic_store(common, FIRST_DONE + APART * thread, common[FIRST_DONE + APART * thread] + 1)


@compiled
def lost(common):
    """What all threads together have waited in vain, in times of the step that is over."""
    return atomic_load(common, LOST) / (cycles() - common[BEGUN])


class Job(Protocol):
    """What computes steps, each as it finds it described in memory that its threads share."""

    common: np.ndarray
    """As `in_common`."""
    threads: int
    """At most as many as the team has."""

    def alone(self) -> None:
        """A step by one thread, without `common`."""

    def step(self) -> None:
        """The first thread's share of a step."""

    def serve(self, thread: int) -> None:
        """Another thread's shares of steps, until `next_step` says that none comes."""


class Team:
    """Threads that wait for steps; whoever runs a step is the first of them."""

    def __init__(self, size: int) -> None:
        self.size = min(size, MOST_THREADS)
        self._lock = threading.Lock()
        self._job: weakref.ref[Job] | None = None
        self._errors: list[BaseException] = []
        self._ended = False
        self._alone_until, self._alone_for = 0.0, LEAST_ALONE
        self._seconds = self._lost = 0.0
        self._starts = [threading.Semaphore(0) for _ in range(1, self.size)]
        self._threads = [
            threading.Thread(target=self._serve, args=(number, start), daemon=True, name=f"step {number}")
            for number, start in enumerate(self._starts, start=1)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.end)

    def run(self, job: Job) -> None:
        """Compute a step with as many threads as the job wants."""
        with self._lock:
            common = job.common
            if job.threads == 1 or time.monotonic() < self._alone_until:
                job.alone()
                return
            before = None if self._job is None else self._job()
            if before is not job:
                if before is not None:
                    before.common[LEAVE] = 1
                common[LEAVE] = 0
                self._job = weakref.ref(job)
            self._errors.clear()  # of those that were raised together, all but one
            began = time.monotonic()
            begin_step(common)
            sleepers = [number for number in range(1, job.threads) if not is_awake(common, number)]
            for number in sleepers:
                common[FIRST_AWAKE + APART * number] = 1
                self._starts[number - 1].release()
            try:
                job.step()
            except BaseException:
                common[FAILED] = 1
                self._recover(job)
                raise
            if common[FAILED]:
                self._recover(job)
                raise self._errors.pop()
            if not sleepers or common[LOST] > LOOKOUT:  # else what was waited for was that they woke
                self._judge(lost(common), time.monotonic() - began, job.threads)

    def _judge(self, share: float, seconds: float, threads: int) -> None:
        """Decide how to go on after a step in which so much was lost.

        Not by one step: threads that have just woken may share a core, until the system sees it and parts them.
        """
        self._seconds += seconds
        self._lost += share * seconds
        if self._seconds < TRIAL:
            return
        # Of n threads, n - 1 wait for one that does not run; alone is faster where they do so for all but 1 / n.
        if self._lost < self._seconds * (threads - 1) ** 2 / threads:
            self._alone_for = LEAST_ALONE
        else:
            self._alone_until = time.monotonic() + self._alone_for
            self._alone_for = min(2 * self._alone_for, MOST_ALONE)
        self._seconds = self._lost = 0.0

    def end(self) -> None:
        """End the threads: one that came back from a step to an interpreter that is gone would abort the process."""
        self._ended = True
        job = None if self._job is None else self._job()
        if job is not None:
            job.common[LEAVE] = 1
        for start in self._starts:
            start.release()
        for thread in self._threads:
            thread.join(timeout=5)

    def _serve(self, number: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            if self._ended:
                return
            job = None if self._job is None else self._job()
            if job is None:
                continue
            try:
                job.serve(number)
            except BaseException as error:  # it is raised where the step was asked for
                self._errors.append(error)
                job.common[FIRST_AWAKE + APART * number] = 0
                job.common[FAILED] = 1
            del job

    def _recover(self, job: Job) -> None:
        """Wait until no thread is in the step that has failed, and make ready for the next one."""
        common = job.common
        common[LEAVE] = 1
        while any(is_awake(common, number) for number in range(1, job.threads)):
            time.sleep(0.001)
        common[LEAVE] = common[FAILED] = common[ARRIVED] = 0
        for number in range(1, job.threads):
            common[FIRST_DONE + APART * number] = common[STEPS]


@cache
def team() -> Team:
    """This process's team: a thread for each physical core that it may use."""
    return Team(cores())
