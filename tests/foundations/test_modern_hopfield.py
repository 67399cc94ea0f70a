"""The modern Hopfield network beside torch: its update is attention, and descends the gradient of its energy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.foundations.hopfield import Hopfield
from rhapsode.foundations.hopfield_capacity import random_patterns
from rhapsode.foundations.modern_hopfield import ModernHopfield


def test_a_thousand_patterns_in_64_dimensions_are_recalled_in_one_step() -> None:
    """From queries with six of 64 signs turned over, and from directions with noise half as long as themselves."""
    patterns = random_patterns(1000, 64, seed=0)
    order = np.argsort(np.random.default_rng(1).random(patterns.shape), axis=1)
    damaged = np.where(order < 6, -patterns, patterns)
    memory = ModernHopfield().fit(patterns)
    assert memory.updates == 1
    np.testing.assert_array_equal(np.sign(memory.predict(damaged)), patterns)
    assert np.median(np.abs(memory.predict(damaged) - patterns).max(axis=1)) < 1e-3
    np.testing.assert_allclose(memory.predict(patterns), patterns, rtol=0, atol=1e-3)
    assert memory.score(damaged, patterns) > 0.999
    noise = np.random.default_rng(2)
    directions = noise.standard_normal((1000, 64))
    noisy = directions + 0.5 * noise.standard_normal((1000, 64))
    found = ModernHopfield(beta=1.0).fit(directions).transform(noisy)
    np.testing.assert_array_equal(found.argmax(axis=1), np.arange(1000))
    # The network of 1982 has 64 units for them as well, and keeps none.
    assert not (Hopfield().fit(patterns).step(patterns) == patterns).all(axis=1).any()


@given(
    queries=st.integers(1, 6),
    patterns=st.integers(1, 9),
    units=st.integers(1, 8),
    width=st.integers(1, 5),
    beta=st.floats(0.01, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_update_is_attention(queries: int, patterns: int, units: int, width: int, beta: float, seed: int) -> None:
    noise = np.random.default_rng(seed)
    q, k, v = (noise.standard_normal(shape) for shape in ((queries, units), (patterns, units), (patterns, width)))
    memory = ModernHopfield(beta=beta).fit(k, v)
    for found, values in ((memory.step(q), k), (memory.predict(q), v)):
        query, key, value = (torch.from_numpy(array)[None] for array in (q, k, values))
        torch_found = F.scaled_dot_product_attention(query, key, value, scale=beta)[0].numpy()
        np.testing.assert_allclose(found, torch_found, rtol=0, atol=1e-10)
    single = ModernHopfield(beta=beta).fit(k.astype(np.float32), v.astype(np.float32)).predict(q.astype(np.float32))
    assert single.dtype == np.float32
    query, key, value = (torch.from_numpy(array.astype(np.float32))[None] for array in (q, k, v))
    torch_found = F.scaled_dot_product_attention(query, key, value, scale=beta)[0].numpy()
    np.testing.assert_allclose(single, torch_found, rtol=0, atol=1e-6 * max(1, beta * np.abs(q @ k.T).max()))


@given(
    patterns=st.integers(1, 12),
    units=st.integers(1, 6),
    size=st.floats(0.1, 3),
    beta=st.floats(0.05, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_update_raises_the_energy(patterns: int, units: int, size: float, beta: float, seed: int) -> None:
    noise = np.random.default_rng(seed)
    memory = ModernHopfield(beta=beta).fit(size * noise.standard_normal((patterns, units)))
    x = 2 * size * noise.standard_normal((20, units))
    largest = np.square(memory.patterns_).sum(axis=1).max()
    before = memory.energy(x)
    for _ in range(6):
        x = memory.step(x)
        after = memory.energy(x)
        assert (after <= before + 1e-9 * (1 + np.abs(before))).all()
        assert (after >= -1e-9).all()
        assert (after <= 2 * largest + 1e-9).all()
        before = after


def test_the_update_is_a_step_down_the_gradient_of_the_energy() -> None:
    """E(q) written with torch.logsumexp; q' = q - dE/dq."""
    noise = np.random.default_rng(0)
    memory = ModernHopfield(beta=0.7).fit(noise.standard_normal((5, 4)))
    x = torch.from_numpy(noise.standard_normal((3, 4))).requires_grad_()
    keys = torch.from_numpy(memory.patterns_)
    energy = (
        -torch.logsumexp(0.7 * x @ keys.T, dim=1) / 0.7
        + 0.5 * x.square().sum(dim=1)
        + np.log(5) / 0.7
        + 0.5 * keys.square().sum(dim=1).max()
    )
    start = x.detach().numpy()
    np.testing.assert_allclose(memory.energy(start), energy.detach().numpy(), rtol=1e-12)
    energy.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    np.testing.assert_allclose(memory.step(start), start - x.grad.numpy(), rtol=0, atol=1e-12)


