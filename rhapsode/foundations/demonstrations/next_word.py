"""The next word of Shakespeare's plays: a network with a window, beside counts of words.

The last part of the page that `rhapsode foundations digits` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from rhapsode.base.drawing import SECOND, drawing
from rhapsode.foundations.next_word import CountedWords, NextWord, bundled_text, words_of
from rhapsode.foundations.page import HALF

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

BEGINNINGS = ("I pray you, tell", "what say you to", "the king of", "I will not", "my lord, I do", "o, what a")
WORDS = ("king", "father", "she", "death", "romeo", "will", "sword", "good")


def demonstrate(page: Page, *, seed: int, quick: bool = False) -> None:
    """Add what a network with a window makes of the plays.

    Args:
        quick: seconds instead of a minute, with less to learn from.
    """
    text = bundled_text()[: 60_000 if quick else None]
    cut, end = (text.index("\n\n", int(len(text) * share)) for share in (0.90, 0.95))
    train, chosen, test = text[:cut], text[cut:end], text[end:]
    model = NextWord(dimension=48, dropout=0.2, vocabulary_size=500 if quick else 2000, epochs=1, seed=seed)
    curve: list[float] = []
    for _ in range(2 if quick else 5):
        curve.append(model.partial_fit(train).perplexity(chosen))
    ids = [model.ids(words_of(part)) for part in (train, chosen, test)]
    counts = CountedWords(ids[0], ids[1], len(model.words_))
    found, counted = model.perplexity(test), counts.perplexity(ids[2])
    page.fact("Perplexity of the next word", f"{found:.0f}", f"counts of three words: {counted:.0f}")

    page.section("The next word")
    page.paragraph(
        f"""The same machinery reads. Each of {len(model.words_):,} words gets a vector of {model.dimension} numbers, at
        first by chance. The vectors of the last {model.window} words, side by side, go through {model.hidden} hidden
        units to one output for each word, which says how likely it comes next. Errors go back the whole way, into the
        vectors too: words that are followed by the same words drift together. Bengio and others showed this in 2003,
        and a language model is still this, with a better middle."""
    )
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(range(1, len(curve) + 1), curve, marker="o", markersize=4, label="network")
        axes.axhline(counts.perplexity(ids[1]), color=SECOND, label="counts of three words")
        axes.set(xlabel="times the plays were read", ylabel="perplexity", xticks=range(1, len(curve) + 1))
        axes.grid(axis="y")
        axes.legend()
    page.figure(
        figure,
        "Perplexity on other pages: among how many equally likely words the next would be as hard to tell.",
        name="next-word",
    )
    page.table(
        ["after", "comes", "and the next likely"],
        [
            (f"{beginning} …", f"{word} ({chance:.0%})", " · ".join(f"{other} ({p:.0%})" for other, p in rest))
            for beginning in BEGINNINGS
            for (word, chance), *rest in [model.predict(beginning, 4)]
        ],
        "What the network expects after some beginnings.",
    )
    known = [word for word in WORDS if word in model.words_]
    page.table(
        ["word", "its nearest"],
        [(word, " · ".join(other for other, _ in model.nearest(word, 4))) for word in known],
        "Words whose vectors point the same way. Nobody told it what a verb or a name is.",
    )
    page.paragraph(
        f"""Counting how often three words stood together is the older way; mixed with counts of two and of one, and
        with the best shares, it gives a perplexity of {counted:.0f} on the last pages of the plays, the network
        {found:.0f}. Counts know nothing of a sentence that differs by one word from those they saw; vectors do. What
        neither can do is look further back than its window. That is what attention is for."""
    )
    page.paragraph(f"It writes, too: “{model.write('My lord', 25, temperature=0.7, seed=seed)} …”")
