"""A stack of restricted machines: what its layers see, what it dreams, and what it is worth when labels are few.

rhapsode foundations dbn
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from rhapsode.base.drawing import drawing
from rhapsode.base.random import generator
from rhapsode.foundations.dbn import DeepBeliefNetwork
from rhapsode.foundations.digits import make_digits
from rhapsode.foundations.estimator import Array, Bar
from rhapsode.foundations.network import Classifier
from rhapsode.foundations.page import HALF, gallery

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

SIZE = 16
SHARES = (0.01, 0.05, 0.1, 1.0)
"""Of the digits: so many get a label."""
BATCH = 32
PRE_TRAINED, RANDOM = "from the stack", "from random weights"


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Add what deep belief networks do.

    Args:
        quick: seconds instead of a minute, with fewer examples and passes.
    """
    count, hidden, passes = (200, (20, 20), 2) if quick else (4000, (128, 128), 40)
    x, y = make_digits(count, size=SIZE, seed=seed)
    unseen, answers = make_digits(max(count // 4, 200), size=SIZE, seed=seed + 1)
    network = DeepBeliefNetwork(
        hidden=hidden, pre_training={"epochs": passes, "batch_size": 50, "persistent": False}, seed=seed
    ).fit(x)
    page.section("One on top of another")
    page.paragraph(
        """In 2006 nobody could train networks of many layers: errors that were propagated backwards through sigmoid
        units from random weights came to little at the bottom. The way out was to let the layers learn one after
        another, without errors. A restricted Boltzmann machine learns the pictures; its hidden units, as they react to
        pictures, are the examples of the next machine, which learns what goes with what among the parts that the
        first has found; and so on. It can be shown that each further layer can only raise a lower bound of the
        likelihood, if it is at least as large and begins as the one below turned round."""
    )
    page.formula(
        r"P(v, h_1, h_2) = P(v \,|\, h_1) \, P(h_1, h_2)",
        "The top two layers are a restricted machine; from it the way leads down to what can be seen.",
    )
    _layers(page, network)
    _there_and_back(page, network, unseen[:10])
    _dreams(page, network, seed, quick)
    _labels(page, network, (x, y), (unseen, answers), seed, quick)


def labelled(y: Array, share: float, *, seed: int) -> Array:
    """Which examples have a label, where only a `share` of them has: by lot, and as many of each class as of any."""
    order = generator(seed, "labelled").permutation(len(y))
    classes = np.unique(y)
    rank = np.empty(len(y), dtype=np.int64)  # of each example among those of its class
    for label in classes:
        of_it = order[y[order] == label]
        rank[of_it] = np.arange(len(of_it))
    by_rank = order[np.argsort(rank[order], kind="stable")]
    return by_rank[: max(len(classes), round(share * len(y)))]


def label_curve(right: dict[str, Array]) -> Figure:
    """The share of digits read rightly by each kind of network, (runs, shares of labels): every run, and the means."""
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        for kind, shares in right.items():
            (line,) = axes.plot(SHARES, 100 * shares.mean(axis=0), label=kind)
            for row in shares:
                axes.plot(SHARES, 100 * row, ".", color=line.get_color(), markersize=3, alpha=0.5)
        axes.set(xscale="log", xlabel="share of the digits with a label", ylabel="% read rightly")
        axes.set_xticks(SHARES, [f"{100 * share:.0f} %" for share in SHARES])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.legend(fontsize=8)
    return figure


def _layers(page: Page, network: DeepBeliefNetwork) -> None:
    page.section("What its layers see")
    page.paragraph(
        f"""The stack has layers of {" and ".join(map(str, network.hidden))} units and has seen
        {SIZE} x {SIZE} pixels in many fonts, without being told which digits they are. For a unit of the first layer
        its weights are a picture. For one of the second they are a list of first-layer units that it likes and
        dislikes; the sum of their pictures, so weighted, shows what makes it react."""
    )
    first = network.rbms_[0].weights_  # (pixels, units)
    second = first @ network.rbms_[1].weights_
    for name, weights, layer in (("first", first, "first"), ("second", second, "second")):
        pictures = weights.T[:32].reshape(-1, SIZE, SIZE)
        largest = float(np.percentile(np.abs(pictures), 99.5))
        page.figure(
            gallery(pictures, 8, low=-largest, high=largest),
            f"Thirty-two units of the {layer} layer: ink speaks for the unit where it is white.",
            name=name,
        )


def _there_and_back(page: Page, network: DeepBeliefNetwork, x: Array) -> None:
    lower = network.rbms_[0].reconstruct(x)
    pictures = np.concatenate([x, lower, network.reconstruct(x)]).reshape(-1, SIZE, SIZE)
    page.section("There and back")
    page.paragraph(
        """Go up with a picture and come down again: what arrives is what the layers have kept of it. Grey pixels and
        the reactions of units are chances here, and coins blur what is passed on, so it gets softer with each layer;
        nothing was ever trained to give the picture back. Noise is not given back either, for it is not what pictures
        have in common."""
    )
    page.figure(
        gallery(pictures, len(x), low=0, high=1),
        "Digits it has not seen; given back by the first layer; given back from the top.",
        name="reconstructed",
    )


def _dreams(page: Page, network: DeepBeliefNetwork, seed: int, quick: bool) -> None:
    steps = (1, 3) if quick else (1, 3, 10, 30, 100, 300, 1000)
    frames = [network.sample(32, steps=count, seed=seed).reshape(-1, SIZE, SIZE) for count in steps]
    page.section("Dreams")
    page.paragraph(
        """Nothing is shown to it now. The top two layers draw each other, again and again from a random start, and
        what they arrive at goes down once. In the film the same 32 chains are seen after more and more steps."""
    )
    page.figure(
        [gallery(frame, 8, low=0, high=1) for frame in frames],
        f"Dreams after {', '.join(f'{count:,}' for count in steps)} steps.",
        name="dreams",
    )


def _labels(
    page: Page,
    network: DeepBeliefNetwork,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    seed: int,
    quick: bool,
) -> None:
    (x, y), steps, tries = train, 30 if quick else 600, 1 if quick else 3
    right: dict[str, Array] = {kind: np.empty((tries, len(SHARES))) for kind in (PRE_TRAINED, RANDOM)}
    with Bar("learning from labels", total=2 * tries * len(SHARES), unit="networks") as bar:
        for trial in range(tries):
            for place, share in enumerate(SHARES):
                some = labelled(y, share, seed=seed + trial)
                settings: dict[str, Any] = {"epochs": -(-steps // -(-len(some) // BATCH)), "batch_size": BATCH}
                network.fine_tuning = {"learning_rate": 0.01, **settings}
                twin = Classifier(
                    hidden=network.hidden, activation="sigmoid", learning_rate=0.01, seed=seed + trial, **settings
                )
                right[PRE_TRAINED][trial, place] = network.fine_tune(x[some], y[some]).score(*test)
                bar.advance()
                right[RANDOM][trial, place] = twin.fit(x[some], y[some]).score(*test)
                bar.advance()
    few, all_ = (
        {kind: 100 * float(shares[:, place].mean()) for kind, shares in right.items()} for place in (0, len(SHARES) - 1)
    )
    for share, means in ((SHARES[0], few), (SHARES[-1], all_)):
        note = f"with {100 * share:.0f} % of the labels; {means[RANDOM]:.1f} % {RANDOM}"
        page.fact("Digits read rightly", f"{means[PRE_TRAINED]:.1f} %", note)
    page.section("Few labels")
    page.paragraph(
        f"""Now for the labels. The weights of the stack become those of a network of sigmoid units, an output layer is
        put on top, and backpropagation goes on from there. Beside it stands the same network from random weights,
        with as many steps, {tries} times each with other digits labelled. What has seen all the digits should need to
        be told less about them; how much less, the picture says. Where there is a label for everything, random weights
        of the right size and Adam, neither of which there was in 2006, leave little to gain. That is why nobody stacks
        them any more. What stayed is the idea that most is learned without labels and little has to be added:
        language models are made so."""
    )
    caption = "Digits read rightly, by how many have a label; dots are single runs, lines their means."
    page.figure(label_curve(right), caption, name="labels")
    page.table(
        ["labels", PRE_TRAINED, RANDOM],
        [
            (
                f"{round(share * len(x)):,}",
                *(f"{100 * shares[:, place].mean():.1f} %" for shares in right.values()),
            )
            for place, share in enumerate(SHARES)
        ],
    )
