"""The horizon: a run ends when it was asked to, on machines faster, slower and less even than planned."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError
from rhapsode.training.horizon import Horizon

RESERVE = 3.0


def run(
    horizon: Horizon,
    seconds_of: Callable[[int], float],
    *,
    first: int = 0,
    elapsed: float = 0.0,
    last: float = math.inf,
) -> tuple[int, float, list[int]]:
    """Step as the loop does, by a simulated clock, to the horizon or to step `last`.

    Returns:
        The steps done, the seconds they took, and the number of steps as it stood before each.
    """
    step, known = first, []
    horizon.look_at_clock(step, elapsed)
    while step < min(last, horizon.steps(step)):
        known.append(horizon.steps(step))
        elapsed += seconds_of(step)
        step += 1
        horizon.look_at_clock(step, elapsed)
    return step, elapsed, known


@settings(deadline=None, max_examples=40)
@given(
    speed=st.floats(0.5, 2),
    drift=st.floats(-0.3, 0.3),
    wave=st.floats(0, 0.2),
    noise=st.floats(0, 0.3),
    planned=st.integers(200, 2000),
    seconds=st.floats(60, 36_000),
)
def test_runs_end_when_they_were_asked_to(
    speed: float, drift: float, wave: float, noise: float, planned: int, seconds: float
) -> None:
    """Machines half or twice as fast as planned, that slow down or speed up, by waves and from step to step."""
    chance = random.Random(planned)
    per_step = (seconds - RESERVE) / planned

    def seconds_of(step: int) -> float:
        done = step / (planned * speed)  # roughly the share of the run
        pace = speed * (1 + drift * done) * (1 + wave * math.sin(12 * done))
        return per_step / pace * (1 + noise * chance.uniform(-1, 1))

    with TemporaryDirectory() as folder:
        _, elapsed, _ = run(Horizon(Path(folder) / "horizon.json", planned, seconds, RESERVE), seconds_of)
    assert elapsed + RESERVE == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.25, 2.0])
def test_an_even_machine_ends_within_two_percent(tmp_path: Path, speed: float) -> None:
    steps, elapsed, _ = run(Horizon(tmp_path / "horizon.json", 1000, 103, RESERVE), lambda step: 0.1 / speed)
    assert elapsed + RESERVE == pytest.approx(103, rel=0.02)
    assert steps == pytest.approx(1000 * speed, rel=0.02)


def test_a_machine_as_fast_as_planned_keeps_the_plan(tmp_path: Path) -> None:
    horizon = Horizon(tmp_path / "horizon.json", 1000, 103, RESERVE)
    steps, _, known = run(horizon, lambda step: 0.1003)
    assert steps == 1000
    assert set(known) == {1000}


def test_a_second_process_repeats_what_the_first_found(tmp_path: Path) -> None:
    path = tmp_path / "horizon.json"
    first = Horizon(path, 1000, 103, RESERVE)
    _, _, known = run(first, lambda step: 0.15, last=600)
    assert len(first.corrections) > 2
    assert len(set(known)) > 1
    second = Horizon(path, 1000, 103, RESERVE)
    assert second.corrections == first.corrections
    assert [second.steps(step) for step in range(len(known))] == known


@pytest.mark.parametrize("resumed", [0, 1, 150, 200, 201, 350, 499])
def test_steps_done_again_meet_the_same_horizon(tmp_path: Path, resumed: int) -> None:
    """Killed and resumed from an older checkpoint, even on a machine that is now much faster."""
    path = tmp_path / "horizon.json"
    first = Horizon(path, 1000, 103, RESERVE)
    _, _, known = run(first, lambda step: 0.15, last=500)
    newest = first.corrections[-1].step
    second = Horizon(path, 1000, 103, RESERVE)
    _, elapsed, again = run(second, lambda step: 0.05, first=resumed, elapsed=0.15 * resumed)
    same = max(0, newest - resumed)
    assert again[:same] == known[resumed : resumed + same]
    assert second.corrections[: len(first.corrections)] == first.corrections
    assert elapsed + RESERVE == pytest.approx(103, rel=0.1)


def test_what_was_found_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "horizon.json"
    horizon = Horizon(path, 1000, 103, RESERVE)
    for step in range(400):
        horizon.look_at_clock(step, 0.2 * step)
        stored = Horizon(path, 1000, 103, RESERVE)
        assert stored.steps(step) == horizon.steps(step)
    assert horizon.steps(399) < 600


def test_time_that_is_over_ends_the_run(tmp_path: Path) -> None:
    horizon = Horizon(tmp_path / "horizon.json", 100, 10, RESERVE)
    steps, _, _ = run(horizon, lambda step: 5.0)
    assert steps == 20  # the first look is after a fifth: none is earlier


def test_without_seconds_nothing_is_corrected(tmp_path: Path) -> None:
    horizon = Horizon(tmp_path / "horizon.json", 50, None, RESERVE)
    steps, _, known = run(horizon, lambda step: 1000.0)
    assert steps == 50
    assert set(known) == {50}
    assert not horizon.corrections
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_not_used(tmp_path: Path) -> None:
    steps, _, known = run(Horizon(tmp_path / "none" / "horizon.json", 100, 50, RESERVE), lambda step: 1.0)
    assert steps == 100
    assert set(known) == {100}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "3",
        "null",
        '{"step": 1, "steps": 2}',
        '["step"]',
        '[{"step": 1}]',
        '[{"step": 1, "steps": "many"}]',
        '[{"step": null, "steps": 2}]',
        '[{"step": NaN, "steps": 2}]',
        "[[1, 2]]",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "horizon.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DamagedError, match=r"horizon\.json"):
        Horizon(path, 100, 50, RESERVE)
