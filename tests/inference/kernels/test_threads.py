"""Threads of a step: every piece is taken once, nobody goes on before all have come, and errors come to who asked."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

from rhapsode.inference.kernels import step as step_module
from rhapsode.inference.kernels import threads as module
from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.step import KernelStep
from rhapsode.inference.kernels.threads import (
    FIRST_AWAKE,
    MOST_THREADS,
    STEPS,
    Team,
    begin_step,
    claim,
    in_common,
    is_awake,
    next_step,
    step_is_done,
    team,
    wait_for_all,
)
from rhapsode.inference.step import Reading
from rhapsode.model.config import ModelConfig
from rhapsode.model.packed import pack_model

from ..conftest import random_decoder
from .models import Texts, same_bits
from .whole import CONFIGS

PARTS, PIECES = 4, 40
"""Five barriers: whoever breaks off leaves no multiple of four threads there."""


@compiled
def work(thread, threads, common, taken, seen):
    """Take pieces of each part, and after each look whether all of it was taken."""
    parts, pieces = taken.shape
    for part in range(parts):
        piece = claim(common, part)
        while piece < pieces:
            taken[part, piece] += 1
            piece = claim(common, part)
        wait_for_all(common, threads)
        for piece in range(pieces):
            seen[thread, part] += taken[part, piece]
    wait_for_all(common, threads)


class Counting:
    """A job that counts who has taken what."""

    def __init__(self, threads: int) -> None:
        self.threads, self.common, self.by_itself = threads, in_common(PARTS), in_common(PARTS)
        self.taken, self.seen = np.zeros((PARTS, PIECES), np.int64), np.zeros((max(threads, 1), PARTS), np.int64)
        self.before: Callable[[int], None] = lambda thread: None
        self.steps = self.steps_alone = 0

    def step(self) -> None:
        self.steps += 1
        self.before(0)
        work(0, self.threads, self.common, self.taken, self.seen)

    def alone(self) -> None:
        self.steps_alone += 1
        begin_step(self.by_itself)
        work(0, 1, self.by_itself, self.taken, self.seen)

    def serve(self, thread: int) -> None:
        while next_step(self.common, thread):
            self.before(thread)
            work(thread, self.threads, self.common, self.taken, self.seen)
            step_is_done(self.common, thread)

    def run(self, by: Team) -> None:
        """A step, and that all of it was done once."""
        self.taken[:], self.seen[:], steps = 0, 0, self.steps
        by.run(self)
        assert (self.taken == 1).all()
        together = self.seen if self.steps > steps else self.seen[:1]
        assert (together == PIECES).all()


class SpoiledError(Exception):
    """What a thread of a job raises."""


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    """Four threads, however many cores there are, that never think it better to compute alone."""
    monkeypatch.setattr(module, "LEAST_ALONE", 0.0)
    monkeypatch.setattr(module, "MOST_ALONE", 0.0)
    crew = Team(4)
    yield crew
    crew.end()
    assert not any(thread.is_alive() for thread in crew._threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_piece_is_taken_once_and_nobody_goes_on_before(several: Team, threads: int) -> None:
    job = Counting(threads)
    for _ in range(30):
        job.run(several)
    assert (job.steps, job.steps_alone) == ((0, 30) if threads == 1 else (30, 0))


def test_jobs_take_turns(several: Team) -> None:
    jobs = [Counting(threads) for threads in (2, 4, 1, 3, 4)]
    for _ in range(8):
        for job in jobs:
            job.run(several)


def test_threads_that_sleep_are_woken(several: Team) -> None:
    job = Counting(4)
    for _ in range(3):
        job.run(several)
        until = time.monotonic() + 20
        while any(is_awake(job.common, thread) for thread in range(1, 4)):
            assert time.monotonic() < until
            time.sleep(0.002)
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1  # they do not look out for ever


@pytest.mark.parametrize("spoils", [{0}, {1}, {3}, {1, 2}, {0, 1}, {0, 1, 2, 3}])
def test_an_error_of_any_thread_comes_to_who_asked(several: Team, spoils: set[int]) -> None:
    job = Counting(4)
    job.run(several)
    for number in range(3):

        def spoil(thread: int, number: int = number) -> None:
            if thread in spoils:
                raise SpoiledError(number)

        job.before = spoil
        with pytest.raises(SpoiledError) as caught:
            several.run(job)
        assert caught.value.args == (number,)  # not one that was left from before
        job.before = lambda thread: None
        for _ in range(3):
            job.run(several)
        Counting(3).run(several)


@pytest.mark.parametrize("spoils", [set(), {1, 2, 3}])
def test_a_job_that_is_gone_is_forgotten(several: Team, spoils: set[int]) -> None:
    """Errors that nobody was told of hold it no longer than to the next step."""
    job = Counting(4)

    def spoil(thread: int) -> None:
        if thread in spoils:
            raise SpoiledError

    job.before = spoil
    with pytest.raises(SpoiledError) if spoils else nullcontext():
        job.run(several)
    gone = weakref.ref(job)
    del job
    Counting(2).run(several)
    until = time.monotonic() + 20
    while gone() is not None:
        assert time.monotonic() < until
        time.sleep(0.002)
        gc.collect()
    other = Counting(4)
    for _ in range(3):
        other.run(several)


def test_steps_asked_for_at_once_come_one_after_the_other(several: Team) -> None:
    jobs = [Counting(threads) for threads in (4, 2, 3, 1)]

    def often(job: Counting) -> None:
        for _ in range(25):
            job.run(several)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(often, jobs))


def test_where_threads_wait_in_vain_one_goes_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside busy processes: the other thread comes late each time."""
    monkeypatch.setattr(module, "MOST_ALONE", 0.1)
    two, job = Team(2), Counting(2)
    try:
        job.run(two)
        job.before = lambda thread: time.sleep(0.02 * thread)
        until = time.monotonic() + 1
        while time.monotonic() < until:
            job.run(two)
            time.sleep(0.001)
        assert job.steps_alone > 3 * job.steps and job.steps > 2
        job.before = lambda thread: None
        until, steps = time.monotonic() + 20, job.steps
        while job.steps < steps + 20:  # and together again when that is over
            job.run(two)
            assert time.monotonic() < until
    finally:
        two.end()


