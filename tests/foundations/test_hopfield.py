"""Hopfield networks: energies in exact integers, cycles step by step, rules against their formulas term by term."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.foundations.hopfield import Hopfield, Rule
from rhapsode.foundations.hopfield_capacity import random_patterns

Numbers = npt.NDArray[Any]
RULES = get_args(Rule)


def signs(rows: int, units: int) -> st.SearchStrategy[Numbers]:
    return arrays(np.int64, (rows, units), elements=st.sampled_from([-1, 1]))


@st.composite
def any_network(draw: st.DrawFn) -> tuple[Hopfield, Numbers, Numbers]:
    """A network with any symmetric whole weights, ties among them, the weights, and a state to start from."""
    units = draw(st.integers(2, 12))
    upper = np.triu(draw(arrays(np.int64, (units, units), elements=st.integers(-5, 5))), 1)
    memory = Hopfield(seed=draw(st.integers(0, 2**32))).fit(np.ones((1, units)))
    memory.weights_ = (upper + upper.T).astype(np.float64)
    return memory, upper + upper.T, draw(signs(1, units))[0]


@st.composite
def stored(draw: st.DrawFn, rule: str) -> tuple[Hopfield, Numbers, Numbers]:
    """A network that has stored patterns, alike ones among them, the patterns, and states to start from."""
    units = draw(st.integers(2, 16))
    patterns = draw(signs(draw(st.integers(1, units - 1)), units))
    memory = Hopfield(rule=rule, seed=draw(st.integers(0, 2**32))).fit(patterns)  # type: ignore[arg-type]
    return memory, patterns, draw(signs(3, units))


def doubled_energy(weights: Numbers, state: Numbers) -> int:
    """-s^T w s in whole numbers of Python, which do not round."""
    units = range(len(state))
    return -sum(int(weights[i, j]) * int(state[i]) * int(state[j]) for i in units for j in units)


@given(any_network())
def test_each_flip_lowers_the_energy_and_the_end_is_a_fixed_point(case: tuple[Hopfield, Numbers, Numbers]) -> None:
    memory, weights, start = case
    path = memory.recall(start)
    np.testing.assert_array_equal(path.states[0], start)
    energies = [doubled_energy(weights, state) for state in path.states]
    assert all(after < before for before, after in pairwise(energies))
    assert all(np.count_nonzero(a != b) == 1 for a, b in pairwise(path.states))
    np.testing.assert_allclose(path.energies, np.array(energies) / 2, rtol=0, atol=1e-9)
    assert path.end == "fixed point"
    assert (weights @ path.states[-1] * path.states[-1] >= 0).all()
    np.testing.assert_array_equal(memory.predict(start[None])[0], path.states[-1])


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data())
def test_no_asynchronous_run_raises_the_energy(rule: str, data: st.DataObject) -> None:
    memory, _, starts = data.draw(stored(rule))
    for start in starts:
        path = memory.recall(start)
        energies = [-0.5 * float((np.outer(state, state) * memory.weights_).sum()) for state in path.states]
        np.testing.assert_allclose(path.energies, energies, rtol=0, atol=1e-9)
        assert (np.diff(energies) <= 1e-12).all()


@given(any_network())
def test_synchronous_runs_end_in_a_fixed_point_or_a_two_cycle(case: tuple[Hopfield, Numbers, Numbers]) -> None:
    memory, weights, start = case
    memory.updates = "synchronous"
    path = memory.recall(start)
    state = start
    for shown in path.states[1:]:
        field = weights @ state
        state = np.where(field == 0, state, np.sign(field))
        np.testing.assert_array_equal(shown, state)
    field = weights @ state
    after = np.where(field == 0, state, np.sign(field))
    if path.end == "fixed point":
        np.testing.assert_array_equal(after, state)
    else:
        assert (after != state).any()
        np.testing.assert_array_equal(after, path.states[-2])
    np.testing.assert_array_equal(memory.predict(start[None])[0], state)


def test_a_two_cycle() -> None:
    """Two units that want to differ, both updated at once, swap for ever; one at a time they settle."""
    together = Hopfield(updates="synchronous").fit([[1, -1]])
    path = together.recall([1, 1])
    assert path.end == "two-cycle"
    np.testing.assert_array_equal(path.states, [[1, 1], [-1, -1], [1, 1]])
    assert together.recall([1, -1]).end == "fixed point"
    alone = Hopfield().fit([[1, -1]]).predict([[1, 1]])[0]
    assert alone[0] == -alone[1]


def test_states_do_not_depend_on_their_neighbours() -> None:
    memory = Hopfield(seed=3).fit(random_patterns(20, 60, seed=0))
    starts = random_patterns(8, 60, seed=1)
    together = memory.predict(starts)
    np.testing.assert_array_equal(together, np.concatenate([memory.predict(start[None]) for start in starts]))
    np.testing.assert_array_equal(together, Hopfield(seed=3).fit(memory.patterns_).predict(starts))
    np.testing.assert_array_equal(memory.step(starts)[2], memory.step(starts[2:3])[0])


def test_hebbian_weights_are_the_sum_of_products() -> None:
    x = random_patterns(5, 7, seed=0)
    memory = Hopfield().fit(x)
    for i in range(7):
        for j in range(7):
            expected = 0.0 if i == j else sum(pattern[i] * pattern[j] for pattern in x) / 7
            assert memory.weights_[i, j] == pytest.approx(expected, abs=1e-15)
    np.testing.assert_allclose(memory.field(x), x @ memory.weights_)


def test_storkey_weights_are_those_of_the_rule_term_by_term() -> None:
    """Storkey (1997), equation 2: h_ij leaves out both i and j."""
    units, x = 9, random_patterns(6, 9, seed=4)
    weights = np.zeros((units, units))
    for pattern in x:
        new = weights.copy()
        for i in range(units):
            for j in range(units):
                if i == j:
                    continue
                of_i = sum(weights[i, k] * pattern[k] for k in range(units) if k not in (i, j))
                of_j = sum(weights[j, k] * pattern[k] for k in range(units) if k not in (i, j))
                new[i, j] += (pattern[i] * pattern[j] - pattern[i] * of_j - of_i * pattern[j]) / units
        weights = new
    np.testing.assert_allclose(Hopfield(rule="storkey").fit(x).weights_, weights, rtol=0, atol=1e-14)


def test_storkey_holds_more_than_hebb() -> None:
    """At 30 patterns in 120 units, a load of 0.25: nearly all of one are fixed points, none of the other."""
    x = random_patterns(30, 120, seed=0)
    fixed = {rule: int((Hopfield(rule=rule).fit(x).step(x) == x).all(axis=1).sum()) for rule in RULES}
    assert fixed["hebbian"] <= 3
    assert fixed["storkey"] >= 24
    assert fixed["pseudo-inverse"] == 30


@given(data=st.data())
def test_patterns_of_the_pseudo_inverse_are_fixed_points(data: st.DataObject) -> None:
    memory, patterns, _ = data.draw(stored("pseudo-inverse"))
    np.testing.assert_array_equal(memory.step(patterns), patterns)
    np.testing.assert_array_equal(memory.predict(patterns), patterns)
    np.testing.assert_array_equal(memory.partial_fit(patterns).step(-patterns), -patterns)


@pytest.mark.parametrize("units", [2, 5, 16, 64, 200])
def test_the_pseudo_inverse_holds_one_pattern_less_than_units(units: int) -> None:
    x = np.where(np.arange(units) < np.arange(units)[:, None], 1, -1)[1:]  # units - 1 independent ones, alike
    for patterns in (x, *(random_patterns(units - 1, units, seed=seed) for seed in range(3))):
        memory = Hopfield(rule="pseudo-inverse").fit(patterns)
        np.testing.assert_array_equal(memory.step(patterns), patterns)
        projection = np.linalg.pinv(patterns.astype(np.float64)) @ patterns
        np.testing.assert_allclose(memory.weights_, projection - np.diag(np.diag(projection)), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(Hopfield(rule="pseudo-inverse").fit(np.repeat(x, 3, axis=0)).step(x), x)
    everything = np.concatenate([x, np.full((1, units), -1)])
    with pytest.raises(InputError, match=f"x: holds {units} independent patterns, too many for {units} units"):
        Hopfield(rule="pseudo-inverse").fit(everything)
    with pytest.raises(InputError, match="too many"):
        Hopfield(rule="pseudo-inverse").fit(x).partial_fit(everything[-1:])


@pytest.mark.parametrize("rule", RULES)
def test_partial_fits_add_up(rule: Rule) -> None:
    x = random_patterns(9, 30, seed=2)
    whole = Hopfield(rule=rule).fit(x)
    parts = Hopfield(rule=rule).partial_fit(x[:4]).partial_fit(x[4:5]).partial_fit(x[5:])
    np.testing.assert_allclose(parts.weights_, whole.weights_, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(parts.patterns_, x)
    np.testing.assert_array_equal(parts.fit(x).weights_, whole.weights_)
    np.testing.assert_array_equal(whole.weights_, whole.weights_.T)
    assert not np.diagonal(whole.weights_).any()


@pytest.mark.parametrize("rule", RULES)
def test_damaged_patterns_are_restored(rule: Rule) -> None:
    """Six patterns in 200 units, a tenth of each turned over: score is the share of units right, less those wrong."""
    x = random_patterns(6, 200, seed=0)
    damaged = x.copy()
    damaged[:, ::10] *= -1
    for updates in ("asynchronous", "synchronous"):
        memory = Hopfield(rule=rule, updates=updates).fit(x)
        np.testing.assert_array_equal(memory.predict(damaged), x)
        assert memory.score(damaged, x) == 1.0
        assert memory.score(damaged, damaged) == pytest.approx(0.8)


@pytest.mark.parametrize("rule", RULES)
def test_saved_and_loaded(rule: Rule, tmp_path: Path) -> None:
    memory = Hopfield(rule=rule, updates="synchronous", seed=5).fit(random_patterns(4, 20, seed=0))
    memory.save(tmp_path / "memory")
    again = Hopfield.load(tmp_path / "memory")
    assert again.settings() == memory.settings()
    np.testing.assert_array_equal(again.weights_, memory.weights_)
    np.testing.assert_array_equal(again.patterns_, memory.patterns_)


def test_a_saved_memory_that_is_not_one_is_refused(tmp_path: Path) -> None:
    memory = Hopfield().fit(random_patterns(4, 20, seed=0))
    good = memory.weights_
    for weights in (good[:, :10], good[:10, :10], good + np.eye(20), good + np.triu(np.ones((20, 20)), 1)):
        memory.weights_ = weights
        memory.save(tmp_path / "memory", replace=True)
        with pytest.raises(DamagedError, match="weights_"):
            Hopfield.load(tmp_path / "memory")
    memory.weights_ = good.astype(np.int8)
    memory.save(tmp_path / "memory", replace=True)
    assert Hopfield.load(tmp_path / "memory").weights_.dtype == np.float64
    memory.weights_ = good.tolist()  # type: ignore[assignment]
    memory.save(tmp_path / "memory", replace=True)
    again = Hopfield.load(tmp_path / "memory")
    assert np.array_equal(again.field(again.patterns_), again.patterns_ @ good)
    path = tmp_path / "memory" / "estimator.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"rule": "oja"}}))
    with pytest.raises(DamagedError):
        Hopfield.load(tmp_path / "memory")


BAD: list[tuple[object, str]] = [
    ([[0, 1, 1]], r"x\[0, 0\]"),
    ([[1, -1, float("nan")]], r"x\[0, 2\]: is not a number"),
    ([[1, -1, 0.5]], r"x\[0, 2\]"),
    ([1, -1, 1], "x: has the shape"),
    ([[[1, -1, 1]]], "x: has the shape"),
    ([[]], "x: has the shape"),
    ([["a", "b", "c"]], "x: "),
    ([[1, -1], [1]], "x: "),
]


@pytest.mark.parametrize(("x", "message"), BAD)
def test_patterns_that_are_none(x: object, message: str) -> None:
    memory = Hopfield().fit([[1, -1, 1]])
    for ask in (Hopfield().fit, Hopfield().partial_fit, memory.partial_fit, memory.predict, memory.energy, memory.step):
        with pytest.raises(InputError, match=message):
            ask(x)  # type: ignore[arg-type]


def test_settings_and_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"rule: is 'hebb'.*hebbian, storkey, pseudo-inverse"):
        Hopfield(rule="hebb")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="updates: is 'parallel'"):
        Hopfield(updates="parallel")  # type: ignore[arg-type]
    memory = Hopfield().fit([[1, -1, 1]])
    for wrong in ([[1, -1]], [[1, -1, 1, 1]]):
        with pytest.raises(InputError, match="x: has the shape"):
            memory.predict(wrong)
    with pytest.raises(InputError, match="x: has the shape"):
        memory.recall([[1, -1, 1]])
    with pytest.raises(InputError, match="y: has the shape"):
        memory.score([[1, -1, 1]], [[1, -1]])
    with pytest.raises(InputError, match=r"\(1, 2\), not \(patterns, 3\)"):
        memory.partial_fit([[1, -1]])
    for ask in (Hopfield().predict, Hopfield().energy, Hopfield().step, Hopfield().field, Hopfield().recall):
        with pytest.raises(InputError, match="learned nothing"):
            ask([[1, -1, 1]])


def test_what_is_stored_already_counts() -> None:
    memory = Hopfield(rule="pseudo-inverse").fit([[1, -1, 1], [1, 1, 1]])
    message = "x: holds 3 independent patterns with those that are stored, too many for 3 units"
    with pytest.raises(InputError, match=message):
        memory.partial_fit([[1, 1, -1]])
    assert len(memory.patterns_) == 2
