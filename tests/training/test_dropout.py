"""Dropout's masks: the rate asked for, the mean kept, and the same numbers however a batch is cut."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhapsode.training.dropout import ResidualDropout


def kept(dropout: ResidualDropout, *shape: int, place: int = 0) -> Tensor:
    """Which elements survive."""
    return dropout(torch.ones(shape), place) != 0


@settings(deadline=None, max_examples=20)
@given(rate=st.floats(0.001, 0.95), seed=st.integers(0, 2**63 - 1), step=st.integers(0, 10**6))
def test_rate_is_as_asked(rate: float, seed: int, step: int) -> None:
    mask = kept(ResidualDropout(rate, seed, step, 0), 40, 50, 60)
    spread = math.sqrt(rate * (1 - rate) * mask.numel())
    assert abs(float((~mask).sum()) - rate * mask.numel()) < 6 * spread + mask.numel() / 65536


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mean_is_kept(rate: float) -> None:
    x = torch.full((64, 64, 64), 3.0)
    assert float(ResidualDropout(rate, 1, 2, 3)(x, 4).mean()) == pytest.approx(3.0, rel=0.02)


def test_survivors_are_scaled_and_the_rest_is_zero() -> None:
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    out = ResidualDropout(0.25, 0, 0, 0)(x, 0)
    mask = out != 0
    assert 0 < int(mask.sum()) < mask.numel()
    torch.testing.assert_close(out[mask], x[mask] / 0.75)


@pytest.mark.parametrize("rate", [0.9999999, 1 - 1e-16])
def test_a_rate_close_to_one_does_not_divide_by_zero(rate: float) -> None:
    assert bool(torch.isfinite(ResidualDropout(rate, 0, 0, 0)(torch.ones(2, 3, 4), 0)).all())


@settings(deadline=None, max_examples=40)
@given(
    first=st.integers(0, 10**9),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    time_=st.integers(1, 9),
    hidden=st.integers(1, 11),
)
def test_masks_do_not_depend_on_how_a_batch_is_cut(first: int, cuts: list[int], time_: int, hidden: int) -> None:
    whole = kept(ResidualDropout(0.5, 7, 3, first), sum(cuts), time_, hidden, place=2)
    parts, sample = [], first
    for count in cuts:
        parts.append(kept(ResidualDropout(0.5, 7, 3, sample), count, time_, hidden, place=2))
        sample += count
    assert torch.equal(torch.cat(parts), whole)


def test_masks_are_a_pure_function_of_seed_step_sample_and_place() -> None:
    def mask(seed: int = 0, step: int = 0, sample: int = 0, place: int = 0) -> Tensor:
        return kept(ResidualDropout(0.5, seed, step, sample), 1, 16, 32, place=place)

    assert torch.equal(mask(), mask())
    for other in (mask(seed=1), mask(step=1), mask(sample=1), mask(place=1)):
        agreeing = float((other == mask()).float().mean())
        assert 0.4 < agreeing < 0.6  # independent halves agree half of the time


def test_masks_do_not_touch_the_global_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kept(ResidualDropout(0.5, 0, 0, 0), 2, 3, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_passes_where_the_value_passed() -> None:
    x = torch.ones(4, 5, 6, requires_grad=True)
    out = ResidualDropout(0.3, 0, 0, 0)(x, 0)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach())  # x is one: value and gradient are mask * scale


def test_masks_are_nearly_free() -> None:
    """A step at this shape takes about a second on two cores; it draws thirteen masks."""
    x, dropout = torch.ones(16, 256, 384), ResidualDropout(0.1, 0, 0, 0)
    best = math.inf
    for place in range(12):
        begin = time.perf_counter()
        dropout(x, place)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.03
