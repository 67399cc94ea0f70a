"""Learning from errors: XOR, digits in fonts seen and not seen, and the next word of a play.

rhapsode foundations digits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rhapsode.base.drawing import FIRST, INK, PAPER, SECOND, drawing
from rhapsode.base.random import generator
from rhapsode.foundations.demonstrations import next_word
from rhapsode.foundations.digits import FONTS, UNSEEN, make_digits
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.layers import Dense, Layer, LayerNorm, Tanh, squared_error, transformer_block
from rhapsode.foundations.network import SGD, Classifier, Network, gradient_check
from rhapsode.foundations.page import HALF, WHOLE, gallery

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

SIZE = 16
CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
ODD = np.array([[0], [1], [1], [0]], dtype=np.float32)
XOR_FRAMES = (0, 10, 20, 40, 60, 80, 100, 130, 160, 200, 250, 300, 400)
EPOCHS_SHOWN = (0, 1, 2, 3, 5, 8, 12, 18, 25)


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Add what networks learn by propagating errors backwards.

    Args:
        quick: seconds instead of a minute, with less to learn from.
    """
    page.section("Errors, backwards")
    page.paragraph(
        """A network is a chain of simple steps. Forwards, each step makes numbers of the numbers before it: a dense
        layer multiplies by a matrix and adds a bias, tanh bends. At the end a loss says how wrong the outputs are.
        Backwards, each step is told how the loss changes with its output, and works out how it changes with its
        input and with its own parameters. That is the chain rule and no more, and it costs about twice what the way
        forwards costs, however many parameters there are. Then every parameter moves a little against its
        gradient."""
    )
    page.formula(
        r"\frac{\partial L}{\partial x} = \frac{\partial L}{\partial y} \, W^T \qquad "
        r"\frac{\partial L}{\partial W} = x^T \, \frac{\partial L}{\partial y} \qquad y = x \, W + b",
        "A dense layer: x goes in, y comes out, L is the loss.",
    )
    page.table(
        ["network", "parameters", "largest gap to central differences"],
        [(name, f"{count:,}", f"{gap:.1e}") for name, count, gap in _checks(seed)],
        "Derived by hand, checked on the spot: each parameter was moved by 0.00001 both ways and the loss measured.",
    )
    _xor(page, seed)
    _digits(page, seed, quick)
    next_word.demonstrate(page, seed=seed, quick=quick)


def _checks(seed: int) -> list[tuple[str, int, float]]:
    """Networks by name, with the count of their parameters and how far their gradients are from central differences."""
    networks: dict[str, list[Layer]] = {
        "two dense layers with tanh": [Dense(6, 8), Tanh(), Dense(8, 6)],
        "a block of a transformer": [*transformer_block(6, 2, 12), LayerNorm(6)],
    }
    x, y = generator(seed, "checks").standard_normal((2, 2, 4, 6))
    found = []
    for name, layers in networks.items():
        network = Network(layers, loss=squared_error, seed=seed, dtype=np.float64)
        count = sum(parameter.size for parameter in network.parameters.values())
        found.append((name, count, gradient_check(network, x, y)))
    return found


def _xor(page: Page, seed: int) -> None:
    network = Network([Dense(2, 2, gain=0.5), Tanh(), Dense(2, 1, gain=0.5)], loss=squared_error, seed=seed)
    optimizer, frames, losses = SGD(0.2, momentum=0.9), [], []
    for epoch in range(max(XOR_FRAMES) + 1):
        if epoch in XOR_FRAMES:
            frames.append(_surface(network, epoch))
        losses += network.fit(CORNERS, ODD, optimizer=optimizer, epochs=1, batch_size=4).loss
    with drawing():
        curve = Figure(figsize=HALF, layout="constrained")
        axes = curve.add_subplot()
        axes.plot(losses)
        axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
        axes.grid(axis="y")
    page.section("Two hidden units")
    page.paragraph(
        """One layer can only cut the plane with a straight line, so it cannot say whether exactly one of two inputs is
        on. This is what stopped the perceptron in 1969. Two hidden units make two cuts, and the output unit puts them
        together. Nobody tells the hidden units what to look for: the errors that come back to them do."""
    )
    page.figure(frames, "What the network says of every point of the plane, as it learns the four corners.", name="xor")
    page.figure(curve, "The loss over the same epochs.", name="xor-loss")


def _surface(network: Network, epoch: int) -> Figure:
    ticks = np.linspace(-0.4, 1.4, 60, dtype=np.float32)
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    says = network.forward(points).reshape(len(ticks), -1)
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(says, vmin=-0.2, vmax=1.2, origin="lower", extent=(-0.4, 1.4, -0.4, 1.4))
        for (x, y), odd in zip(CORNERS, ODD[:, 0], strict=True):
            axes.plot(x, y, "o", color=SECOND if odd else FIRST, markersize=9, markeredgecolor=PAPER)
        axes.set(xticks=[0, 1], yticks=[0, 1], title=f"epoch {epoch}")
    return figure


