"""`rhapsode foundations words`: vectors of the words of Shakespeare, from the counts that they come from to a map."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rhapsode.base.correlation import spearman
from rhapsode.base.drawing import COLOURS, SOFT, drawing
from rhapsode.base.random import generator
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.next_word import bundled_text
from rhapsode.foundations.page import HALF, Page
from rhapsode.foundations.skip_gram import SkipGram, sentences_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {
    "family": ("father", "mother", "brother", "sister", "son", "daughter"),
    "rank": ("king", "queen", "prince", "duke", "lord", "crown"),
    "body": ("eyes", "face", "hand", "tongue", "lips", "heart"),
    "war": ("sword", "blood", "battle", "fight", "arms", "enemies"),
}
SHOWN = ("king", "father", "love", "death", "night", "sword", "tongue", "money")
NEIGHBOURS = 6
LEAST_COUNT = 8  # of a pair whose mutual information is looked at: that of rarer ones is chance
DOTS = 1200

SPEAKER = re.compile(r"^[^\n:]+:\n", re.MULTILINE)


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Train on the bundled plays, and show what the vectors hold."""
    text = SPEAKER.sub("", bundled_text())  # who speaks is not what is said
    sentences = list(sentences_of(text[: 300_000 if quick else None]))
    epochs = 4 if quick else 15
    model = SkipGram(subsample=1e-4, epochs=epochs, learning_rate=0.05, seed=seed)
    shown = [word for words in GROUPS.values() for word in words]
    states: list[Array] = []

    def watch(learning: SkipGram) -> None:
        shown[:] = [word for word in shown if word in learning]
        states.append(learning.transform(shown))

    model.fit(sentences, after_epoch=watch)
    learned, expected = _scores(model, sentences)
    agreement = spearman(learned, expected)
    page.fact("Text", f"{sum(map(len, sentences)):,}", "words of Shakespeare")
    page.fact("Vocabulary", f"{len(model.words_):,}", f"words that stand there {model.min_count} times or more")
    page.fact("Loss", f"{model.losses_[-1]:.3f}", f"nats a pair, {model.losses_[0]:.3f} in the first epoch")
    if agreement is not None:
        page.fact("Agreement with counts", f"{agreement:.2f}", "rank correlation of v · u with mutual information")

    found, by_chance = _kinds(shown, states[-1])
    chance = f"by chance {100 * by_chance:.0f} %"
    page.fact("Of one kind", f"{100 * found:.0f} %", f"of the nearest words on the map; {chance}")

    page.section("You shall know a word by the company it keeps")
    page.paragraph(
        f"""Each word has two vectors of {model.dimension} numbers: v for the word itself, and u for the word as company
        of another. The network is as small as a network can be: a word goes in, its v is looked up, and the dot
        product with the u of another word says how likely the two stand within {model.window} words of each other.
        It learns by telling pairs from the text apart from pairs with {model.negatives} words drawn at random. Nobody
        tells it what a word means."""
    )
    page.formula(
        r"\log\,\sigma(v_w \cdot u_c) + \sum_{i=1}^{K} \log\,\sigma(-v_w \cdot u_{n_i})",
        "made as large as it can be: for a word w, a word c near it, and K words n drawn at random",
    )
    page.figure(_loss(model), "The loss, averaged over each reading of the text.", name="loss")
    page.figure(
        _film(shown, states),
        "Words of four kinds after each reading, on the plane in which they lie furthest apart at the end. They start "
        "as a knot, for the first vectors are random, and gather by kind: "
        f"{', '.join(GROUPS)}. Press a dot to stop at a reading.",
        name="map",
    )

    page.section("What the vectors have learnt are counts")
    page.paragraph(
        """Where this leads is known (Levy and Goldberg 2014). If the vectors had as many numbers as there are words,
        the best dot product of a pair would be its pointwise mutual information, how much more often the two stand
        together than chance would have it, less a constant. That could be counted without any network. The vectors
        hold the same table in far fewer numbers, so words that keep similar company have to share them, and that is
        why similar words end up near each other."""
    )
    page.formula(
        r"v_w \cdot u_c \;\approx\; \log \frac{\#(w, c)}{\#(w)\,P(c)} - \log K",
        "#: how often in the text; P(c): how often c is drawn at random",
    )
    page.figure(
        _dots(learned, expected, seed),
        f"Pairs of words that stand together {LEAST_COUNT} times or more: what their counts ask for, and the dot "
        "product that was learnt. On the line both are the same.",
        name="counts",
    )

    page.section("Nearest words")
    page.paragraph(
        """The cosine of the angle between two v says how alike the company of two words is. Two words need not ever
        stand together to be alike. A million letters are little: the neighbours of frequent words make sense, those
        of rare words are the names of one scene. Sixty times as much text gives better ones (docs/foundations_words.md
        has the figures). A transformer begins with such a table too, its embedding. What it adds is that the vector of
        a word changes with the words around it, and how that is done is the last of these pages."""
    )
    page.table(
        ("word", "nearest words"),
        [(word, ", ".join(near for near, _ in model.nearest(word, NEIGHBOURS))) for word in SHOWN if word in model],
    )


