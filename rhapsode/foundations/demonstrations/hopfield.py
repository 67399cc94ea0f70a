"""A Hopfield network at work: letters restored as the energy falls, three ways to store them, and how much fits.

rhapsode foundations hopfield
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
from matplotlib.figure import Figure

from rhapsode.base.drawing import FIRST, SECOND, SOFT, drawing
from rhapsode.base.random import generator
from rhapsode.foundations.demonstrations.letters import letters
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.hopfield import Hopfield, Recall, Rule
from rhapsode.foundations.hopfield_capacity import (
    bit_error,
    error_shares,
    exact_bit_error,
    overlaps,
    random_patterns,
    retrieval_curve,
)
from rhapsode.foundations.page import HALF, WHOLE, gallery

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

WORD, SIDE = "RHAPSODE", 20
NOISE = 0.25
FRAMES = 18
NETWORKS = 4
RULES: tuple[Rule, ...] = get_args(Rule)
LOADS = (0.05, 0.10, 0.138, 0.185, 0.37)


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Add how a memory of letters works, and how much such memories hold.

    Args:
        quick: seconds instead of a minute, with smaller networks.
    """
    page.section("A memory with valleys")
    page.paragraph(
        f"""Each of {SIDE * SIDE} units is +1 or -1: a pixel with ink or without. Every pair of units is connected.
        Where two pixels agree in the pictures that were stored, their connection is positive and they pull each other
        to the same side; where they differ, they push each other apart. One unit after another looks at the sum of
        these pulls, its field, and takes the field's sign. That is all the network ever does."""
    )
    page.formula(
        r"h_i = \sum_j w_{ij} \, s_j \qquad s_i \leftarrow \mathrm{sign}(h_i) \qquad "
        r"E = -\frac{1}{2} \sum_{ij} w_{ij} \, s_i \, s_j",
        "s are the units, w the connections, h the field of a unit, E the energy (Hopfield 1982).",
    )
    page.paragraph(
        """A unit that turns over lowers the energy by twice the size of its field, and no update can raise it. There
        are finitely many states, so the network must come to rest, in a valley of the energy. Storing a picture means
        to dig a valley for it. Whoever starts somewhere on the slope, with a damaged picture, rolls down to the
        whole."""
    )
    stored = letters(WORD, SIDE)
    random = generator(seed, "hopfield demonstration")
    noisy = np.where(random.random(stored.shape) < NOISE, -stored, stored)
    _film(page, stored, noisy, seed)
    _rules(page, stored, noisy, seed)
    _at_once(page, seed)
    _capacity(page, seed, quick)


def _film(page: Page, stored: Array, noisy: Array, seed: int) -> None:
    path = Hopfield(rule="pseudo-inverse", seed=seed).fit(stored).recall(noisy[0])
    shown = np.unique(np.linspace(0, len(path.states) - 1, FRAMES).astype(np.int64))
    page.figure(
        [_frame(path, int(update)) for update in shown],
        f"{WORD[0]} with {100 * NOISE:.0f} % of its pixels turned over, and the energy after each that turns back.",
        name="restored",
    )


def _frame(path: Recall, update: int) -> Figure:
    with drawing():
        figure = Figure(figsize=WHOLE, layout="constrained")
        picture, energy = figure.subplots(1, 2, width_ratios=[1, 1.8])
        picture.imshow(path.states[update].reshape(SIDE, SIDE), vmin=-1, vmax=1)
        picture.axis("off")
        energy.plot(path.energies, color=SOFT, linewidth=0.8)
        energy.plot(path.energies[: update + 1])
        energy.plot(update, path.energies[update], "o", color=SECOND)
        energy.set(xlabel="pixels turned", ylabel="energy")
        energy.grid(axis="y")
    return figure