def test_there_are_never_more_threads_than_there_is_room_for() -> None:
    crew = Team(MOST_THREADS + 10)
    try:
        assert crew.size == MOST_THREADS
        job = Counting(MOST_THREADS)
        assert len(job.common) > FIRST_AWAKE + 8 * MOST_THREADS
        job.run(crew)
    finally:
        crew.end()


SMALL = ModelConfig(75, 44, 2, 6, 2, 10, 50, 100, qk_norm="head")


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_steps_by_several_threads(several: Team, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """However many cores there are, and however busy: the bits are those of one thread."""
    monkeypatch.setattr(step_module, "team", lambda: several)
    for number, config in enumerate(CONFIGS):
        model = random_decoder(config, number)
        texts = Texts(config.vocabulary_size, [40, 3], number)
        for bits in (32, 8, 4):
            source = model if bits == 32 else pack_model(model, bits)
            expected = texts.alone(KernelStep(source, texts.count, threads=1))
            step = KernelStep(source, texts.count, threads=threads)
            same_bits(texts.together(step), expected)
            same_bits(texts.in_pieces(step, number), expected)
            assert step.threads == threads and step.common[STEPS] > 3


def test_more_threads_than_cores_are_not_used() -> None:
    model = random_decoder(SMALL)
    texts = Texts(75, [30, 1], 0)
    expected = texts.together(KernelStep(model, texts.count, threads=1))
    for threads in (2, 3, 64, 1000):
        step = KernelStep(model, texts.count, threads=threads)
        assert step.threads == min(threads, team().size)
        same_bits(texts.together(step), expected)
        same_bits(texts.in_pieces(step, threads), expected)


def test_an_error_in_a_step_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    if team().size == 1:
        pytest.skip("one core")
    monkeypatch.setattr(module, "LEAST_ALONE", 0.0)
    monkeypatch.setattr(team(), "_alone_until", 0.0)
    model = random_decoder(SMALL)
    texts = Texts(75, [30, 1], 0)
    step = KernelStep(model, texts.count, threads=2)
    expected = texts.together(step)

    def spoiled(*arguments: object) -> None:
        raise SpoiledError

    for name in ("serve", "step"):
        until = time.monotonic() + 20
        while is_awake(step.common, 1):  # what looks out for steps would not ask for `serve` again
            assert time.monotonic() < until
            time.sleep(0.002)
        with monkeypatch.context() as patch:
            patch.setattr(step, name, spoiled)
            patch.setattr(team(), "_alone_until", 0.0)
            with pytest.raises(SpoiledError):
                texts.together(step)
        same_bits(texts.together(step), expected)


def test_two_models_at_once() -> None:
    """Each in a thread of its own, and each as if it were alone."""
    models = [random_decoder(SMALL, seed) for seed in range(3)]
    sources = [models[0], pack_model(models[1], 8), pack_model(models[2], 4)]
    texts = [Texts(75, [90, 40, 1], seed) for seed in range(3)]
    expected = [
        some.alone(KernelStep(source, some.count, threads=1)) for some, source in zip(texts, sources, strict=True)
    ]

    def often(number: int) -> None:
        step = KernelStep(sources[number], texts[number].count, threads=2)
        for seed in range(6):
            same_bits(texts[number].in_pieces(step, seed), expected[number])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(often, range(3)))


