"""How near Boltzmann machines come to what can be summed exactly.

    python benchmarks/foundations_boltzmann.py

1. The two-phase rule beside central differences of the exact likelihood, machines of up to 12 units.
2. Total variation between the states of one chain of 100,000 sweeps and the exact distribution, ten machines.
3. Bars and stripes, 3 x 3: the exact negative log-likelihood after training by CD-1, CD-10 and persistent chains, five
   seeds; and the bias of CD-1 and CD-10 at one and the same machine, by the transition matrix.
4. log Z of machines with 20 hidden units that learned digits: annealed importance sampling beside the sum.
"""

from __future__ import annotations

import math
import time
from itertools import product

import numpy as np
from sklearn.datasets import load_digits

from rhapsode.base.machine import prepare, processor
from rhapsode.foundations.ais import estimate_log_partition
from rhapsode.foundations.binary_units import numbers_of, states
from rhapsode.foundations.boltzmann import BoltzmannMachine
from rhapsode.foundations.demonstrations.boltzmann import random_machine
from rhapsode.foundations.demonstrations.rbm import bars_and_stripes
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine

STEP = 1e-5
SEEDS = 5


def learning_rule() -> None:
    print(f"\n{'the two-phase rule':34}{'largest gap to differences':>28}")
    for visible, hidden in ((12, 0), (8, 4), (4, 8)):
        random = np.random.default_rng(visible)
        upper, x = np.triu(random.normal(size=(12, 12)), 1), random.integers(0, 2, (30, visible))
        biases, gaps = random.normal(size=12), []
        rule = BoltzmannMachine.with_weights(upper + upper.T, biases, hidden=hidden).gradient(x)
        for i, j in zip(*np.triu_indices(12), strict=True):
            scores = []
            for way in (STEP, -STEP):
                weights, shifted = upper.copy(), biases.copy()
                if i == j:
                    shifted[i] += way
                else:
                    weights[i, j] += way
                moved = BoltzmannMachine.with_weights(weights + weights.T, shifted, hidden=hidden)
                scores.append(moved.score(x))
            gaps.append(abs((scores[0] - scores[1]) / (2 * STEP) - rule[i, j]))
        print(f"{visible:3} visible, {hidden} hidden {'':14}{max(gaps):28.1e}")


def frequencies() -> None:
    distances, began = [], time.perf_counter()
    for seed in range(10):
        machine = random_machine(6, seed)
        counts = np.bincount(numbers_of(machine.gibbs(np.ones(100_000))[:, 0]), minlength=64)
        distances.append(0.5 * np.abs(counts / counts.sum() - machine.distribution()).sum())
    seconds = (time.perf_counter() - began) / 10
    print("\none chain, 100,000 sweeps through six units: total variation distance, ten machines")
    print(f"mean {np.mean(distances):.4f}, largest {max(distances):.4f}; {seconds:.1f} s a machine")


def after_steps(rbm: RestrictedBoltzmannMachine, x: Array, steps: int) -> Array:
    """(2^visible,): the distribution that k steps of Gibbs sampling make of the rows of x."""
    v, h = states(len(rbm.visible_biases_)), states(rbm.hidden)
    up, down = rbm.transform(v), rbm.inverse_transform(h)
    to_hidden = np.prod(np.where(h[None] == 1, up[:, None], 1 - up[:, None]), axis=2)
    to_visible = np.prod(np.where(v[None] == 1, down[:, None], 1 - down[:, None]), axis=2)
    start = np.bincount(numbers_of(x), minlength=len(v)) / len(x)
    return start @ np.linalg.matrix_power(to_hidden @ to_visible, steps)


def bars() -> None:
    x = bars_and_stripes()
    print(f"\nbars and stripes, nats per example; log 14 is {math.log(14):.3f}")
    print(f"{'':24}{'mean':>8}{'worst':>8}{'seconds':>10}")
    settings = {
        "CD-1": {"steps": 1, "persistent": False},
        "CD-10": {"steps": 10, "persistent": False},
        "5 steps, persistent": {"steps": 5, "persistent": True},
    }
    for name, setting in settings.items():
        began, losses = time.perf_counter(), []
        for seed in range(SEEDS):
            rbm = RestrictedBoltzmannMachine(
                hidden=20, learning_rate=0.3, batch_size=140, epochs=2500, seed=seed, **setting
            )
            losses.append(-rbm.fit(np.tile(x, (10, 1))).score(x))
        seconds = (time.perf_counter() - began) / SEEDS
        print(f"{name:24}{np.mean(losses):8.3f}{max(losses):8.3f}{seconds:10.1f}")
    print(f"\n{'bias of the weights gradient':34}{'CD-1':>8}{'CD-10':>8}")
    every = states(9)
    for seed in range(3):
        rbm = RestrictedBoltzmannMachine(hidden=6, batch_size=14, epochs=2000, persistent=False, seed=seed).fit(x)
        h, exact = rbm.transform(every), np.exp(rbm.log_likelihood(every))
        biases = [np.linalg.norm((every * (after_steps(rbm, x, steps) - exact)[:, None]).T @ h) for steps in (1, 10)]
        print(f"machine {seed} {'':25}{biases[0]:8.4f}{biases[1]:8.4f}")


def partition() -> None:
    x = load_digits().data / 16
    print(
        f"\n{'log Z, 20 hidden units':26}{'sum':>10}{'estimate':>10}{'error':>10}{'in SE':>8}{'s sum':>8}{'s AIS':>8}"
    )
    for seed, (chains, temperatures) in enumerate(product((100, 500), (1000, 10_000))):
        rbm = RestrictedBoltzmannMachine(hidden=20, epochs=20, seed=seed).fit(x)
        began = time.perf_counter()
        exact = rbm.log_partition()
        middle = time.perf_counter()
        found = estimate_log_partition(rbm, x, chains=chains, temperatures=temperatures, seed=seed)
        seconds = middle - began, time.perf_counter() - middle
        error = found.log_partition - exact
        print(
            f"{chains:4} chains, {temperatures:6,} steps  {exact:10.3f}{found.log_partition:10.3f}{error:+10.3f}"
            f"{abs(error) / found.standard_error:8.1f}{seconds[0]:8.1f}{seconds[1]:8.1f}"
        )


def main() -> None:
    prepare("cpu")
    print(f"{processor()}")
    learning_rule()
    frequencies()
    bars()
    partition()


if __name__ == "__main__":
    main()
