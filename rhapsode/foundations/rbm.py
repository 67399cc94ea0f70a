"""The restricted Boltzmann machine: visible and hidden units, connected across and not among themselves.

    rhapsode foundations rbm

Energy of visible v and hidden h, where visible units are binary, and where they are Gaussian with variances s:

    E(v, h) = -b.v - c.h - v.W h
    E(v, h) = sum_i (v_i - b_i)^2 / (2 s_i)  -  c.h  -  (v / s).W h

All units of a layer can be drawn at once, for they know of each other through the other layer only. Sources:
Smolensky, "Information processing in dynamical systems: foundations of harmony theory" (1986); Hinton, "Training
products of experts by minimizing contrastive divergence", Neural Computation 14 (2002); Tieleman, "Training
restricted Boltzmann machines using approximations to the likelihood gradient", ICML 2008; for Gaussian units Cho,
Ilin, Raiko, "Improved learning of Gaussian-Bernoulli restricted Boltzmann machines", ICANN 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError, NotFiniteError, shown
from rhapsode.foundations.binary_units import (
    check_enumerable,
    draw,
    linear_table,
    log_sum_exp,
    quadratic_table,
    softplus,
)
from rhapsode.foundations.estimator import Array, Bar, Estimator, check_array, check_choice, check_number
from rhapsode.foundations.layers import sigmoid

LEAST_CHANCE = 0.01
"""First visible biases give each unit the mean it has in the data; a mean of 0 or 1 would ask for an infinite one."""
FIRST_VARIANCE = 0.25
"""Of Gaussian visible units, as a share of that in the data. All of it would leave hidden units nothing to explain."""
VARIANCE_RATE = 0.1
"""Variances learn so many times as fast as the rest: they are to end as what hidden units leave, not to be first."""


class Slope(NamedTuple):
    """Derivatives by the parameters of a mean over examples."""

    weights: Array
    """(visible, hidden)"""
    visible_biases: Array
    hidden_biases: Array
    log_variances: Array | None
    """(visible,), where visible units are Gaussian."""


class RestrictedBoltzmannMachine(Estimator):
    """A restricted Boltzmann machine, trained by contrastive divergence (CD-k), or by persistent chains (PCD-k).

    Args:
        hidden: how many hidden units it has.
        visible: "binary": what it learns lies between 0 and 1, and a number between is taken as a probability.
            "gaussian": it is any number; the variance of each unit around its mean is learned too.
        learning_rate: how far an update goes along the gradient; it falls linearly to zero during `fit`.
        epochs: passes of `fit` over all examples.
        batch_size: examples for one update.
        steps: k, the steps of Gibbs sampling from which the second phase of an update is taken.
        persistent: the steps go on from where the last update left the chains, of which there are `batch_size`
            (Tieleman 2008). If false they begin at the examples, whose neighbourhood they know best (Hinton 2002).
        seed: of all random numbers.

    Attributes:
        weights_: (visible, hidden) float32.
        visible_biases_: (visible,) float32.
        hidden_biases_: (hidden,) float32.
        variances_: (visible,) float32; ones where visible units are binary.
        chains_: (batch_size, hidden) float32, the hidden states of the persistent chains.
        passes_: over the data, so far.
    """

    learned: ClassVar[tuple[str, ...]] = (
        "weights_",
        "visible_biases_",
        "hidden_biases_",
        "variances_",
        "chains_",
        "passes_",
    )

    weights_: Array
    visible_biases_: Array
    hidden_biases_: Array
    variances_: Array
    chains_: Array
    passes_: int

    def __init__(
        self,
        *,
        hidden: int = 100,
        visible: Literal["binary", "gaussian"] = "binary",
        learning_rate: float = 0.1,
        epochs: int = 10,
        batch_size: int = 10,
        steps: int = 1,
        persistent: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.hidden = check_number("hidden", hidden, least=1, whole=True)
        self.visible = check_choice("visible", visible, ("binary", "gaussian"))
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.epochs = check_number("epochs", epochs, least=1, whole=True)
        self.batch_size = check_number("batch_size", batch_size, least=1, whole=True)
        self.steps = check_number("steps", steps, least=1, whole=True)
        if not isinstance(persistent, bool):
            raise InputError(f"is {shown(persistent)}", where="persistent", todo="Choose True or False.")
        self.persistent = persistent

    def fit(self, x: npt.ArrayLike, y: None = None) -> Self:
        """Learn the distribution of the rows of `x` from the beginning.

        Args:
            x: (examples, visible).
            y: not used.

        Raises:
            InputError: `x` holds what the visible units cannot be.
            NotFiniteError: the learning rate is too large.
        """
        examples = self.check_examples(x, new=True)
        self._begin(examples)
        with Bar("learning", total=self.epochs, unit="passes") as bar:
            for epoch in range(self.epochs):
                first, last = (self.learning_rate * (1 - when / self.epochs) for when in (epoch, epoch + 1))
                self._pass(examples, first, last)
                bar.advance()
        return self

    def partial_fit(self, x: npt.ArrayLike, y: None = None) -> Self:
        """One pass over the rows of `x` at the full learning rate; the first call begins.

        Raises:
            InputError: as `fit`, or another number of visible units than before.
        """
        examples = self.check_examples(x, new=not self.fitted)
        if not self.fitted:
            self._begin(examples)
        self._pass(examples, self.learning_rate, self.learning_rate)
        return self

    def transform(self, x: npt.ArrayLike) -> Array:
        """(examples, hidden): the probability of each hidden unit to be 1 when a row holds the visible ones."""
        return self._hidden_chances(self.check_examples(x))

    def inverse_transform(self, h: npt.ArrayLike) -> Array:
        """(examples, visible): the mean of the visible units given hidden ones, or their chances (examples, hidden)."""
        self.check_fitted()
        return self._visible_means(check_array("h", h, ("examples", self.hidden), "unit"))

    def reconstruct(self, x: npt.ArrayLike) -> Array:
        """(examples, visible): `inverse_transform` of `transform`."""
        return self.inverse_transform(self.transform(x))

    def free_energy(self, x: npt.ArrayLike) -> Array:
        """(examples,): F(v) = -log sum_h exp(-E(v, h)), so that p(v) = exp(-F(v)) / Z."""
        v = self.check_examples(x).astype(float)
        result: Array = -self._visible_term(v) - softplus(self._hidden_inputs(v)).sum(axis=1)
        return result

    def log_partition(self) -> float:
        """log Z, summed over all states of the smaller layer; the other is summed by formula.

        Raises:
            InputError: the layer has too many units; `ais.estimate_log_partition` estimates.
        """
        self.check_fitted()
        weights, visible, hidden = (
            array.astype(float) for array in (self.weights_, self.visible_biases_, self.hidden_biases_)
        )
        if self.visible == "gaussian":
            # the integral over v leaves a Boltzmann machine of the hidden units
            check_enumerable(len(hidden), "hidden units")
            variances = self.variances_.astype(float)
            precise = weights / variances[:, None]
            pairs = weights.T @ precise
            biases = hidden + visible @ precise + 0.5 * pairs.diagonal()
            pairs = pairs - np.diag(pairs.diagonal())
            return float(log_sum_exp(quadratic_table(pairs, biases)) + 0.5 * np.log(2 * math.pi * variances).sum())
        if len(visible) < len(hidden):
            weights, visible, hidden = weights.T, hidden, visible
        check_enumerable(len(hidden), "units in the smaller layer")
        table = linear_table(hidden)
        for row, bias in zip(weights, visible, strict=True):
            table += softplus(linear_table(row, bias))
        return float(log_sum_exp(table))

    def log_likelihood(self, x: npt.ArrayLike, *, log_partition: float | None = None) -> Array:
        """(examples,): the log-probability of each row in nats (of a density where visible units are Gaussian).

        Args:
            x: (examples, visible).
            log_partition: log Z; if not given it is summed exactly.

        Raises:
            InputError: there are too many units for the sum; give the estimate of `ais.estimate_log_partition`.
        """
        energies = self.free_energy(x)
        if log_partition is None:
            return -energies - self.log_partition()
        return -energies - float(check_number("log_partition", log_partition))

    def score(self, x: npt.ArrayLike, y: None = None, *, log_partition: float | None = None) -> float:
        """The mean of `log_likelihood`, in nats; higher is better."""
        return float(self.log_likelihood(x, log_partition=log_partition).mean())

    def sampled_gradient(self, x: npt.ArrayLike, *, seed: int | None = None) -> Slope:
        """The derivatives as one update estimates them from the rows of `x` as one batch.

        Where `persistent`, the chains go on from where they are, and stay there.
        """
        examples = self.check_examples(x).astype(np.float32)
        slope, _ = self._slope(examples, self.random("rbm gradient", seed=seed))
        return slope

    def gibbs(self, x: npt.ArrayLike, steps: int, *, seed: int | None = None) -> tuple[Array, Array]:
        """`steps` steps of Gibbs sampling from each row of `x` (examples, visible).

        Args:
            seed: of this sampling, if not the machine's.

        Returns:
            The visible states at the end, and the means that they were drawn with: both (examples, visible). Means make
            the smoother pictures.
        """
        v = self.check_examples(x)
        check_number("steps", steps, least=1, whole=True)
        random = self.random("rbm gibbs", seed=seed)
        for _ in range(steps):
            means = self._visible_means(draw(self._hidden_chances(v), random))
            v = self._around(means, random)
        return v, means

    def sample(self, count: int, *, steps: int = 1000, seed: int | None = None) -> tuple[Array, Array]:
        """What `gibbs` gives after `steps` steps from `count` states drawn by the visible biases alone."""
        self.check_fitted()
        check_number("count", count, least=1, whole=True)
        random = self.random("rbm start", seed=seed)
        v = self._around(self._visible_means(np.zeros((count, self.hidden), dtype=np.float32)), random)
        return self.gibbs(v, steps, seed=seed)

    def _begin(self, examples: Array) -> None:
        visible = examples.shape[1]
        biases, variances = first_visible(examples, self.visible)
        # inputs of about one: from smaller weights hidden units only take longer to become different
        spread = np.sqrt(variances / (visible + self.hidden))[:, None]
        weights = spread * self.random("rbm weights").normal(size=(visible, self.hidden))
        if self.visible == "gaussian":
            variances *= FIRST_VARIANCE
        self.weights_, self.visible_biases_ = weights.astype(np.float32), biases.astype(np.float32)
        self.variances_ = variances.astype(np.float32)
        self.hidden_biases_ = np.zeros(self.hidden, dtype=np.float32)
        self.chains_ = np.zeros((self.batch_size, self.hidden), dtype=np.float32)
        self.passes_ = 0

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.visible_biases_ = check_array("visible_biases_", self.visible_biases_, ("visible",)).astype(np.float32)
        visible = len(self.visible_biases_)
        self.weights_ = check_array("weights_", self.weights_, (visible, self.hidden)).astype(np.float32)
        self.hidden_biases_ = check_array("hidden_biases_", self.hidden_biases_, (self.hidden,)).astype(np.float32)
        self.variances_ = check_array("variances_", self.variances_, (visible,)).astype(np.float32)
        if (self.variances_ <= 0).any():
            raise InputError("are not above zero", where="variances_")
        chains = check_array("chains_", self.chains_, (self.batch_size, self.hidden), "binary")
        self.chains_ = chains.astype(np.float32)
        check_number("passes_", self.passes_, least=0, whole=True)

    def check_examples(self, x: npt.ArrayLike, *, new: bool = False) -> Array:
        """`x` as an array, if it is what the visible units can be.

        Raises:
            InputError: it is not.
        """
        if not new:
            self.check_fitted()
        width = "visible" if new else len(self.visible_biases_)
        return check_array("x", x, ("examples", width), "unit" if self.visible == "binary" else "moderate")

    def _pass(self, examples: Array, first_rate: float, last_rate: float) -> None:
        """One pass over all examples, in an order of its own; the learning rate goes from the first to the last."""
        random, kept = self.random("rbm pass", self.passes_), deepcopy(self._state())
        shuffled = examples[random.permutation(len(examples))].astype(np.float32)
        batches = np.array_split(shuffled, math.ceil(len(examples) / self.batch_size))
        with np.errstate(all="ignore"):
            for number, batch in enumerate(batches):
                slope, chains = self._slope(batch, random)
                self._go(slope, first_rate + (last_rate - first_rate) * number / len(batches))
                if self.persistent:
                    self.chains_ = chains
        self.passes_ += 1
        if not (np.isfinite(self.weights_).all() and np.isfinite(self.variances_).all() and self.variances_.all()):
            where = f"pass {self.passes_}"
            self.__dict__ |= kept
            raise NotFiniteError("the weights are no numbers any more", where=where, todo="Lower the learning rate.")

    def _slope(self, v: Array, random: np.random.Generator) -> tuple[Slope, Array]:
        """The derivatives from one batch, and the hidden states that persistent chains have now."""
        states = self.chains_ if self.persistent else draw(self._hidden_chances(v), random)
        dreamt = self._around(self._visible_means(states), random)
        for _ in range(self.steps - 1):
            states = draw(self._hidden_chances(dreamt), random)
            dreamt = self._around(self._visible_means(states), random)
        # both phases at once: what was dreamt counts against what was given
        both, shares = np.concatenate([v, dreamt]), np.empty(len(v) + len(dreamt), dtype=np.float32)
        shares[: len(v)], shares[len(v) :] = 1 / len(v), -1 / len(dreamt)
        h = self._hidden_chances(both)
        if self.persistent:
            states = draw(h[len(v) :], random)
        return self._derivatives(both, h, shares), states

    def _derivatives(self, v: Array, h: Array, shares: Array) -> Slope:
        """Those of the sum over rows of share times -F(v), given the hidden chances of each row."""
        weights, visible, hidden = (v * shares[:, None]).T @ h, shares @ v, shares @ h
        if self.visible == "binary":
            return Slope(weights, visible, hidden, None)
        far = shares @ (0.5 * (v - self.visible_biases_) ** 2)
        log_variances = (far - (weights * self.weights_).sum(axis=1)) / self.variances_
        visible = (visible - shares.sum() * self.visible_biases_) / self.variances_
        return Slope(weights / self.variances_[:, None], visible, hidden, log_variances)

    def _go(self, slope: Slope, rate: float) -> None:
        weights, visible = slope.weights, slope.visible_biases
        if slope.log_variances is not None:
            # times the variances: so it does not matter in what unit the data is measured
            weights, visible = weights * self.variances_[:, None], visible * self.variances_
            self.variances_ *= np.exp(VARIANCE_RATE * rate * slope.log_variances)
        self.weights_ += rate * weights
        self.visible_biases_ += rate * visible
        self.hidden_biases_ += rate * slope.hidden_biases

    def _hidden_inputs(self, v: Array) -> Array:
        inputs: Array = (v / self.variances_ if self.visible == "gaussian" else v) @ self.weights_
        inputs += self.hidden_biases_
        return inputs

    def _hidden_chances(self, v: Array) -> Array:
        return sigmoid(self._hidden_inputs(v))

    def _visible_means(self, h: Array) -> Array:
        inputs: Array = h @ self.weights_.T
        inputs += self.visible_biases_
        return inputs if self.visible == "gaussian" else sigmoid(inputs)

    def _around(self, means: Array, random: np.random.Generator) -> Array:
        """Visible states that have these means."""
        if self.visible == "gaussian":
            noise = random.standard_normal(means.shape, dtype=means.dtype)
            return means + noise * np.sqrt(self.variances_)
        return draw(means, random)

    def _visible_term(self, v: Array) -> Array:
        """(rows,): the part of -E that is of the visible units alone."""
        if self.visible == "gaussian":
            result: Array = -((v - self.visible_biases_) ** 2 / (2 * self.variances_)).sum(axis=1)
            return result
        alone: Array = v @ self.visible_biases_
        return alone


def first_visible(examples: Array, visible: Literal["binary", "gaussian"]) -> tuple[Array, Array]:
    """The biases and variances (visible,) that fit `examples` (examples, visible) without any hidden unit."""
    means = examples.mean(axis=0, dtype=float)
    if visible == "gaussian":
        variances = examples.var(axis=0, dtype=float)
        return means, np.where(variances > 0, variances, 1.0)
    means = means.clip(LEAST_CHANCE, 1 - LEAST_CHANCE)
    return np.log(means / (1 - means)), np.ones(len(means))
