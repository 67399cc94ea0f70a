"""Restricted machines: bars and stripes to the last nat, strokes of digits, dreams, a Z too large to sum, real numbers.

rhapsode foundations rbm
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from rhapsode.base.drawing import FAINT, SOFT, drawing
from rhapsode.base.random import generator
from rhapsode.foundations.ais import estimate_log_partition
from rhapsode.foundations.digits import make_digits
from rhapsode.foundations.estimator import Array, Bar
from rhapsode.foundations.page import HALF, WHOLE, gallery
from rhapsode.foundations.rbm import RestrictedBoltzmannMachine

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

SIZE = 16
INK = 0.35
"""A pixel that is brighter than this is 1."""

WAYS: dict[str, dict[str, Any]] = {
    "CD-1": {"steps": 1, "persistent": False},
    "CD-10": {"steps": 10, "persistent": False},
    "5 steps, persistent": {"steps": 5, "persistent": True},
}
"""How machines are taught bars and stripes."""
LEARNING_RATE, COPIES = 0.3, 10  # of each picture in a batch, which is all of them
FRAMES = 12


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Add what restricted Boltzmann machines do.

    Args:
        quick: seconds instead of a minute, with fewer examples and passes.
    """
    page.section("Half of the connections")
    page.paragraph(
        """A Boltzmann machine has to draw its units one after another, for each looks at all the others. Take away the
        connections among visible units and those among hidden ones, and the units of a layer know of each other
        through the other layer only. All hidden units can be drawn at once, then all visible ones: two products with
        a matrix. It can also be said in a formula how much energy a picture costs with all that hidden units may do
        counted in; this is the free energy F, and a picture is the more probable the lower it is."""
    )
    page.formula(
        r"E(v, h) = -b^T v - c^T h - v^T W h \qquad p(h_j = 1 \,|\, v) = \frac{1}{1 + e^{-(c_j + \sum_i v_i W_{ij})}}"
        r" \qquad F(v) = -b^T v - \sum_j \log\,(1 + e^{c_j + \sum_i v_i W_{ij}})",
        "v are visible units, h hidden ones; b and c are their biases, W the weights between them.",
    )
    _bars_and_stripes(page, seed, quick)
    _digits(page, seed, quick)
    _partition(page, seed, quick)
    _real_numbers(page, seed, quick)


def bars_and_stripes() -> Array:
    """(14, 9): the pictures of 3 x 3 whose rows are all alike, or whose columns are (MacKay 2003, chapter 43)."""
    rows = [np.repeat(bits, 3) for bits in product((0, 1), repeat=3)]
    columns = [np.tile(bits, 3) for bits in product((0, 1), repeat=3)]
    return np.unique(rows + columns, axis=0).astype(float)


def binary_digits(count: int, seed: int) -> Array:
    """(count, SIZE * SIZE): digits drawn on the spot, of zeros and ones."""
    pictures, _ = make_digits(count, size=SIZE, seed=seed, noise=0)
    return (pictures > INK).astype(np.float32)


