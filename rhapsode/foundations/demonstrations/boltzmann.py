"""Units that flip by chance: how often they are where, how they learn from what they dream, how they find a valley.

rhapsode foundations boltzmann
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rhapsode.base.drawing import FAINT, FIRST, SECOND, SOFT, drawing
from rhapsode.base.random import generator
from rhapsode.foundations.binary_units import numbers_of, states
from rhapsode.foundations.boltzmann import BoltzmannMachine
from rhapsode.foundations.digits import make_digits
from rhapsode.foundations.estimator import Array, Bar
from rhapsode.foundations.page import HALF, WHOLE, gallery

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

SIZE = 8
EVEN = states(3)[states(3).sum(axis=1) % 2 == 0]
"""Three bits of which none or two are 1."""


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Add what Boltzmann machines do.

    Args:
        quick: seconds instead of a minute, with fewer sweeps and updates.
    """
    page.section("Chance, and the energy")
    page.paragraph(
        """A Boltzmann machine is a Hopfield network that is kept warm. Its units are 0 or 1, and each looks at the
        others: the weighted sum of those that are on, plus a bias, says not what the unit will be but how likely it
        is to be 1. So the machine never comes to rest. It wanders, and is found in each state as often as the state's
        energy says."""
    )
    page.formula(
        r"E(s) = -\sum_{i<j} w_{ij} s_i s_j - \sum_i b_i s_i \qquad p(s) = \frac{e^{-E(s)}}{Z} \qquad "
        r"p(s_i = 1) = \frac{1}{1 + e^{-(\sum_j w_{ij} s_j + b_i)}}",
        "s is a state of all units, w and b are weights and biases, Z makes the probabilities add up to 1.",
    )
    _wandering(page, seed, quick)
    _awake_and_dreaming(page, seed, quick)
    _dreams(page, seed, quick)
    _cooling(page, seed, quick)


def random_machine(units: int, seed: int) -> BoltzmannMachine:
    """A machine whose weights and biases are normally distributed."""
    random = generator(seed, "random machine")
    upper = np.triu(random.normal(size=(units, units)), 1)
    return BoltzmannMachine.with_weights(upper + upper.T, random.normal(size=units), seed=seed)


def _wandering(page: Page, seed: int, quick: bool) -> None:
    machine, sweeps = random_machine(6, seed), 5_000 if quick else 100_000
    exact = machine.distribution()
    numbers = numbers_of(machine.gibbs(np.ones(sweeps))[:, 0])
    marks = np.unique(np.geomspace(10, sweeps, 40).astype(int))
    apart = [0.5 * np.abs(np.bincount(numbers[:mark], minlength=len(exact)) / mark - exact).sum() for mark in marks]
    page.fact("Distance from the exact distribution", f"{apart[-1]:.4f}", f"after {sweeps:,} sweeps through six units")
    page.paragraph(
        f"""Six units have 64 states, so everything can be counted out. Here one machine with random weights wandered
        for {sweeps:,} sweeps (in a sweep every unit is drawn once). The distance on the right is the total variation:
        the largest error in the probability of any set of states. It falls like one over the root of the sweeps, as
        the error of any average does."""
    )
    order = np.argsort(-exact)
    frequencies = np.bincount(numbers, minlength=len(exact)) / sweeps
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.bar(np.arange(len(exact)), exact[order], color=FAINT, width=0.9, label="exact")
        axes.plot(frequencies[order], "o", markersize=2.5, label="counted")
        axes.set(xlabel="the 64 states, by probability", ylabel="share of the time")
        axes.legend()
    page.figure(figure, "How often each state was met, and how often it should be.", name="frequencies")
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.loglog(marks, apart)
        axes.loglog(marks, apart[-1] * np.sqrt(sweeps / marks), color=SOFT, linewidth=0.8, linestyle="--")
        axes.set(xlabel="sweeps", ylabel="total variation distance")
        axes.grid()
    page.figure(figure, "The distance falls as one over the root of the sweeps (dashed).", name="distance")