def test_a_step_that_is_gone_gives_its_memory_back() -> None:
    step = KernelStep(random_decoder(SMALL), 4, threads=2)
    step([Reading([1, 2], [0], 0, 1)])
    gone = weakref.ref(step)
    del step
    until = time.monotonic() + 20
    while gone() is not None:
        assert time.monotonic() < until
        time.sleep(0.002)
        gc.collect()


def test_a_process_ends_after_its_last_step() -> None:
    """Whatever its threads are at: here they still look out for the next step."""
    code = (
        "from rhapsode.inference.kernels.threads import Team\n"
        "from rhapsode.inference.kernels.threads import begin_step, next_step, step_is_done, wait_for_all, in_common\n"
        "class Job:\n"
        "    threads, common = 2, in_common(1)\n"
        "    def step(self): wait_for_all(self.common, 2)\n"
        "    def alone(self): pass\n"
        "    def serve(self, thread):\n"
        "        while next_step(self.common, thread):\n"
        "            wait_for_all(self.common, 2)\n"
        "            step_is_done(self.common, thread)\n"
        "job, team = Job(), Team(2)\n"
        "for _ in range(50): team.run(job)\n"
        "print('done')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", [1, 2, 4])
def test_beside_busy_processes_several_threads_are_not_much_slower_than_one(neighbours: int) -> None:
    """One thread gets its share of a core, whatever else is done; so the two are measured in turns."""
    if team().size == 1:
        pytest.skip("one core")
    packed = pack_model(random_decoder(ModelConfig(4000, 256, 6, 8, 4, 32, 768, 256)), 8)
    steps = [KernelStep(packed, 8, threads=threads) for threads in (1, 2)]

    def tokens_per_second(step: KernelStep) -> float:
        count, start = 0, time.perf_counter()
        while time.perf_counter() < start + 0.4:
            step([Reading([count % 4000], range(8), count % 250, 1)])
            count += 1
        return count / (time.perf_counter() - start)

    for step in steps:
        step.warm_up()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        time.sleep(0.3)
        ratios = []
        for _ in range(7):
            alone, together = (tokens_per_second(step) for step in steps)
            ratios.append(together / alone)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert np.median(ratios) > 1 / 5, ratios


def test_the_team_has_a_thread_for_each_core() -> None:
    before = threading.active_count()
    assert team() is team() and team().size == min(module.cores(), MOST_THREADS)
    assert threading.active_count() <= max(before, 1) + team().size - 1