def _bars_and_stripes(page: Page, seed: int, quick: bool) -> None:
    updates, films = (20, 3) if quick else (2500, FRAMES)
    x = bars_and_stripes()
    batch = np.tile(x, (COPIES, 1))
    marks = np.unique(np.geomspace(1, updates, 60).astype(int))
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    frames = []
    with Bar("learning bars and stripes", total=len(WAYS) * updates, unit="updates") as bar:
        for way, settings in WAYS.items():
            machine = RestrictedBoltzmannMachine(hidden=20, batch_size=len(batch), seed=seed, **settings)
            for update in range(1, updates + 1):
                machine.learning_rate = LEARNING_RATE * (1 - (update - 1) / updates)
                machine.partial_fit(batch)
                bar.advance()
                if update not in marks:
                    continue
                losses[way].append(-machine.score(x))
                if machine.persistent and update in marks[:: len(marks) // films]:
                    dreams = machine.inverse_transform(machine.chains_[:40]).reshape(-1, 3, 3)
                    frames.append(gallery(dreams, 10, low=0, high=1))
    best = min(losses, key=lambda way: losses[way][-1])
    page.fact("Nats per bar or stripe", f"{losses[best][-1]:.3f}", f"{best}; the best there is, log 14, is 2.639")
    page.section("Two phases, and no time to dream")
    page.paragraph(
        """The rule of learning is the one of every Boltzmann machine: what is on together awake, minus what is on
        together in dreams. Dreams need many steps to forget where they began. Contrastive divergence does not wait:
        it begins at the examples and takes one step, CD-1, or k of them. This is not the gradient of the likelihood,
        and it leaves alone what lies far from all examples; but it points about the right way, costs next to
        nothing, and made the whole thing practical. Persistent chains are the other way out: they take few steps as
        well, but go on from where the last update left them, and so they wander far."""
    )
    page.paragraph(
        f"""Here the pictures of 3 x 3 pixels are learned whose rows are all alike, or whose columns are. There are 14
        of them among 512, so the probability of each cannot be more than 1/14 on average, and a machine cannot be
        less surprised than by log 14 = {math.log(14):.3f} nats. With 20 hidden units everything can be summed, and
        the curves are exact."""
    )
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(math.log(14), color=SOFT, linewidth=0.8, linestyle="--")
        axes.annotate("log 14", (1, math.log(14)), xytext=(2, 3), textcoords="offset points", fontsize=8)
        for way, loss in losses.items():
            axes.plot(marks, loss, label=way)
        axes.set(xlabel="updates", ylabel="nats per picture", xscale="log")
        axes.legend()
    page.figure(figure, "How surprised machines are by bars and stripes, summed over all states.", name="bars")
    page.figure(frames, "Forty persistent chains: noise at first, bars and stripes at the end.", name="chains")


def _digits(page: Page, seed: int, quick: bool) -> None:
    count, passes = (200, 2) if quick else (4000, 50)
    hidden, temperatures = (20, 50) if quick else (128, 500)
    x, unseen = binary_digits(count, seed), binary_digits(count // 4, seed + 1)
    machine = RestrictedBoltzmannMachine(hidden=hidden, batch_size=50, seed=seed)
    marks = np.unique(np.geomspace(1, passes, FRAMES).astype(int))
    filters, dreams, scores = [], [], []
    for number in range(1, passes + 1):
        machine.learning_rate = 0.1 * (1 - (number - 1) / passes)
        machine.partial_fit(x)
        if number in marks:
            filters.append(machine.weights_.T[:32].reshape(-1, SIZE, SIZE).copy())
            _, means = machine.gibbs(x[:32], 200, seed=seed)
            dreams.append(means.reshape(-1, SIZE, SIZE))
            z = estimate_log_partition(machine, x, temperatures=temperatures, seed=seed).log_partition
            scores.append([-machine.score(each, log_partition=z) for each in (x[: len(unseen)], unseen)])
    page.fact("Nats per digit it has not seen", f"{scores[-1][1]:.1f}", f"estimated; {_coins(x, unseen):.1f} by pixels")
    page.section("Strokes")
    page.paragraph(
        f"""The same machine with {hidden} hidden units learns {count:,} digits of {SIZE} x {SIZE} pixels, made on the
        spot from matplotlib's fonts. Nobody says what the digits are. Look at the weights into hidden units: they
        begin as noise and become detectors, white where ink speaks for the unit and black where it speaks against it.
        A digit is a sum of such parts. Below are dreams: Gibbs sampling that began at a digit and forgot it in 200
        steps."""
    )
    largest = float(np.percentile(np.abs(filters[-1]), 99.5))
    page.figure(
        [gallery(each, 8, low=-largest, high=largest) for each in filters],
        f"The weights into 32 of {hidden} hidden units, as they learn.",
        name="filters",
    )
    page.figure(
        [gallery(each, 8, low=0, high=1) for each in dreams],
        "Dreams of the machine, as it learns: 32 chains, 200 steps after a digit.",
        name="dreams",
    )
    _likelihoods(page, marks, np.array(scores), _coins(x, unseen))
    _energies(page, machine, x[: len(unseen)], unseen, seed)
    _completed(page, machine, unseen[:10], seed)


def _coins(x: Array, unseen: Array) -> float:
    """Nats per picture of `unseen` if each pixel is a coin of its own, with the mean it has in `x`."""
    chances = x.mean(axis=0, dtype=float).clip(1e-3, 1 - 1e-3)
    return float(-(unseen * np.log(chances) + (1 - unseen) * np.log(1 - chances)).sum(axis=1).mean())


def _likelihoods(page: Page, passes: Array, scores: Array, coins: float) -> None:
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(coins, color=SOFT, linewidth=0.8, linestyle="--")
        axes.annotate("each pixel a coin", (1, coins), xytext=(2, 3), textcoords="offset points", fontsize=8)
        for name, loss in zip(("digits it learns from", "digits it has not seen"), scores.T, strict=True):
            axes.plot(passes, loss, "o-", markersize=3, label=name)
        axes.set(xlabel="passes over the digits", ylabel="nats per digit", xscale="log")
        axes.legend()
    page.figure(
        figure, "How surprised it is by digits; Z is estimated by annealed importance sampling.", name="likelihood"
    )


def _energies(page: Page, machine: RestrictedBoltzmannMachine, x: Array, unseen: Array, seed: int) -> None:
    shuffled = generator(seed, "shuffled pixels").permuted(unseen, axis=0)
    kinds = {"digits it has seen": x, "digits it has not seen": unseen, "pixels of many digits": shuffled}
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        energies = {name: machine.free_energy(each) for name, each in kinds.items()}
        bins = np.histogram_bin_edges(np.concatenate([*energies.values()]), 50).tolist()
        for name, energy in energies.items():
            axes.hist(energy, bins=bins, histtype="stepfilled", alpha=0.6, label=name)
        axes.set(xlabel="free energy", ylabel="pictures")
        axes.legend(fontsize=8)
    page.figure(
        figure,
        "The free energy tells digits from pictures whose pixels come each from another digit, without any label.",
        name="energies",
    )


def _completed(page: Page, machine: RestrictedBoltzmannMachine, x: Array, seed: int) -> None:
    known = np.arange(SIZE * SIZE) < SIZE * SIZE // 2
    v, rows = np.where(known, x, 0), [x]
    rows.append(v)
    for step in range(1, 101):
        v, means = machine.gibbs(v, 1, seed=seed + step)
        v = np.where(known, x, v)
        if step in (1, 3, 10, 30, 100):
            rows.append(np.where(known, x, means))
    page.figure(
        gallery(np.concatenate(rows).reshape(-1, SIZE, SIZE), len(x), low=0, high=1),
        "Ten digits it has not seen, their upper halves, and what it makes of the rest after 1, 3, 10, 30 and 100"
        " steps with the upper half held.",
        name="completed",
    )


def _partition(page: Page, seed: int, quick: bool) -> None:
    count, passes = (100, 2) if quick else (2000, 20)
    steps = (10, 30, 100) if quick else (10, 30, 100, 300, 1000, 3000)
    x = binary_digits(count, seed)
    machine = RestrictedBoltzmannMachine(hidden=12 if quick else 20, epochs=passes, seed=seed).fit(x)
    exact = machine.log_partition()
    page.section("A sum over everything")
    page.paragraph(
        f"""To say how probable a picture is one needs Z, a sum over all pictures there can be. For few hidden units it
        can be done: {2**machine.hidden:,} states of {machine.hidden} units, and for each the pixels by formula. For
        more there is annealed importance sampling. It goes from a machine without connections, whose Z is known, to the
        one in question, through many in between; chains of Gibbs sampling go along, and keep account of how much more
        probable each machine finds them than the one before. The mean of these accounts is right on average however
        few the steps. With few it hangs on lucky chains, and is more likely to be too low than too high."""
    )
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(exact, color=SOFT, linewidth=0.8, linestyle="--")
        axes.annotate("summed", (steps[0], exact), xytext=(2, 3), textcoords="offset points", fontsize=8)
        for count in steps:
            found = estimate_log_partition(machine, x, temperatures=count, seed=seed)
            jitter = count * np.geomspace(0.9, 1.1, len(found.log_weights))
            axes.plot(jitter, found.log_weights, ".", color=FAINT, markersize=3)
            axes.errorbar(count, found.log_partition, 3 * found.standard_error, fmt="o", capsize=3, color=SOFT)
        axes.set(xlabel="machines on the way", ylabel="log Z", xscale="log")
    page.fact("log Z", f"{found.log_partition:.2f}", f"estimated over {steps[-1]:,} machines, and {exact:.2f} summed")
    page.figure(
        figure,
        "What a hundred chains say (small dots), and their estimate with three standard errors, by how many machines"
        " lie on the way.",
        name="partition",
    )


def _real_numbers(page: Page, seed: int, quick: bool) -> None:
    random = generator(seed, "ring")
    count, passes = (300, 2) if quick else (3000, 60)
    angles = random.uniform(0, 2 * math.pi, 2 * count)
    radii = 1 + 0.12 * random.standard_normal(2 * count)
    x = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    x, unseen = x[:count], x[count:]
    machine = RestrictedBoltzmannMachine(
        hidden=12, visible="gaussian", batch_size=50, steps=5, persistent=False, seed=seed
    )
    ticks = np.linspace(-1.8, 1.8, 80)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    marks = np.unique(np.geomspace(1, passes, FRAMES).astype(int))
    densities = []
    for number in range(1, passes + 1):
        machine.learning_rate = 0.2 * (1 - (number - 1) / passes)
        machine.partial_fit(x)
        if number in marks:
            densities.append(np.exp(machine.log_likelihood(points)).reshape(len(ticks), -1))
    frames = []
    for number, density in zip(marks, densities, strict=True):
        with drawing():
            figure = Figure(figsize=WHOLE, layout="constrained")
            left, right = figure.subplots(1, 2)
            left.plot(*x[:600].T, ".", markersize=2)
            left.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), aspect="equal", title="examples")
            right.imshow(density, origin="lower", extent=(-1.8, 1.8, -1.8, 1.8), vmin=0, vmax=densities[-1].max())
            right.set(title=f"after {number} passes")
            frames.append(figure)
    one = -0.5 * np.log(2 * math.pi * math.e * x.var(axis=0)).sum()
    page.section("Numbers that are not 0 or 1")
    page.paragraph(
        """Give each visible unit a normal distribution in place of a coin, and the machine learns real numbers. Each
        setting of the hidden units is then a bell, all of one shape; the hidden units say where bells stand, and how
        much weight each has. Twelve hidden units can put up 4,096 of them, but not freely: the places are sums of
        twelve vectors. The variances are learned as well."""
    )
    page.figure(frames, "Points on a ring, and the density that the machine learns of them.", name="ring")
    page.table(
        ["density", "nats per point it has not seen"],
        [("the machine", f"{-machine.score(unseen):.3f}"), ("one bell for all", f"{-one:.3f}")],
    )
