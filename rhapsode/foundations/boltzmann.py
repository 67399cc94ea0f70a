"""The Boltzmann machine: binary units that each follow the others by chance, and learn a distribution by dreaming.

    rhapsode foundations boltzmann

A state s of the units (0 or 1) has the energy E(s) = -1/2 s.W s - b.s and the probability exp(-E(s)) / Z. Some units
are visible, the others hidden. Learning compares two phases: how often two units are on together while the data holds
the visible ones (awake), and while nothing holds them (dreaming):

    d log p(data) / d w_ij  =  <s_i s_j> awake  -  <s_i s_j> dreaming

Source: Ackley, Hinton, Sejnowski, "A learning algorithm for Boltzmann machines", Cognitive Science 9 (1985). A bias
is a weight to a unit that is always on: s_i s_i = s_i, so it stands on the diagonal of the same matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError, shown
from rhapsode.foundations.binary_units import (
    check_enumerable,
    correlations,
    log_sum_exp,
    numbers_of,
    quadratic_table,
)
from rhapsode.foundations.estimator import Array, Bar, Estimator, check_array, check_choice, check_number


class BoltzmannMachine(Estimator):
    """A Boltzmann machine, every unit of which is connected with every other.

    Args:
        hidden: how many hidden units it has beside the visible ones. Without, it learns pairs of units only.
        learning_rate: how far an update goes along the gradient of the mean log-likelihood; it falls linearly to zero
            during `fit`.
        epochs: updates of `fit`, each over all examples.
        phases: "sampled": the two phases are estimated by Gibbs sampling. "exact": they are summed over all states, for
            at most 20 units.
        chains: machines that dream side by side, where phases are sampled.
        sweeps: sweeps through all units, for each phase of each update; both units of a pair are counted after each.
        annealing: temperatures, falling to 1. Before each phase the free units start at random and pass through them, a
            sweep at each, as in the paper. Empty: dreams go on where the last update left them, as in Tieleman 2008.
        first_weights: the spread of weights before the first update. Hidden units have to start out different; where
            no pair of visible units says anything, as in parity, they have to be very different to learn soon.
        seed: of all random numbers.

    Attributes:
        weights_: (units, units), symmetric with a zero diagonal; the visible units come first.
        biases_: (units,)
        dreams_: (chains, units), what the chains dream now.
        updates_: how many there were.
    """

    learned: ClassVar[tuple[str, ...]] = ("weights_", "biases_", "dreams_", "updates_")

    weights_: Array
    biases_: Array
    dreams_: Array
    updates_: int

    def __init__(
        self,
        *,
        hidden: int = 0,
        learning_rate: float = 0.1,
        epochs: int = 1000,
        phases: Literal["sampled", "exact"] = "sampled",
        chains: int = 100,
        sweeps: int = 5,
        annealing: Sequence[float] = (),
        first_weights: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.hidden = check_number("hidden", hidden, least=0, whole=True)
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.epochs = check_number("epochs", epochs, least=1, whole=True)
        self.phases = check_choice("phases", phases, ("sampled", "exact"))
        self.chains = check_number("chains", chains, least=1, whole=True)
        self.sweeps = check_number("sweeps", sweeps, least=1, whole=True)
        if not isinstance(annealing, Iterable):
            raise InputError(f"is {shown(annealing)} and no list of temperatures", where="annealing")
        self.annealing = [check_number("annealing", temperature, above=0) for temperature in annealing]
        self.first_weights = check_number("first_weights", first_weights, least=0)

    @classmethod
    def with_weights(cls, weights: npt.ArrayLike, biases: npt.ArrayLike, **settings: Any) -> Self:
        """A machine that has these weights already.

        Args:
            weights: (units, units), symmetric with a zero diagonal; the visible units come first.
            biases: (units,)
            settings: as in `__init__`.

        Raises:
            InputError: shapes or symmetry are not so.
        """
        machine = cls(**settings)
        given = check_array("biases", biases, ("units",), "moderate")
        machine._set(check_array("weights", weights, (len(given), len(given)), "moderate"), given)
        machine._restart()
        return machine

    @property
    def units(self) -> int:
        """How many units there are, visible and hidden."""
        self.check_fitted()
        return len(self.biases_)

    @property
    def visible(self) -> int:
        """How many of them are visible."""
        visible: int = self.units - self.hidden
        return visible

    def fit(self, x: npt.ArrayLike, y: None = None) -> Self:
        """Learn the distribution of the rows of `x` from the beginning.

        Args:
            x: (examples, visible), each 0 or 1.
            y: not used.

        Raises:
            InputError: it is not binary, or there are too many units for exact phases.
        """
        patterns = check_array("x", x, ("examples", "visible"), "binary")
        self.begin(patterns.shape[1])
        with Bar("learning", total=self.epochs, unit="updates") as bar:
            for epoch in range(self.epochs):
                self._update(patterns, self.learning_rate * (1 - epoch / self.epochs))
                bar.advance()
        return self

    def partial_fit(self, x: npt.ArrayLike, y: None = None) -> Self:
        """One update from the rows of `x` at the full learning rate; the first call begins.

        Raises:
            InputError: as `fit`, or another number of visible units than before.
        """
        patterns = check_array("x", x, ("examples", self.visible if self.fitted else "visible"), "binary")
        if not self.fitted:
            self.begin(patterns.shape[1])
        self._update(patterns, self.learning_rate)
        return self

    def begin(self, visible: int) -> Self:
        """Small random weights for so many visible units, as before the first update.

        Raises:
            InputError: `visible` is no such number, or there are too many units for exact phases.
        """
        units = check_number("visible", visible, least=1, whole=True) + self.hidden
        if self.phases == "exact":
            check_enumerable(units, "units")
        upper = np.triu(self.random("boltzmann weights").normal(0, self.first_weights, (units, units)), 1)
        self._set(upper + upper.T, np.zeros(units))
        self._restart()
        return self

    def gradient(self, x: npt.ArrayLike) -> Array:
        """The two-phase rule, summed over all states: awake minus dreaming.

        Returns:
            (units, units): the derivative of the mean log-likelihood of the rows of `x` by each weight; on the diagonal
            by each bias.

        Raises:
            InputError: there are too many units.
        """
        patterns = self._check(x)
        table = self._table()
        conditional = table - log_sum_exp(table, axis=0)  # log p(hidden | visible)
        numbers, counts = np.unique(numbers_of(patterns), return_counts=True)
        awake = np.zeros_like(table)
        awake[:, numbers] = np.exp(conditional[:, numbers]) * (counts / len(patterns))
        dreaming = np.exp(table - log_sum_exp(table))
        return correlations(awake.ravel()) - correlations(dreaming.ravel())

    def sampled_gradient(self, x: npt.ArrayLike) -> Array:
        """The two-phase rule as `fit` estimates it when phases are sampled; `dreams_` go on.

        Returns:
            (units, units), as `gradient`; the same call gives the same numbers until there was an update.
        """
        return self._sampled_gradient(self._check(x))

    def energy(self, states: npt.ArrayLike) -> Array:
        """(states,): E(s) of whole states (states, units), hidden units last."""
        self.check_fitted()
        s = check_array("states", states, ("states", self.units), "binary")
        result: Array = -0.5 * np.einsum("si,ij,sj->s", s, self.weights_, s) - s @ self.biases_
        return result

    def log_partition(self) -> float:
        """log Z, summed over all states.

        Raises:
            InputError: there are too many units.
        """
        return float(log_sum_exp(self._table()))

    def distribution(self) -> Array:
        """(2^visible,): the exact probability of every visible state; bit i of the index is unit i.

        Raises:
            InputError: there are too many units.
        """
        marginal = log_sum_exp(self._table(), axis=0)
        result: Array = np.exp(marginal - log_sum_exp(marginal))
        return result

    def log_likelihood(self, x: npt.ArrayLike) -> Array:
        """(examples,): the exact log-probability of each row, in nats.

        Raises:
            InputError: it is not binary, or there are too many units.
        """
        patterns = self._check(x)
        marginal = log_sum_exp(self._table(), axis=0)
        result: Array = marginal[numbers_of(patterns)] - log_sum_exp(marginal)
        return result

    def score(self, x: npt.ArrayLike, y: None = None) -> float:
        """The mean of `log_likelihood`, in nats; higher is better."""
        return float(self.log_likelihood(x).mean())

    def transform(self, x: npt.ArrayLike) -> Array:
        """(examples, hidden): the exact probability of each hidden unit to be 1 when the row holds the visible ones.

        Raises:
            InputError: it is not binary, or there are too many units.
        """
        patterns = self._check(x)
        of_patterns = self._table()[:, numbers_of(patterns)]
        conditional = np.exp(of_patterns - log_sum_exp(of_patterns, axis=0))
        on = [conditional.reshape(-1, 2, 2**unit, len(patterns))[:, 1].sum(axis=(0, 1)) for unit in range(self.hidden)]
        return np.array(on).reshape(self.hidden, len(patterns)).T

    def gibbs(
        self,
        temperatures: npt.ArrayLike,
        *,
        chains: int = 1,
        start: npt.ArrayLike | None = None,
        clamped: npt.ArrayLike | None = None,
        seed: int | None = None,
    ) -> Array:
        """Gibbs sampling: a sweep draws every unit in turn, 1 with chance 1 / (1 + exp(-(W s + b)_i / temperature)).

        Args:
            temperatures: (sweeps,), one sweep at each: `np.ones(1000)` samples; a sequence that falls to zero is
                simulated annealing (Kirkpatrick, Gelatt, Vecchi 1983), which looks for a state of low energy.
            chains: side by side.
            start: (chains, units) to begin with; drawn at random if not given.
            clamped: (visible,) that the visible units are held at.
            seed: of this sampling, if not the machine's.

        Returns:
            (sweeps, chains, units) uint8: the states after each sweep.

        Raises:
            InputError: shapes or values are not so.
        """
        self.check_fitted()
        schedule = check_array("temperatures", temperatures, ("sweeps",))
        if (schedule < 0).any():
            raise InputError("holds a negative temperature", where="temperatures")
        random = self.random("boltzmann gibbs", seed=seed)
        if start is None:
            check_number("chains", chains, least=1, whole=True)
            current = random.integers(0, 2, (self.units, chains)).astype(float)
        else:
            current = check_array("start", start, ("chains", self.units), "binary").T.copy()
        free = range(self.units)
        if clamped is not None:
            current[: self.visible] = check_array("clamped", clamped, (self.visible,), "binary")[:, None]
            free = range(self.visible, self.units)
        seen = np.empty((len(schedule), current.shape[1], self.units), dtype=np.uint8)
        for sweep, states in enumerate(self._sweeps(current, schedule, free, random)):
            seen[sweep] = states.T
        return seen

    def sample(self, count: int, *, sweeps: int = 1000, seed: int | None = None) -> Array:
        """(count, visible) uint8: visible states of as many chains after `sweeps` sweeps from a random start."""
        self.check_fitted()
        check_number("count", count, least=1, whole=True)
        check_number("sweeps", sweeps, least=1, whole=True)
        random = self.random("boltzmann sample", seed=seed)
        current = random.integers(0, 2, (self.units, count)).astype(float)
        for _ in self._sweeps(current, np.ones(sweeps), range(self.units), random):
            pass
        return current[: self.visible].T.astype(np.uint8)

    def _set(self, weights: Array, biases: Array) -> None:
        if len(biases) <= self.hidden:
            raise InputError(f"{len(biases)} units, {self.hidden} of them hidden, leave none visible", where="biases")
        if not np.array_equal(weights, weights.T) or weights.diagonal().any():
            raise InputError("are not symmetric with a zero diagonal", where="weights")
        self.weights_, self.biases_ = weights.astype(float), biases.astype(float)

    def _restart(self) -> None:
        self.updates_ = 0
        self.dreams_ = self.random("boltzmann dreams").integers(0, 2, (self.chains, len(self.biases_))).astype(np.uint8)

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        biases = check_array("biases_", self.biases_, ("units",))
        self._set(check_array("weights_", self.weights_, (len(biases), len(biases))), biases)
        dreams = check_array("dreams_", self.dreams_, (self.chains, len(biases)), "binary")
        self.dreams_ = dreams.astype(np.uint8)
        check_number("updates_", self.updates_, least=0, whole=True)

    def _check(self, x: npt.ArrayLike) -> Array:
        self.check_fitted()
        return check_array("x", x, ("examples", self.visible), "binary")

    def _table(self) -> Array:
        """(2^hidden, 2^visible): -E of every state."""
        self.check_fitted()
        check_enumerable(self.units, "units")
        return quadratic_table(self.weights_, self.biases_).reshape(2**self.hidden, 2**self.visible)

    def _update(self, patterns: Array, rate: float) -> None:
        slope = self.gradient(patterns) if self.phases == "exact" else self._sampled_gradient(patterns)
        slope *= rate
        self.biases_ += slope.diagonal()
        np.fill_diagonal(slope, 0)
        self.weights_ += slope
        self.updates_ += 1

    def _sampled_gradient(self, patterns: Array) -> Array:
        random = self.random("boltzmann update", self.updates_)
        held = np.concatenate([patterns.T, random.integers(0, 2, (self.hidden, len(patterns)))])
        dreams = self.dreams_.T.astype(float)
        if self.annealing:
            dreams = random.integers(0, 2, dreams.shape).astype(float)
        awake = self._sampled_correlations(held, range(self.visible, self.units), random)
        dreaming = self._sampled_correlations(dreams, range(self.units), random)
        self.dreams_ = dreams.T.astype(np.uint8)
        return awake - dreaming

    def _sampled_correlations(self, states: Array, free: range, random: np.random.Generator) -> Array:
        """(units, units): how often both units of a pair are 1, over the sweeps at temperature 1; changes `states`."""
        sweeps = self.sweeps if len(free) else 1  # what is held altogether does not change from sweep to sweep
        total = np.zeros((self.units, self.units))
        for _ in self._sweeps(states, np.array(self.annealing), free, random):
            pass
        for _ in self._sweeps(states, np.ones(sweeps), free, random):
            total += states @ states.T
        correlations: Array = total / (sweeps * states.shape[1])
        return correlations

    def _sweeps(self, states: Array, temperatures: Array, free: range, random: np.random.Generator) -> Iterator[Array]:
        """Change `states` (units, chains) in place, one sweep through the `free` units at each temperature."""
        for temperature in temperatures:
            # logistic noise is above a field with the probability that the unit is 0: no exponential is needed
            noise = random.logistic(size=(len(free), states.shape[1])) * temperature
            for unit, threshold in zip(free, noise, strict=True):
                states[unit] = self.weights_[unit] @ states + self.biases_[unit] > threshold
            yield states
