"""From associative memory to attention: the same numbers through each, up to a block of a transformer.

rhapsode foundations attention
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from matplotlib.figure import Figure

from rhapsode.base.drawing import FIRST, SECOND, drawing
from rhapsode.base.errors import RhapsodeError
from rhapsode.base.random import generator
from rhapsode.foundations.demonstrations.letters import letters
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.hopfield import Hopfield
from rhapsode.foundations.hopfield_capacity import random_patterns
from rhapsode.foundations.layers import (
    Attention,
    Layer,
    Residual,
    named,
    scaled_dot_product_attention,
    transformer_block,
)
from rhapsode.foundations.modern_hopfield import ModernHopfield
from rhapsode.foundations.page import HALF, WHOLE

if TYPE_CHECKING:
    from rhapsode.foundations.page import Page

WORD, SIDE = "RHAPSODE", 8
WIDTH, HEADS, HIDDEN = SIDE * SIDE, 4, 128
SCALE = WIDTH**-0.5
SHOWN = slice(27, 30)
TOLERANCE = 1e-10
"""How far numbers that are the same may be apart: all are computed in double precision."""


class Transformer(Protocol):
    """A transformer of other code, with the same numbers. It is handed in, for this room stands on `base` alone."""

    name: str

    def attend(self, query: Array, key: Array, value: Array, scale: float) -> Mapping[str, Array]:
        """softmax(q k' scale) v of (to, width), (from, width) and (from, width), by each way there is to compute it."""
        ...

    def block(self, parameters: Mapping[str, Array], x: Array, heads: int, *, causal: bool) -> Mapping[str, Array]:
        """What x (time, width) is after each part of a block, by the names of `block_parts`.

        Args:
            parameters: of `transformer_block`, as `named` names them.
        """
        ...


@dataclass(frozen=True)
class Step:
    """One thing, computed in several ways."""

    what: str
    ways: Mapping[str, Array]
    """By the name of the code, numbers of one shape."""

    @property
    def gap(self) -> float:
        """The largest difference between any of the ways and the first."""
        first, *others = self.ways.values()
        return float(np.max([np.abs(other - first).max() for other in others], initial=0.0))


def walk(seed: int, transformer: Transformer | None = None) -> list[Step]:
    """The same letters through every stage from associative memory to a transformer block.

    Raises:
        RhapsodeError: ways to compute the same thing do not agree.
    """
    x = letters(WORD, SIDE)  # (time, width): what is stored, and what is read
    damaged = _damaged(x)
    others = transformer.attend(damaged, x, x, SCALE) if transformer is not None else {}
    steps = [
        _old_memory(x, damaged),
        Step(
            "The modern memory updates the damaged letters once",
            {
                "ModernHopfield": ModernHopfield(beta=SCALE).fit(x).predict(damaged),
                "scaled_dot_product_attention": scaled_dot_product_attention(damaged, x, x)[0],
                **others,
            },
        ),
        *_attention_layers(x, seed, transformer),
        *_block(x, seed, transformer),
    ]
    for step in steps:
        if not step.gap <= TOLERANCE:
            raise RhapsodeError(f"{' and '.join(step.ways)} differ by {step.gap:.1e}", where=step.what)
    return steps


def _damaged(x: Array) -> Array:
    """Letters whose lower half is blank."""
    damaged = x.reshape(-1, SIDE, SIDE).copy()
    damaged[:, SIDE // 2 :] = -1
    return damaged.reshape(x.shape)


def _old_memory(x: Array, damaged: Array) -> Step:
    """Hebb's weights need not exist: their field is a sum of the patterns, each as strong as it fits."""
    scores = damaged @ x.T / WIDTH  # (queries, patterns)
    # The diagonal of the weights, which the network leaves out, is what every unit would tell itself.
    return Step(
        "The field of the damaged letters in the memory of 1982",
        {
            "Hopfield": Hopfield().fit(x).field(damaged),
            "the patterns, weighted by their scores": scores @ x - len(x) / WIDTH * damaged,
        },
    )


def _attention_layers(x: Array, seed: int, transformer: Transformer | None) -> list[Step]:
    """Attention whose matrices do nothing is the memory; else it is one memory for each head."""
    plain, several = Attention(WIDTH, 1), Attention(WIDTH, HEADS, causal=True)
    for layer in (plain, several):
        layer.initialize(generator(seed, "attention"), np.float64)
    for name, parameter in plain.parameters.items():
        parameter[...] = np.eye(WIDTH) if name.endswith("weight") else 0
    itself = transformer.attend(x, x, x, SCALE) if transformer is not None else {}
    return [
        Step(
            "Every letter looks at all letters: a layer of attention that has learned nothing",
            {"ModernHopfield": ModernHopfield(beta=SCALE).fit(x).predict(x), "Attention": _one(plain, x), **itself},
        ),
        Step(
            f"{HEADS} heads, and nobody sees what comes later: {HEADS} memories that grow by a letter at a time",
            {"ModernHopfield": _growing_memories(several.parameters, x), "Attention": _one(several, x)},
        ),
    ]


def _growing_memories(parameters: Mapping[str, Array], x: Array) -> Array:
    """Causal attention (time, width): of each head a memory, which stores a token before it is asked for it."""
    query, key, value = (x @ parameters[f"{n}.weight"] + parameters[f"{n}.bias"] for n in ("query", "key", "value"))
    heads = np.split(np.arange(WIDTH), HEADS)
    memories = [ModernHopfield(beta=(WIDTH // HEADS) ** -0.5) for _ in heads]
    read = np.empty_like(x)
    for time in range(len(x)):
        here = slice(time, time + 1)
        for memory, head in zip(memories, heads, strict=True):
            memory.partial_fit(key[here, head], value[here, head])
            read[here, head] = memory.predict(query[here, head])
    return read @ parameters["output.weight"] + parameters["output.bias"]


def _block(x: Array, seed: int, transformer: Transformer | None) -> list[Step]:
    """A whole block: each part on what the part before it made."""
    layers = transformer_block(WIDTH, HEADS, HIDDEN)
    for place, layer in enumerate(layers):
        layer.initialize(generator(seed, "block", place), np.float64)
    parameters = named(layers, "parameters")
    random = generator(seed, "gains and biases")
    for parameter in parameters.values():
        if parameter.ndim == 1:  # they begin as ones and zeros, which would hide a mistake
            parameter[...] += 0.1 * random.standard_normal(parameter.shape)
    ours = block_parts(layers, x)
    attention = {name.removeprefix("0.1."): array for name, array in parameters.items() if name.startswith("0.1.")}
    memories = {"ModernHopfield": _growing_memories(attention, ours["norm"])}
    theirs = transformer.block(parameters, x, HEADS, causal=True) if transformer is not None else {}
    titles = {
        "norm": "A block: every letter to mean 0 and variance 1",
        "attention": "A block: what its attention reads",
        "after attention": "A block: that, added to the letters",
        "feed-forward": "A block: what its feed-forward makes of it",
        "output": "A block: all of it",
    }
    return [
        Step(
            title,
            (memories if part == "attention" else {})
            | {"transformer_block": ours[part]}
            | ({transformer.name: theirs[part]} if transformer is not None else {}),
        )
        for part, title in titles.items()
    ]


def block_parts(layers: Sequence[Layer], x: Array) -> dict[str, Array]:
    """What x (time, width) is after each part of a `transformer_block`, each (time, width)."""
    first, second = layers
    assert isinstance(first, Residual)
    assert isinstance(second, Residual)
    norm, attention = first.layers
    normed = norm.forward(x[None])  # (1, time, width)
    read = attention.forward(normed)
    after = first.forward(x[None])
    fed = after
    for layer in second.layers:
        fed = layer.forward(fed)
    parts = {"norm": normed, "attention": read, "after attention": after, "feed-forward": fed}
    return {name: part[0] for name, part in {**parts, "output": second.forward(after)}.items()}


def _one(attention: Attention, x: Array) -> Array:
    return np.asarray(attention.forward(x[None])[0])


def demonstrate(page: Page, *, seed: int, quick: bool = False, transformer: Transformer | None = None) -> None:
    """Add the way from associative memory to a transformer block.

    Args:
        quick: seconds, with fewer patterns.
        transformer: other code, through which the same numbers go as well.
    """
    x = letters(WORD, SIDE)
    page.section("A memory that looks its patterns up")
    page.paragraph(
        """Hopfield's network stores patterns in the connections between its units. Written out, the pull that a unit
        feels is a sum over the patterns: each is compared with the present state, which gives a score, and each adds
        itself as strongly as it fits. The connections need not exist; patterns and scores are enough. That the scores
        count as they are is its weakness: with many patterns, the many that fit a little outvote the one that fits."""
    )
    page.formula(
        r"h = W q = \frac{1}{N} \sum_m (x_m \cdot q) \, x_m \qquad \longrightarrow \qquad "
        r"q' = \sum_m \mathrm{softmax}_m (\beta \, x_m \cdot q) \, x_m",
        "q is the state, or query; x are the patterns. Left: 1982. Right: 2021 (Ramsauer et al.).",
    )
    page.paragraph(
        """Softmax cures that. It makes weights of the scores that sum to 1, and lets the best one stand out, the more
        the larger beta is. Now the memory holds not a few patterns for every ten units, but a number that grows
        exponentially with the units, and finds one in a single update. Its states are any numbers, no longer signs."""
    )
    page.figure(
        _capacity(seed, quick), "Random patterns in 64 units, 6 of them turned over, read once.", name="capacity"
    )
    page.figure(_energies(x), "Each letter with its lower half blank, updated again and again.", name="energy")
    page.figure(
        [_sharpened(x, beta) for beta in np.geomspace(0.005, 3, 5 if quick else 16)],
        "Half an A is read, from a mean of all letters (beta near 0) to the one that fits best.",
        name="beta",
    )
    page.section("The same thing, called attention")
    page.paragraph(
        f"""Call the state a query, let the patterns be keys, and let each key have a value of its own to be read. Let
        beta be 1 / sqrt(width), here {SCALE:g}. The formula of the memory is now, letter for letter, that of attention
        in a transformer. There queries, keys and values are made of the same tokens by three learned matrices, so that
        what is stored, and what is asked, is learned too. A head is one such memory. A model that writes reads its
        tokens in order, and may not look ahead: its memory grows by one pattern with each token, and that is what is
        kept as the cache of keys and values."""
    )
    page.formula(
        r"\mathrm{Attention}(Q, K, V) = \mathrm{softmax} \left( \frac{Q K^T}{\sqrt{d}} \right) V",
        "Vaswani et al. 2017. Rows of Q are queries, rows of K patterns, rows of V what is read; d is their width.",
    )
    page.table(
        ["in the memory", "in the transformer"],
        [
            ("state", "query"),
            ("stored pattern", "key"),
            ("what is read where a pattern is found", "value"),
            ("beta, the inverse temperature", "1 / sqrt(head_dim)"),
            ("one update", "one layer of attention"),
            ("storing one pattern more", "the cache of keys and values, one token longer"),
            ("a memory for each kind of question", "heads"),
        ],
    )
    page.section("The same numbers, all the way")
    page.paragraph(
        f"""The {len(WORD)} letters of {WORD}, {SIDE} x {SIDE} pixels each, are tokens of width {WIDTH} now. They go
        through every stage, each computed in several ways by code that does not know of each other. The memory, the
        attention layer of this room, and the transformer that `rhapsode train` trains agree to the last digits of
        double precision. The demonstration would end with an error if they did not."""
    )
    steps = walk(seed, transformer)
    page.table(
        ["what is computed", "by", "some of it", "largest difference"],
        [row for step in steps for row in _rows(step)],
        "Three of the numbers, of the first letter, and the largest difference between any two ways anywhere in them.",
    )
    page.fact("Stages from memory to block", str(len(steps)), "each computed in two ways or more")
    page.fact("Largest difference", f"{max(step.gap for step in steps):.0e}", "anywhere on the way")
    page.paragraph(
        """What a block adds to the memory is little: the letters are brought to one size before they are looked up (the
        norm), what was read is added to what was there (the residual stream), and a network of two layers, the kind
        that learns to read digits, works on every token for itself (the feed-forward). A transformer is a stack of
        these."""
    )


def _capacity(seed: int, quick: bool) -> Figure:
    counts = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, *([] if quick else [2000, 5000, 10_000, 20_000])]
    shares: dict[str, list[float]] = {"1982": [], "softmax, beta = 1": [], "softmax, beta = 1/8": []}
    for count in counts:
        x = random_patterns(count, WIDTH, seed=seed)
        asked = x[:1000]
        order = np.argsort(generator(seed, "damage", count).random(asked.shape), axis=1)
        damaged = np.where(order < 6, -asked, asked)
        read = [
            Hopfield().fit(x).step(damaged),
            *(np.sign(ModernHopfield(beta=beta).fit(x).predict(damaged)) for beta in (1, SCALE)),
        ]
        for share, states in zip(shares.values(), read, strict=True):
            share.append(100 * float(np.mean((states == asked).all(axis=1))))
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        for name, share in shares.items():
            axes.plot(counts, share, marker="o", markersize=4, label=name)
        axes.set(xscale="log", xlabel="patterns", ylabel="% read without an error", ylim=(-3, 103))
        axes.grid(axis="y")
        axes.legend(loc="center", bbox_to_anchor=(0.5, 0.5))
    return figure


def _energies(x: Array, updates: int = 8) -> Figure:
    memory = ModernHopfield(beta=0.05).fit(x)
    state, energies = _damaged(x), []
    for _ in range(updates + 1):
        energies.append(memory.energy(state))
        state = memory.step(state)
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(np.stack(energies), color=FIRST, linewidth=1.2)
        axes.set(xlabel="updates, with beta = 0.05", ylabel="energy")
        axes.grid(axis="y")
    return figure


def _sharpened(x: Array, beta: float) -> Figure:
    asked = WORD.index("A")
    query = _damaged(x)[asked : asked + 1]
    memory = ModernHopfield(beta=float(beta)).fit(x)
    with drawing():
        figure = Figure(figsize=WHOLE, layout="constrained")
        before, weights, after = figure.subplots(1, 3, width_ratios=[1, 1.6, 1])
        for axes, picture, title in ((before, query, "query"), (after, memory.predict(query), "what is read")):
            axes.imshow(picture.reshape(SIDE, SIDE), vmin=-1, vmax=1)
            axes.set_title(title)
            axes.axis("off")
        bars = weights.bar(list(WORD), memory.transform(query)[0], color=FIRST)
        bars[asked].set_color(SECOND)
        weights.set(ylim=(0, 1), title=f"weights, beta = {beta:.3f}")
        weights.grid(axis="y")
    return figure


def _rows(step: Step) -> list[tuple[str, str, str, str]]:
    """Three pixels of the first letter by each way; what it is, and the largest difference, stand in the first row."""
    shown = [(way, ",\u00a0".join(f"{number:.4f}" for number in array[0, SHOWN])) for way, array in step.ways.items()]
    gaps = [f"{step.gap:.0e}" if step.gap else "0"]
    return [(what, *row, gap) for what, row, gap in itertools.zip_longest([step.what], shown, gaps, fillvalue="")]