def _scores(model: SkipGram, sentences: Sequence[Sequence[str]]) -> tuple[Array, Array]:
    """For pairs of words that are frequent, the learned v . u and what counts ask for, each (pairs,)."""
    row = {word: number for number, word in enumerate(model.words_)}
    size, window = len(row), model.window
    numbered = [np.array([row[word] for word in sentence if word in row], dtype=np.int64) for sentence in sentences]
    # At distance d a pair is met when the reach is d or more: in (window - d + 1) of `window` cases, from either side.
    codes, shares = [], []
    for distance in range(1, window + 1):
        ahead = np.concatenate([words[:-distance] for words in numbered])
        behind = np.concatenate([words[distance:] for words in numbered])
        codes += [ahead * size + behind, behind * size + ahead]
        shares += [(window - distance + 1) / window] * 2
    pairs, which = np.unique(np.concatenate(codes), return_inverse=True)
    together = np.bincount(which, weights=np.repeat(shares, [len(code) for code in codes]))
    w, c = np.divmod(pairs, size)
    rarity = model.subsample * model.counts_.sum() / model.counts_
    kept = np.minimum(1.0, np.sqrt(rarity) + rarity)  # both words of a pair have to be kept
    met = together * kept[w] * kept[c]
    drawn = model.counts_**0.75 / (model.counts_**0.75).sum()
    expected = np.log(met / (np.bincount(w, weights=met)[w] * drawn[c])) - np.log(model.negatives)
    frequent = together >= LEAST_COUNT
    learned = (model.vectors_[w[frequent]] * model.outputs_[c[frequent]]).sum(axis=1)
    return learned.astype(np.float64), expected[frequent]


def _kinds(words: Sequence[str], vectors: Array) -> tuple[float, float]:
    """Of the nearest words to each word, the share that is of its kind, and that share where the order is chance.

    As many nearest ones are taken as there are others of its kind.
    """
    kind = np.array([next(n for n, group in enumerate(GROUPS.values()) if word in group) for word in words])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    found, chance = [], []
    for row, others in enumerate((kind == kind[:, None]).sum(axis=1) - 1):
        nearest = np.argsort(-cosines[row], kind="stable")[:others]
        found.append((kind[nearest] == kind[row]).mean() if others else 0.0)
        chance.append(others / (len(words) - 1))
    return float(np.mean(found)), float(np.mean(chance))


def _loss(model: SkipGram) -> Figure:
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y")
        axes.plot(range(1, len(model.losses_) + 1), model.losses_, marker="o", markersize=3.5)
        axes.set_xlabel("reading of the text")
        axes.set_ylabel("nats a pair")
    return figure


def _film(words: Sequence[str], states: Sequence[Array]) -> list[Figure]:
    """Vectors (words, dimension) at length one after each epoch, on the first two principal components of the last."""
    from matplotlib.figure import Figure

    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in states]
    middle = units[-1].mean(axis=0)
    plane = np.linalg.svd(units[-1] - middle, full_matrices=False)[2][:2].T  # (dimension, 2)
    points = np.stack([(vectors - middle) @ plane for vectors in units])  # (epochs, words, 2)
    low, high = points[-1].min(axis=0), points[-1].max(axis=0)
    room = 0.15 * (high - low)
    colour_of = {word: colour for colour, group in zip(COLOURS, GROUPS.values(), strict=False) for word in group}
    frames = []
    with drawing():
        for epoch, places in enumerate(points, start=1):
            figure = Figure(figsize=HALF, layout="constrained")
            axes = figure.add_subplot()
            axes.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
            axes.set(xticks=[], yticks=[], title=f"reading {epoch}")
            axes.spines["bottom"].set_visible(False)
            for word, (x, y) in zip(words, places, strict=True):
                axes.text(x, y, word, color=colour_of[word], ha="center", va="center", clip_on=True)
            frames.append(figure)
    return frames


def _dots(learned: Array, expected: Array, seed: int) -> Figure:
    """Dots of some pairs, drawn at random, and the line on which both axes are equal."""
    from matplotlib.figure import Figure

    chosen = generator(seed, "dots").permutation(len(learned))[:DOTS]
    with drawing():
        figure = Figure(figsize=(HALF[0], 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.grid()
        axes.plot(
            expected[chosen], learned[chosen], linestyle="", marker="o", markersize=2.5, alpha=0.4, markeredgewidth=0
        )
        ends = np.array([expected[chosen].min(), expected[chosen].max()])
        axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle="--")
        axes.set_xlabel("mutual information - log K, in nats")
        axes.set_ylabel("v · u")
    return figure
