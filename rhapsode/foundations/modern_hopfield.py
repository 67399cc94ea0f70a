"""Modern Hopfield networks: continuous memories whose update is one step of attention (Ramsauer et al. 2021).

    memory = ModernHopfield(beta=1.0).fit(patterns)
    restored = memory.predict(damaged)

`rhapsode foundations attention` walks from here to the transformer block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.foundations.estimator import Estimator, check_array, check_number
from rhapsode.foundations.layers import softmax

Numbers = npt.NDArray[np.floating[Any]]


class ModernHopfield(Estimator):
    """A memory of patterns of real numbers, each with a value; it holds exponentially many in their number of units.

    A query q becomes the mean of the patterns, each weighted by how well it fits:

        q' = sum_m softmax_m(beta x_m . q) x_m

    which is attention with the patterns as keys and values and beta as the scale of the scores ("Hopfield Networks is
    All You Need", equations 3 and 10). No update raises the energy

        E = -1/beta ln sum_m exp(beta x_m . q) + 1/2 |q|^2 + 1/beta ln patterns + 1/2 max_m |x_m|^2  (equation 2)

    The larger beta, the more of the weight is on the best pattern alone; with a small one, q' is a mean of many. A
    pattern that stands apart from the others is found in one update (theorem 4).

    Args:
        beta: the inverse temperature; 1 / sqrt(units) in attention.
        updates: how often a query is updated.
        seed: of nothing here; every estimator has one.

    Attributes:
        patterns_: (patterns, units).
        values_: (patterns, width); the patterns themselves if no others were given.
    """

    learned: ClassVar[tuple[str, ...]] = ("patterns_", "values_")

    def __init__(self, *, beta: float = 1.0, updates: int = 1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.beta: float = check_number("beta", beta, above=0)
        self.updates: int = check_number("updates", updates, least=1, whole=True)

    def fit(self, x: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Self:
        """Forget everything and store the patterns x (patterns, units).

        Args:
            y: (patterns, width), what is read where a pattern is found: attention's values. None: the pattern.

        Raises:
            InputError: x or y is of another shape, or holds a value that is not finite.
        """
        patterns = check_array("x", x, ("patterns", "units"), "moderate")
        values = patterns if y is None else check_array("y", y, (len(patterns), "width"), "moderate")
        self.patterns_, self.values_ = patterns, values
        return self

    def partial_fit(self, x: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Self:
        """Store the patterns x (patterns, units) besides those that are stored already; errors as in `fit`."""
        if not self.fitted:
            return self.fit(x, y)
        patterns = self._checked(x, "patterns")
        values = check_array("y", patterns if y is None else y, (len(patterns), self.values_.shape[1]), "moderate")
        self.patterns_ = np.concatenate([self.patterns_, patterns])
        self.values_ = np.concatenate([self.values_, values])
        return self

    def transform(self, x: npt.ArrayLike) -> Numbers:
        """softmax(beta x patterns^T) of the queries x (queries, units): weights (queries, patterns), of sum 1."""
        return self._weights(self._checked(x))

    def step(self, x: npt.ArrayLike) -> Numbers:
        """The queries x (queries, units) after one update."""
        return self._weights(self._checked(x)) @ self.patterns_

    def predict(self, x: npt.ArrayLike) -> Numbers:
        """What is read for the queries x (queries, units) at their last update: (queries, width)."""
        x = self._checked(x)
        for _ in range(self.updates - 1):
            x = self._weights(x) @ self.patterns_
        return self._weights(x) @ self.values_

    def energy(self, x: npt.ArrayLike) -> Numbers:
        """The energy of each query of x (queries, units), from 0 to 2 max |pattern|^2 among their means: (queries,)."""
        x = self._checked(x)
        scores = self._scores(x)  # (queries, patterns)
        best = scores.max(axis=1)
        fit = best + np.log(np.exp(scores - best[:, None]).mean(axis=1))  # (queries,), ln of the mean of exp(scores)
        largest = np.square(self.patterns_).sum(axis=1).max()
        return np.asarray(0.5 * np.square(x).sum(axis=1) - fit / self.beta + 0.5 * largest)

    def score(self, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """The mean cosine between what is read for x (queries, units) and y (queries, width): 1 where all is found."""
        found = self.predict(x)
        wanted = check_array("y", y, found.shape, "moderate")
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        return float(np.mean((found * wanted).sum(axis=1) / np.maximum(lengths, np.finfo(lengths.dtype).tiny)))

    def _checked(self, x: npt.ArrayLike, what: str = "queries") -> Numbers:
        self.check_fitted()
        return check_array("x", x, (what, self.patterns_.shape[1]), "moderate")

    def _scores(self, x: Numbers) -> Numbers:
        with np.errstate(over="ignore", invalid="ignore"):
            scores: Numbers = self.beta * x @ self.patterns_.T  # (queries, patterns)
        if not np.isfinite(scores).all():
            raise InputError("is too large for numbers of this size", where="beta", todo="Make it smaller.")
        return scores

    def _weights(self, x: Numbers) -> Numbers:
        return softmax(self._scores(x))  # (queries, patterns)

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.patterns_ = check_array("patterns_", self.patterns_, ("patterns", "units"), "moderate")
        self.values_ = check_array("values_", self.values_, (len(self.patterns_), "width"), "moderate")