def _digits(page: Page, seed: int, quick: bool) -> None:
    count, epochs = (300, 3) if quick else (6000, max(EPOCHS_SHOWN))
    x, y = _pictures(count, seed, FONTS)
    tests = {
        "the fonts it learned from": _pictures(max(count // 3, 200), seed + 1, FONTS),
        "fonts it has not seen": _pictures(max(count // 3, 200), seed + 2, UNSEEN),
    }
    model = Classifier(hidden=(64,), activation="tanh", weight_decay=0.2, seed=seed)
    linear = Classifier(hidden=(), epochs=epochs, seed=seed).fit(x, y)
    frames, losses = [], []
    test_losses: dict[str, list[float]] = {name: [] for name in tests}
    for epoch in range(1, epochs + 1):
        losses += model.partial_fit(x, y, classes=np.arange(10)).history_.loss
        for name, (pictures, labels) in tests.items():
            test_losses[name].append(model.network_.mean_loss(pictures, labels))
        if epoch in EPOCHS_SHOWN:
            frames.append(model.network_.parameters["0.weight"].T[:24].reshape(-1, SIZE, SIZE).copy())
    right = {name: model.score(*test) for name, test in tests.items()}
    for name, share in right.items():
        page.fact("Digits read rightly", f"{100 * share:.1f} %", f"in {name}")

    page.section("Reading digits")
    page.paragraph(
        f"""The pictures are made on the spot: digits in the fonts that come with matplotlib, shifted, turned,
        stretched, slanted and made noisy, {SIZE} x {SIZE} pixels. Every other one or so is a negative: what speaks
        for a digit in one picture speaks against it in another, so this is XOR again, only larger. The network has
        {SIZE * SIZE} inputs, 64 hidden units of tanh and ten outputs, of which softmax makes probabilities; it
        learned from {count:,} pictures in {epochs} rounds."""
    )
    seen, unseen = (pictures[:16].reshape(-1, SIZE, SIZE) for pictures, _ in tests.values())
    page.figure(gallery(seen, 8, low=0, high=1), "Digits in the fonts it learned from.", name="seen")
    page.figure(gallery(unseen, 8, low=0, high=1), "The same in Computer Modern, which it never saw.", name="unseen")
    largest = float(np.abs(frames[-1]).max())
    page.figure(
        [gallery(each, 8, low=-largest, high=largest) for each in frames],
        "The weights into 24 hidden units as they learn: each becomes a detector of strokes here and gaps there.",
        name="filters",
    )
    page.figure(_losses(losses, test_losses), "The loss on each kind of picture after each round.", name="loss")
    page.table(
        ["pictures in", "no hidden layer", "64 hidden units"],
        [(name, f"{100 * linear.score(*test):.1f} %", f"{100 * right[name]:.1f} %") for name, test in tests.items()],
        "Digits read rightly, beside a network without hidden units, which is logistic regression.",
    )
    wrong = _mistakes(model, *tests["fonts it has not seen"])
    if wrong is not None:
        page.figure(wrong, "Its mistakes in the other fonts: what it was, and what it was taken for.", name="mistakes")
    page.paragraph(
        """What it has learned is these fonts, and digits only as far as fonts are alike. That is why a network is
        judged by what it has not seen, and why the difference between the two rows says more than either."""
    )


def _pictures(count: int, seed: int, fonts: Sequence[str]) -> tuple[Array, Array]:
    """Digits, about half of them black on white."""
    x, y = make_digits(count, size=SIZE, seed=seed, fonts=fonts)
    negative = generator(seed, "negatives").random(count) < 0.5
    return np.where(negative[:, None], 1 - x, x), y


def _losses(train: list[float], tests: dict[str, list[float]]) -> Figure:
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        rounds = np.arange(1, len(train) + 1)
        axes.plot(rounds, train, color=INK, linewidth=1, label="while learning")
        for name, losses in tests.items():
            axes.plot(rounds, losses, label=name)
        axes.set(xlabel="round", ylabel="nats per picture", yscale="log")
        axes.grid(axis="y")
        axes.legend()
    return figure


def _mistakes(model: Classifier, x: Array, y: Array) -> Figure | None:
    said = model.predict(x)
    wrong = np.flatnonzero(said != y)[:12]
    if not len(wrong):
        return None
    titles = [f"{y[place]} as {said[place]}" for place in wrong]
    return gallery(x[wrong].reshape(-1, SIZE, SIZE), 12, titles=titles, low=0, high=1, width=WHOLE[0])