def _awake_and_dreaming(page: Page, seed: int, quick: bool) -> None:
    updates = 300 if quick else 3000
    page.section("Awake and dreaming")
    page.paragraph(
        """To learn is to make the data probable, and the rule for it could not be simpler. Awake, the visible units
        are held at an example, and it is counted how often two units are on together. Dreaming, nothing is held, and
        it is counted again. What happens together more often awake than in dreams gets a larger weight, what happens
        more often in dreams gets a smaller one. This is the exact gradient of the likelihood, though each weight
        looks at its own two units only."""
    )
    page.formula(
        r"\frac{\partial \log p(data)}{\partial w_{ij}} = \langle s_i s_j \rangle_{awake}"
        r" - \langle s_i s_j \rangle_{dreaming}",
        "The brackets are averages.",
    )
    machines = {
        "three visible units alone": BoltzmannMachine(phases="exact", seed=seed),
        "three hidden units, exact phases": BoltzmannMachine(hidden=3, phases="exact", first_weights=2, seed=seed),
        "three hidden units, sampled phases": BoltzmannMachine(hidden=3, chains=200, first_weights=2, seed=seed),
    }
    examples = np.tile(EVEN, (50, 1))
    marks = [0, *np.unique(np.geomspace(1, updates, 60).astype(int))]
    losses: dict[str, list[float]] = {name: [] for name in machines}
    learned: list[Array] = []
    with Bar("learning parity", total=len(machines) * updates, unit="updates") as bar:
        for name, machine in machines.items():
            for update in range(updates + 1):
                if update:
                    machine.learning_rate = 1 - (update - 1) / updates
                    machine.partial_fit(examples)
                    bar.advance()
                else:
                    machine.begin(3)
                if update in marks:
                    losses[name].append(-machine.score(EVEN))
                    if machine.hidden and machine.phases == "sampled":
                        learned.append(machine.distribution())
    page.paragraph(
        """The four examples are three bits of which none or two are 1. Any two of the bits are independent, so a
        machine of visible units alone, which knows pairs only, learns nothing: it stays at log 8. With three hidden
        units it gets near to log 4, the best there is with four equally likely examples, and nearly as near if phases
        are not summed over all states but dreamt. Hidden units must begin very different here: as long as they are
        alike, no pair of units has anything to tell."""
    )
    for name, loss in losses.items():
        page.fact("Nats per example of parity", f"{loss[-1]:.3f}", f"{name}; the best is {math.log(4):.3f}")
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        for value, name in ((math.log(8), "log 8"), (math.log(4), "log 4")):
            axes.axhline(value, color=SOFT, linewidth=0.8, linestyle="--")
            axes.annotate(name, (1, value), xytext=(2, -9), textcoords="offset points", fontsize=8)
        for name, loss in losses.items():
            axes.plot(np.maximum(marks, 0.8), loss, label=name)
        axes.set(xlabel="updates", ylabel="nats per example", xscale="log", ylim=(1.2, None))
        axes.legend(fontsize=8, loc="upper right")
    page.figure(figure, "How surprised three machines are by the examples, as they learn.", name="parity")
    labels = ["".join(map(str, state)) for state in states(3).astype(int)]
    colours = [FIRST if state.sum() % 2 == 0 else SECOND for state in states(3)]
    frames = []
    for mark, distribution in list(zip(marks, learned, strict=True))[::-4][::-1]:
        with drawing():
            figure = Figure(figsize=HALF, layout="constrained")
            axes = figure.add_subplot()
            axes.bar(labels, distribution, color=colours)
            axes.set(ylim=(0, 0.4), title=f"{mark:,} updates", ylabel="probability")
            frames.append(figure)
    page.figure(frames, "What the dreaming machine believes: the examples rise, the rest goes down.", name="beliefs")