def test_large_scores_do_not_overflow() -> None:
    memory = ModernHopfield(beta=1000.0).fit([[100.0, 0.0], [0.0, 100.0]])
    np.testing.assert_array_equal(memory.predict([[90.0, 10.0]]), [[100.0, 0.0]])
    assert np.isfinite(memory.energy([[90.0, 10.0]])).all()


def test_numbers_out_of_all_bounds() -> None:
    memory = ModernHopfield(beta=1e18).fit(np.full((2, 3), 1e15, np.float32))
    for ask in (memory.predict, memory.energy, memory.transform, memory.step):
        with pytest.raises(InputError, match="beta: is too large for numbers of this size"):
            ask(np.full((1, 3), 1e15, np.float32))
    for wrong in (memory.fit, memory.predict):
        with pytest.raises(InputError, match=r"x\[0, 0\]: is 1e\+200"):
            wrong([[1e200, 1.0, 1.0]])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_is_stored_is_a_copy(kind: type) -> None:
    x, y = np.eye(3, dtype=kind), np.ones((3, 2), kind)
    memory = ModernHopfield().fit(x, y)
    x[:], y[:] = 7, 7
    assert np.array_equal(memory.patterns_, np.eye(3))
    assert np.array_equal(memory.values_, np.ones((3, 2)))
    assert memory.predict(np.eye(3, dtype=kind)).dtype == kind


def test_updates_and_partial_fits() -> None:
    noise = np.random.default_rng(3)
    x, y, queries = noise.standard_normal((7, 4)), noise.standard_normal((7, 2)), noise.standard_normal((5, 4))
    once, thrice = ModernHopfield().fit(x, y), ModernHopfield(updates=3).fit(x, y)
    np.testing.assert_allclose(thrice.predict(queries), once.predict(once.step(once.step(queries))))
    parts = ModernHopfield().partial_fit(x[:3], y[:3]).partial_fit(x[3:], y[3:])
    np.testing.assert_allclose(parts.predict(queries), once.predict(queries))
    np.testing.assert_allclose(once.transform(queries).sum(axis=1), 1)
    np.testing.assert_array_equal(ModernHopfield().fit(x).values_, x)


def test_saved_and_loaded(tmp_path: Path) -> None:
    noise = np.random.default_rng(3)
    memory = ModernHopfield(beta=0.5, updates=2).fit(noise.standard_normal((7, 4)), noise.standard_normal((7, 2)))
    memory.save(tmp_path / "memory")
    again = ModernHopfield.load(tmp_path / "memory")
    assert again.settings() == memory.settings()
    np.testing.assert_array_equal(again.values_, memory.values_)
    memory.values_ = memory.values_[:3]
    memory.save(tmp_path / "memory", replace=True)
    with pytest.raises(DamagedError, match="values_"):
        ModernHopfield.load(tmp_path / "memory")


def test_bad_input_names_the_argument() -> None:
    for beta in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="beta"):
            ModernHopfield(beta=beta)
    with pytest.raises(InputError, match="updates"):
        ModernHopfield(updates=0)
    memory = ModernHopfield().fit([[1.0, 2.0], [3.0, 4.0]])
    for x, message in (
        ([[float("nan"), 1.0]], r"x\[0, 0\]: is not a number"),
        ([[1.0, float("inf")]], r"x\[0, 1\]"),
        ([1.0, 2.0], "x: has the shape"),
        ([[1.0, 2.0, 3.0]], "x: has the shape"),
    ):
        for ask in (memory.predict, memory.partial_fit, memory.energy, memory.transform):
            with pytest.raises(InputError, match=message):
                ask(x)
    with pytest.raises(InputError, match="y: has the shape"):
        memory.fit([[1.0, 2.0]], [[1.0], [2.0]])
    with pytest.raises(InputError, match="y: has the shape"):
        memory.score([[1.0, 2.0]], [[1.0]])
    with pytest.raises(InputError, match="learned nothing"):
        ModernHopfield().predict([[1.0]])
