"""Annealed importance sampling: the partition function of a restricted Boltzmann machine too large to sum over.

    log_partition = estimate_log_partition(rbm, x).log_partition
    rbm.score(x, log_partition=log_partition)

From a machine without connections, whose Z is known, through many between to the one that is asked about: at each the
chains take one step of Gibbs sampling, and the ratio of unnormalised probabilities of the next machine and this one
is multiplied into the weight of a chain. The mean weight is the ratio of the two partition functions, whatever the
number of machines between; more of them make the weights more alike. Sources: Neal, "Annealed importance sampling",
Statistics and Computing 11 (2001); Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks",
ICML 2008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rhapsode.foundations.binary_units import draw, log_sum_exp, softplus
from rhapsode.foundations.estimator import Array, Bar, check_number
from rhapsode.foundations.layers import sigmoid
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine, first_visible


@dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z."""

    log_partition: float
    """The logarithm of the mean weight, plus log Z of the machine without connections."""
    standard_error: float
    """That of `log_partition`: of the mean weight, as a share of it. Too small where few chains hold all the weight."""
    log_weights: Array
    """(chains,): how much each says; `log_partition` is the logarithm of the mean of their exponentials."""


def estimate_log_partition(
    rbm: RestrictedBoltzmannMachine,
    x: npt.ArrayLike | None = None,
    *,
    chains: int = 100,
    temperatures: int = 1000,
    seed: int = 0,
) -> LogPartition:
    """log Z of `rbm`, where summing over the states of its smaller layer would take too long.

    Machine k has the weights and hidden biases of `rbm` times k / temperatures; its visible biases go from those that
    fit the means of `x` to those of `rbm`.

    Args:
        rbm: fitted.
        x: (examples, visible), the data: chains then begin near it. Without, they begin at the visible biases of `rbm`.
        chains: independent runs, side by side.
        temperatures: machines on the way.
        seed: of all random numbers.

    Raises:
        InputError: `rbm` was not fitted, or `x` is not for it.
    """
    check_number("chains", chains, least=2, whole=True)
    check_number("temperatures", temperatures, least=1, whole=True)
    rbm.check_fitted()
    random = rbm.random("annealed importance sampling", seed=seed)
    weights, end, hidden, variances = (
        array.astype(float) for array in (rbm.weights_, rbm.visible_biases_, rbm.hidden_biases_, rbm.variances_)
    )
    gaussian = rbm.visible == "gaussian"
    start = end if x is None else first_visible(rbm.check_examples(x), rbm.visible)[0]
    from_visible = weights / variances[:, None] if gaussian else weights

    def visible(means: Array) -> Array:
        if gaussian:
            drawn: Array = means + random.standard_normal(means.shape) * np.sqrt(variances)
            return drawn
        return draw(sigmoid(means), random)

    def alone(v: Array, biases: Array) -> Array:
        """(chains,): the part of -E that is of the visible units alone."""
        of_each: Array = -((v - biases) ** 2) / (2 * variances) if gaussian else v * biases
        total: Array = of_each.sum(axis=1)
        return total

    of_visible = 0.5 * np.log(2 * math.pi * variances).sum() if gaussian else softplus(start).sum()
    log_weights = np.full(chains, of_visible + len(hidden) * math.log(2))
    v = visible(np.broadcast_to(start, (chains, len(start))))
    with Bar("annealing", total=temperatures, unit="machines") as bar:
        for number in range(temperatures):
            share, next_share = number / temperatures, (number + 1) / temperatures
            biases, next_biases = (start + part * (end - start) for part in (share, next_share))
            inputs = v @ from_visible + hidden  # (chains, hidden)
            log_weights += alone(v, next_biases) - alone(v, biases)
            log_weights += (softplus(next_share * inputs) - softplus(share * inputs)).sum(axis=1)
            h = draw(sigmoid(next_share * inputs), random)
            v = visible(next_biases + next_share * (h @ weights.T))
            bar.advance()
    log_partition = float(log_sum_exp(log_weights) - math.log(chains))
    ratios = np.exp(log_weights - log_partition)  # weights as shares of their mean
    return LogPartition(log_partition, float(ratios.std(ddof=1) / math.sqrt(chains)), log_weights)