def _dreams(page: Page, seed: int, quick: bool) -> None:
    count, updates = (100, 20) if quick else (500, 600)
    x, _ = make_digits(count, size=SIZE, seed=seed, noise=0)
    x = (x > 0.35).astype(float)
    machine = BoltzmannMachine(hidden=32, learning_rate=0.08, chains=60, sweeps=2, seed=seed)
    shown = np.unique(np.geomspace(1, updates, 12).astype(int))
    frames = []
    with Bar("learning digits", total=updates, unit="updates") as bar:
        for update in range(1, updates + 1):
            machine.partial_fit(x)
            bar.advance()
            if update in shown:
                frames.append(gallery(machine.dreams_[:40, : SIZE**2].reshape(-1, SIZE, SIZE), 10, low=0, high=1))
    page.section("What it dreams of")
    page.paragraph(
        f"""The same rule with more units: {SIZE * SIZE} visible ones that are pixels and 32 hidden ones, every one
        connected with every other, learn {count} small digits. Nobody can count out 2^{SIZE**2 + 32} states: both
        phases are sampled, and the dreams go on from one update to the next. At first they are noise; then strokes
        appear, and things like digits. It is slow, for the units have to be drawn one after another. That is what the
        restricted machine does away with."""
    )
    awake = gallery(x[:40].reshape(-1, SIZE, SIZE), 10, low=0, high=1)
    page.figure(awake, "Forty of the digits it learns.", name="awake")
    page.figure(frames, f"Forty dreams, from the first update to number {updates:,}.", name="dreams")


def _cooling(page: Page, seed: int, quick: bool) -> None:
    units, sweeps, chains = (40, 60, 20) if quick else (150, 400, 100)
    random = generator(seed, "glass")
    upper = np.triu(random.choice([-1.0, 1.0], (units, units)), 1)
    machine = BoltzmannMachine.with_weights(upper + upper.T, np.zeros(units), seed=seed)
    hot = math.sqrt(units)
    temperatures = np.append(np.geomspace(hot, hot / 50, sweeps - 3), np.zeros(3))
    runs = {
        "cooled slowly": machine.gibbs(temperatures, chains=chains),
        "cooled at once": machine.gibbs(np.zeros(sweeps), chains=chains),
    }
    energies = {
        name: np.array([machine.energy(sweep) for sweep in run]) for name, run in runs.items()
    }  # (sweeps, chains)
    page.section("Cooling")
    page.paragraph(
        f"""Divide the fields by a temperature, and the machine can be warmed and cooled. At zero a unit does what
        lowers the energy, always: that is the Hopfield network, and it is stuck in the first valley it comes to.
        Cooled slowly, the machine has time to find a deep one before it can no longer leave; this is simulated
        annealing. Here {units} units have weights of +1 and -1 by lot, so that they cannot all be content, and each
        way was tried {chains} times."""
    )
    lowest = {name: float(energy[-1].mean()) for name, energy in energies.items()}
    page.fact(
        "Mean energy at the end",
        f"{lowest['cooled slowly']:.0f}",
        f"cooled slowly, and {lowest['cooled at once']:.0f} cooled at once",
    )
    with drawing():
        figure = Figure(figsize=WHOLE, layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, energy in energies.items():
            (line,) = left.plot(np.arange(1, sweeps + 1), energy.mean(axis=1), label=name)
            left.fill_between(
                np.arange(1, sweeps + 1), energy.min(axis=1), energy.max(axis=1), color=line.get_color(), alpha=0.2
            )
        left.set(xlabel="sweeps", ylabel="energy", xscale="log")
        left.grid(axis="y")
        left.legend()
        ends = [energy[-1] for energy in energies.values()]
        right.hist(ends, bins=24, histtype="stepfilled", alpha=0.7, label=list(energies))
        right.set(xlabel="energy at the end", ylabel="of the runs")
    page.figure(
        figure,
        "Left: the energy on the way, mean and range over the runs. Right: where they ended; further left is better.",
        name="cooling",
    )
