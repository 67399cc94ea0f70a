"""Schedules: each equals its formula at every step, stays between 0 and 1, and makes no jumps."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.training.schedules import Schedule

schedules = st.builds(
    Schedule,
    name=st.sampled_from(["constant", "cosine", "wsd"]),
    steps=st.integers(1, 3000),
    warmup_steps=st.integers(0, 200),
    decay_share=st.floats(0, 1),
    final_share=st.floats(0, 1),
)


@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
def test_constant_is_its_formula(warmup: int) -> None:
    schedule = Schedule("constant", 300, warmup, decay_share=0.4, final_share=0.1)
    for step in range(320):
        expected = (step + 1) / warmup if step < warmup else 1
        assert schedule.share(step) == pytest.approx(expected, abs=1e-12), step


@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_its_formula(warmup: int, final: float) -> None:
    schedule = Schedule("cosine", 300, warmup, decay_share=0.4, final_share=final)
    for step in range(320):
        half_wave = (1 + math.cos(math.pi * (min(step, 300) - warmup) / (300 - warmup))) / 2
        expected = (step + 1) / warmup if step < warmup else final * (1 - half_wave) + half_wave
        assert schedule.share(step) == pytest.approx(expected, abs=1e-12), step


@pytest.mark.parametrize("warmup", [0, 1, 7, 100])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("decay", [0.2, 0.5, 0.6])
def test_wsd_is_its_formula(warmup: int, final: float, decay: float) -> None:
    schedule = Schedule("wsd", 300, warmup, decay, final)
    bend = 300 - round(300 * decay)
    for step in range(320):
        if step < warmup:
            expected = (step + 1) / warmup
        elif step <= bend:
            expected = 1
        elif step < 300:
            expected = 1 - (1 - final) * (step - bend) / (300 - bend)
        else:
            expected = final
        assert schedule.share(step) == pytest.approx(expected, abs=1e-12), step


def test_wsd_by_hand() -> None:
    schedule = Schedule("wsd", 10, 2, decay_share=0.5, final_share=0.0)
    shares = [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]
    assert [schedule.share(step) for step in range(11)] == pytest.approx(shares)


def test_cosine_by_hand() -> None:
    schedule = Schedule("cosine", 6, 2, decay_share=0.5, final_share=0.1)
    eighth = math.sqrt(0.5)
    shares = [0.5, 1, 1, 0.1 + 0.45 * (1 + eighth), 0.55, 0.1 + 0.45 * (1 - eighth), 0.1]
    assert [schedule.share(step) for step in range(7)] == pytest.approx(shares)


@settings(deadline=None)
@given(schedule=schedules, step=st.integers(0, 4000))
def test_share_is_between_nothing_and_all(schedule: Schedule, step: int) -> None:
    assert 0 <= schedule.share(step) <= 1
    if step < schedule.steps:
        assert schedule.share(step) > 0


@settings(deadline=None)
@given(schedule=schedules)
def test_it_rises_to_the_peak_and_then_only_falls(schedule: Schedule) -> None:
    shares = [schedule.share(step) for step in range(schedule.steps + schedule.warmup_steps + 5)]
    rising, falling = shares[: schedule.warmup_steps], shares[schedule.warmup_steps :]
    assert all(now < later for now, later in itertools.pairwise(rising))
    assert all(now >= later for now, later in itertools.pairwise(falling))
    if rising:
        assert rising[-1] == 1
    if schedule.name != "constant":
        assert falling[-1] == pytest.approx(schedule.final_share, abs=1e-12)


@settings(deadline=None)
@given(schedule=schedules)
def test_it_makes_no_jumps(schedule: Schedule) -> None:
    """From one step to the next it moves no further than its steepest slope."""
    steps = schedule.steps + 210  # so that all of them have steps between warm-up and decay
    schedule = dataclasses.replace(schedule, steps=steps, decay_share=schedule.decay_share * (1 - 200 / steps))
    slopes = {
        "constant": 0.0,
        "cosine": math.pi / 2 / (steps - schedule.warmup_steps),
        "wsd": 1 / max(1.0, schedule.decay_share * steps),
    }
    steepest = max(slopes[schedule.name], 1 / max(1, schedule.warmup_steps)) + 1e-9
    for step in range(steps + 5):
        assert abs(schedule.share(step + 1) - schedule.share(step)) <= steepest, step
