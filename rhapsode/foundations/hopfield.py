"""Hopfield networks: a memory whose valleys are what was stored in it (Hopfield 1982).

    memory = Hopfield(rule="pseudo-inverse").fit(patterns)
    restored = memory.predict(damaged)

`rhapsode foundations hopfield` shows them; how much they hold is in `hopfield_capacity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.foundations.estimator import Bar, Estimator, check_array, check_choice

Numbers = npt.NDArray[np.float64]
Rule = Literal["hebbian", "storkey", "pseudo-inverse"]
Updates = Literal["asynchronous", "synchronous"]


@dataclass(frozen=True)
class Recall:
    """What one state became, update by update."""

    states: Numbers
    """(updates + 1, units): the start, and what came after each flip of one unit, or after each update of all."""
    energies: Numbers
    """(updates + 1,): the energy of each."""
    end: Literal["fixed point", "two-cycle"]
    """Whether the last state stays as it is; else it and the one before follow each other for ever."""


class Hopfield(Estimator):
    """Units of -1 and +1, each connected with all others by symmetric weights w and with itself by none.

    A unit takes the sign of its field h_i = sum_j w_ij s_j, and stays as it is where that is zero. The energy
    E = -1/2 sum_ij w_ij s_i s_j then falls by 2 |h_i| with each unit that flips alone, so that every asynchronous run
    ends in a valley. All units at once end in a fixed point or in two states that follow each other (Goles-Chacc et al.
    1985, "Decreasing energy functions as a tool for studying threshold networks").

    A field within what rounding makes of zero counts as zero; neither property suffers, for it is what a small weight
    of each unit to itself would do.

    Args:
        rule: how patterns x become weights, of N units:
            hebbian: w += x x^T / N. Its errors are those of random sums: exact recall ends at N / (4 ln N) random
            patterns (McEliece et al. 1987), any recall near 0.138 N (Amit, Gutfreund and Sompolinsky 1985).
            storkey: w_ij += (x_i x_j - x_i h_ji - h_ij x_j) / N, where h_ij is the field of unit i without j. Local and
            incremental like Hebb's, with room for about N / sqrt(2 ln N) (Storkey 1997).
            pseudo-inverse: the projection on all that the patterns span, without its diagonal. Up to N - 1 independent
            patterns are exact fixed points, however alike they are (Personnaz, Guyon and Dreyfus 1985; without the
            diagonal, which makes valleys wider: Kanter and Sompolinsky 1987).
        updates: one unit at a time, in a new random order for each sweep over all of them, or all at once.
        seed: of those orders.

    Attributes:
        weights_: (units, units), symmetric, zero on the diagonal.
        patterns_: (patterns, units), what was stored, in order.
    """

    learned: ClassVar[tuple[str, ...]] = ("weights_", "patterns_")

    def __init__(self, *, rule: Rule = "hebbian", updates: Updates = "asynchronous", seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.rule: Rule = check_choice("rule", rule, get_args(Rule))
        self.updates: Updates = check_choice("updates", updates, get_args(Updates))

    def fit(self, x: npt.ArrayLike, y: None = None) -> Self:
        """Forget everything and store the patterns x (patterns, units) of -1 and +1.

        Raises:
            InputError: x is not that, or has as many independent patterns as units and the rule is pseudo-inverse.
        """
        x = check_array("x", x, ("patterns", "units"), "signs")
        return self._store(np.zeros((x.shape[1], x.shape[1])), x[:0], x)

    def partial_fit(self, x: npt.ArrayLike, y: None = None) -> Self:
        """Store the patterns x (patterns, units) besides those that are stored already; errors as in `fit`."""
        if not self.fitted:
            return self.fit(x)
        return self._store(self.weights_, self.patterns_, self._checked(x, "patterns"))

    def field(self, x: npt.ArrayLike) -> Numbers:
        """What each unit of the states x (states, units) receives from the others: x w, of the same shape."""
        fields: Numbers = self._checked(x) @ self.weights_
        return fields

    def energy(self, x: npt.ArrayLike) -> Numbers:
        """-1/2 s^T w s of each state s in x (states, units): (states,)."""
        states = self._checked(x)
        return _energies(self.weights_, states)

    def step(self, x: npt.ArrayLike) -> Numbers:
        """The states x (states, units) after one update of all units at once."""
        return self._updated(self._checked(x), self._rounding())

    def predict(self, x: npt.ArrayLike) -> Numbers:
        """The states (states, units) in which the network comes to rest from x (states, units).

        Of a two-cycle it is the state that was reached last. All rows see the same orders of units: what becomes of
        one does not depend on which others are there.
        """
        x = self._checked(x)
        if self.updates == "synchronous":
            return self._rested(x)
        rounding, rested = self._rounding(), x.copy()
        with Bar("recalling", len(x), "states") as bar:
            for state in rested:
                for _ in self._flips(state, rounding):
                    pass
                bar.advance()
        return rested

    def recall(self, x: npt.ArrayLike) -> Recall:
        """What becomes of one state x (units,), with every state on the way."""
        self.check_fitted()
        state = check_array("x", x, (len(self.weights_),), "signs").astype(np.float64)
        rounding, states, cycle = self._rounding(), [state.copy()], False
        if self.updates == "asynchronous":
            states += [state.copy() for _ in self._flips(state, rounding)]
        else:
            while True:
                after = self._updated(states[-1][None], rounding)[0]
                if np.array_equal(after, states[-1]):
                    break
                cycle = len(states) > 1 and np.array_equal(after, states[-2])
                states.append(after)
                if cycle:
                    break
        path = np.stack(states)  # (updates + 1, units)
        return Recall(path, _energies(self.weights_, path), "two-cycle" if cycle else "fixed point")

    def score(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """The mean overlap of what x (states, units) comes to rest in with y: 1 is every unit, 0 is half of them."""
        rested = self.predict(x)
        return float(np.mean(rested * check_array("y", y, rested.shape, "signs")))

    def _checked(self, x: npt.ArrayLike, what: str = "states") -> Numbers:
        self.check_fitted()
        return check_array("x", x, (what, len(self.weights_)), "signs").astype(np.float64)

    def _store(self, weights: Numbers, stored: Numbers, x: Numbers) -> Self:
        patterns = np.concatenate([stored, x]).astype(np.float64)
        weights = RULES[self.rule](weights, patterns, len(stored))
        np.fill_diagonal(weights, 0.0)
        # Symmetric to the last bit, on which the falling energy stands; a matrix product promises no such thing.
        self.weights_, self.patterns_ = (weights + weights.T) / 2, patterns
        return self

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.patterns_ = check_array("patterns_", self.patterns_, ("patterns", "units"), "signs").astype(np.float64)
        units = self.patterns_.shape[1]
        self.weights_ = check_array("weights_", self.weights_, (units, units)).astype(np.float64)
        if np.diagonal(self.weights_).any() or not np.array_equal(self.weights_, self.weights_.T):
            raise InputError("is not symmetric with a diagonal of zeros", where="weights_")

    def _rounding(self) -> float:
        """Fields up to here may be nothing but rounding: that of a sum of as many terms, and of as many flips."""
        units = len(self.weights_)
        return float(4 * units * np.finfo(np.float64).eps * np.abs(self.weights_).sum(axis=1).max())

    def _updated(self, x: Numbers, rounding: float) -> Numbers:
        fields = x @ self.weights_  # (states, units)
        return np.where(fields * x < -rounding, -x, x)

    def _rested(self, x: Numbers) -> Numbers:
        """Where the states x (states, units) end with all units at once."""
        rounding, rested = self._rounding(), x.copy()
        moving, before = np.arange(len(x)), np.zeros_like(x)
        while len(moving):
            now = rested[moving]
            after = self._updated(now, rounding)
            rested[moving] = after
            goes_on = (after != now).any(axis=1) & (after != before).any(axis=1)
            moving, before = moving[goes_on], now[goes_on]
        return rested

    def _flips(self, state: Numbers, rounding: float) -> Iterator[int]:
        """Flip units of `state` (units,), in place and one at a time, until none wants to; each is named."""
        field, flips = self.weights_ @ state, 0
        for sweep in count():
            before = flips
            for unit in self.random("hopfield", sweep).permutation(len(state)).tolist():
                if field[unit] * state[unit] < -rounding:
                    state[unit] = -state[unit]
                    field += (2 * state[unit]) * self.weights_[unit]
                    flips += 1
                    yield unit
            if flips == before:
                return
            if flips > len(state):  # as many as `rounding` allows for
                field, flips = self.weights_ @ state, 0


def _energies(weights: Numbers, states: Numbers) -> Numbers:
    energies: Numbers = -0.5 * np.einsum("si,si->s", states @ weights, states)
    return energies


def _hebbian(weights: Numbers, patterns: Numbers, stored: int) -> Numbers:
    new = patterns[stored:]
    return weights + new.T @ new / len(weights)


def _storkey(weights: Numbers, patterns: Numbers, stored: int) -> Numbers:
    units, weights = len(weights), weights.copy()
    with Bar("storing", len(patterns) - stored, "patterns") as bar:
        for pattern in patterns[stored:]:
            # h_ij leaves out j (and i, whose weight to itself is zero): h_ij x_j = h_i x_j - w_ij, as x_j^2 = 1.
            crossed = np.outer(weights @ pattern, pattern)  # (units, units)
            weights += (np.outer(pattern, pattern) - (crossed + crossed.T) + 2 * weights) / units
            np.fill_diagonal(weights, 0.0)
            bar.advance()
    return weights


def _pseudo_inverse(weights: Numbers, patterns: Numbers, stored: int) -> Numbers:
    units = len(weights)
    _, sizes, directions = np.linalg.svd(patterns, full_matrices=False)
    independent = int(np.count_nonzero(sizes > sizes[0] * max(patterns.shape) * np.finfo(np.float64).eps))
    if independent >= units:
        patterns_there = f"{independent} independent patterns{' with those that are stored' if stored else ''}"
        raise InputError(
            f"holds {patterns_there}, too many for {units} units by the pseudo-inverse rule",
            where="x",
            todo=f"Store at most {units - 1}: with as many as units every state would be one.",
        )
    directions = directions[:independent]  # (independent, units), orthonormal
    projection: Numbers = directions.T @ directions
    return projection


RULES: dict[Rule, Callable[[Numbers, Numbers, int], Numbers]] = {
    "hebbian": _hebbian,
    "storkey": _storkey,
    "pseudo-inverse": _pseudo_inverse,
}
"""Each gives the weights of `patterns` from the weights of the first `stored` of them; the diagonal does not count."""