def _rules(page: Page, stored: Array, noisy: Array, seed: int) -> None:
    blank, unknown = (stored.reshape(-1, SIDE, SIDE).copy() for _ in range(2))
    blank[:, SIDE // 2 :] = -1
    lower = unknown[:, SIDE // 2 :]
    lower[...] = 2 * generator(seed, "lower half").integers(0, 2, lower.shape) - 1
    damaged = {
        "noise": ("noise", noisy),
        "blank": ("lower half blank", blank.reshape(stored.shape)),
        "unknown": ("lower half at random", unknown.reshape(stored.shape)),
    }
    memories = {rule: Hopfield(rule=rule, seed=seed).fit(stored) for rule in RULES}
    page.section("Three ways to dig")
    page.paragraph(
        """Hebb's rule adds the products of the pixels of every picture. It is simple and local, but it takes pictures
        for independent of each other. Letters are not: they share their paper, and half of their strokes, so the
        valleys run into one another. Storkey's rule stores of each new picture only what the connections do not say
        already. The pseudo-inverse projects on what the pictures span; it keeps any pictures that are independent in
        the sense of linear algebra, up to one less than there are units, however alike they look."""
    )
    page.paragraph(
        """What is erased matters as well. A blank lower half is no lack of knowledge, it says that there is paper: half
        an O with nothing below is nearer to a P. With the lower half at random the network knows as little, but is told
        nothing wrong."""
    )
    rows = []
    for name, (damage, starts) in damaged.items():
        found = {rule: memory.predict(starts) for rule, memory in memories.items()}
        pictures = np.concatenate([starts, *found.values()]).reshape(-1, SIDE, SIDE)
        page.figure(
            gallery(pictures, len(WORD), low=-1, high=1),
            f"{damage.capitalize()}; below, what is recalled by Hebb's rule, by Storkey's and by the pseudo-inverse.",
            name=name,
        )
        for rule, states in found.items():
            exact = int((states == stored).all(axis=1).sum())
            rows.append((damage, rule, f"{exact} of {len(stored)}", f"{100 * np.mean(states == stored):.1f} %"))
            if rule == "pseudo-inverse":
                page.fact("Letters restored", f"{exact} of {len(stored)}", f"by the pseudo-inverse, {damage}")
    page.table(["damage", "rule", "letters restored", "pixels right"], rows)


def _at_once(page: Page, seed: int) -> None:
    """One run with one unit at a time and one with all at once, from a start where the latter goes up or round."""
    units = 100
    alone = Hopfield(seed=seed).fit(random_patterns(12, units, seed=seed))
    together = Hopfield(seed=seed, updates="synchronous").fit(alone.patterns_)
    paths = [together.recall(start) for start in random_patterns(200, units, seed=seed + 1)]
    path = max(paths, key=lambda path: (path.end == "two-cycle", float(np.diff(path.energies).max())))
    falling = alone.recall(path.states[0])
    page.section("One at a time, or all at once")
    page.paragraph(
        """That the energy falls holds where units take turns. Where all are updated at once, two that want to differ
        can turn over together, for ever. More than that cannot go wrong: connections work both ways, and that leaves a
        fixed point or two states that follow each other as the only ends."""
    )
    with drawing():
        turns, at_once = (Figure(figsize=HALF, layout="constrained") for _ in range(2))
        axes = turns.add_subplot()
        axes.plot(falling.energies)
        axes.set(xlabel="units turned", ylabel="energy")
        axes.grid(axis="y")
        axes = at_once.add_subplot()
        axes.plot(path.energies, marker="o", markersize=4, color=SECOND)
        axes.set(xlabel="updates of all units", ylabel="energy")
        axes.grid(axis="y")
    page.figure(turns, "One unit at a time: every step goes down, to a fixed point.", name="turns")
    page.figure(at_once, f"All at once, from the same start: the end is a {path.end}.", name="at-once")


def _capacity(page: Page, seed: int, quick: bool) -> None:
    units, states = (200, 5) if quick else (1000, 20)
    page.section("How much fits")
    page.paragraph(
        """To each unit of a stored pattern the other patterns are noise: a sum of random signs, with a variance of the
        load, patterns per unit. One update turns a unit over where that sum is stronger than the pattern itself, and
        the share of these follows from the normal distribution. At a load of 0.138 something sudden happens: errors
        make more errors, and the valleys are gone, all together. Physicists found it with the tools for magnets (Amit,
        Gutfreund and Sompolinsky 1985). The smaller a network, the more gradual it is."""
    )
    page.formula(
        r"P(\mathrm{error}) = \frac{1}{2} \left[ 1 - \mathrm{erf} \left( \frac{1}{\sqrt{2 \alpha}} \right) \right]",
        "The share of units turned over by one update; alpha is the load, patterns / units.",
    )
    rows = []
    for load in LOADS:
        patterns, networks = round(load * units), 30 if load < 0.1 else NETWORKS
        share = float(error_shares(units=units, patterns=patterns, networks=networks, seed=seed).mean())
        numbers = (share, exact_bit_error(units, patterns), bit_error(load))
        if load == 0.138:
            expected = f"of units at a load of {load}; {100 * numbers[-1]:.2f} % expected"
            page.fact("Wrong after one update", f"{100 * share:.2f} %", expected)
        rows.append(
            (f"{load:.3f}", f"{networks * patterns * units:,}", *(f"{100 * number:.4f} %" for number in numbers))
        )
    head = [
        "load",
        "units looked at",
        "turned over",
        f"the law for {units:,} units",
        "the formula, for infinitely many",
    ]
    page.table(head, rows, f"Random patterns in {units:,} units, stored by Hebb's rule, updated once.")
    page.figure(_retrieval(units, states, seed), "Where a stored pattern itself comes to rest.", name="capacity")
    few = 64 if quick else 256
    page.figure(
        _compared(few, states, seed),
        f"Patterns with a tenth of {few} units turned over, by the rule that stored them.",
        name="rules",
    )


def _retrieval(units: int, states: int, seed: int) -> Figure:
    loads = np.array([0.02, 0.05, 0.08, 0.10, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.20, 0.22, 0.25])
    theory_loads, theory = retrieval_curve()
    found = [
        np.concatenate(
            [
                overlaps(
                    "hebbian", units=units, patterns=round(load * units), flipped=0, states=states, seed=seed, network=n
                )
                for n in range(NETWORKS)
            ]
        )
        for load in loads
    ]
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        dots = np.stack([each[:states] for each in found])  # (loads, states), of one network
        axes.plot(np.repeat(loads, states), dots.ravel(), ".", color=FIRST, alpha=0.25, markersize=4)
        axes.plot(loads, [each.mean() for each in found], marker="o", markersize=4, label=f"{units:,} units")
        axes.plot(theory_loads, theory, color=SECOND, label="theory")
        axes.axvline(theory_loads[-1], color=SECOND, linewidth=0.8, linestyle="--")
        axes.set(xlabel="load: patterns / units", ylabel="overlap", ylim=(0, 1.05), xlim=(0, None))
        axes.grid(axis="y")
        axes.legend(loc="lower left")
    return figure


def _compared(units: int, states: int, seed: int) -> Figure:
    loads = np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        for rule in RULES:
            found = [
                overlaps(rule, units=units, patterns=round(load * units), flipped=0.1, states=states, seed=seed).mean()
                for load in loads
            ]
            axes.plot(loads, found, marker="o", markersize=4, label=rule)
        axes.set(xlabel="load: patterns / units", ylabel="overlap", ylim=(0, 1.05), xlim=(0, None))
        axes.grid(axis="y")
        axes.legend()
    return figure
