"""The next word from the few before it: a network with a window (Bengio et al. 2003), and counts to compare it with.

    model = NextWord(epochs=3, seed=1).fit(bundled_text())
    model.predict("I pray you, tell")        # the most probable words: [("me", 0.42), ("you", 0.15), ...]
    model.perplexity(other_text)

Each word of the window becomes a vector, learned like everything else; the vectors side by side go through a layer of
tanh to one logit for each word of the vocabulary. Words that are used alike get vectors that are alike, which counts of
words cannot have.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Self

import numpy as np

from rhapsode.base.errors import InputError, shown
from rhapsode.foundations.estimator import Array, Estimator, check_array, check_number, check_words
from rhapsode.foundations.layers import Dense, Dropout, Embedding, Flatten, Layer, Tanh, softmax
from rhapsode.foundations.network import Adam, History, Network, check_size

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[.,;:!?]")
UNKNOWN = "<unknown>"
"""The word that stands for all words outside the vocabulary, and before the beginning of a text: id 0."""

ROUNDS_OF_SHARES = 200  # of expectation-maximisation
MOST_COUNTED = 2_000_000  # words of a vocabulary, three of which fit into one whole number of 64 bits


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, and its punctuation marks, each a word."""
    return WORD.findall(text.lower())


def bundled_text() -> str:
    """The plays of Shakespeare that come with Rhapsode, 1.1 MB."""
    return (resources.files("rhapsode.corpus.examples") / "shakespeare.txt").read_text(encoding="utf-8")


class NextWord(Estimator):
    """A network that tells the next word from a window of words.

    Args:
        window: so many words are seen.
        dimension: of the vector of a word.
        hidden: units of tanh.
        vocabulary_size: the most frequent words are kept, at most so many with `UNKNOWN`.
        dropout: the share of hidden units left out in training.
        learning_rate: of Adam.
        batch_size: words in a step.
        epochs: times the text is read, at most.
        patience: stop when so many epochs in a row were no better on the last part of the text; None never stops.
        validation: that part's share of the text, where there is `patience`; it is not trained on.
        seed: of all random numbers.

    Attributes:
        words_: the vocabulary, the more frequent first; the position of a word is its id.
        network_: the `Network`.
        history_: of the last `fit`.
    """

    learned = ("words_", "network_")

    def __init__(
        self,
        *,
        window: int = 4,
        dimension: int = 32,
        hidden: int = 128,
        vocabulary_size: int = 2000,
        dropout: float = 0.0,
        learning_rate: float = 2e-3,
        batch_size: int = 256,
        epochs: int = 5,
        patience: int | None = None,
        validation: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.window = check_number("window", window, least=1, whole=True)
        self.dimension = check_number("dimension", dimension, least=1, whole=True)
        self.hidden = check_number("hidden", hidden, least=1, whole=True)
        self.vocabulary_size = check_number("vocabulary_size", vocabulary_size, least=2, whole=True)
        self.dropout = check_number("dropout", dropout, least=0, below=1)
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.batch_size = check_number("batch_size", batch_size, least=1, whole=True)
        self.epochs = check_number("epochs", epochs, least=1, whole=True)
        self.patience = patience if patience is None else check_number("patience", patience, least=1, whole=True)
        self.validation = check_number("validation", validation, above=0, below=1)

    def fit(self, x: str, y: None = None) -> Self:
        """Learn from a text, from scratch.

        Raises:
            InputError: it is no text of two words or more, or `validation` leaves nothing to train on.
        """
        words, validation = _words("x", x), None
        kept = 0 if self.patience is None else max(1, round(self.validation * len(words)))
        if kept == len(words):
            raise InputError("leaves nothing to train on", where="validation", todo="Give a longer text.")
        self._build(_vocabulary(words, self.vocabulary_size))
        ids = self.ids(words)
        if kept:
            validation = self._examples(ids, start=len(ids) - kept)
            ids = ids[:-kept]
        self.history_ = self._fit(ids, self.epochs, validation)
        return self

    def partial_fit(self, x: str, y: None = None) -> Self:
        """Read a text once more, or another with the same vocabulary; the first call is `fit` with one epoch.

        Raises:
            InputError: it is no text of two words or more.
        """
        words = _words("x", x)
        if not self.fitted:
            self._build(_vocabulary(words, self.vocabulary_size))
        self.history_ = self._fit(self.ids(words), 1, None)
        return self

    def ids(self, words: Sequence[str]) -> Array:
        """The ids of words, (words,); 0 where one is outside the vocabulary.

        Raises:
            InputError: they are no list of strings.
        """
        self.check_fitted()
        return np.array([self._id_of.get(word, 0) for word in check_words("words", words)], dtype=np.int64)

    def predict_proba(self, x: str) -> Array:
        """The probability of each word after the text `x`: (vocabulary,), in the order of `words_`.

        Only the last `window` words count.

        Raises:
            InputError: it is no text.
        """
        self.check_fitted()
        return self._chances(words_of(_text("x", x)))

    def predict(self, x: str, count: int = 5) -> list[tuple[str, float]]:
        """The `count` most probable words after the text `x`, with their probabilities; `UNKNOWN` is not among them.

        Raises:
            InputError: it is no text, or `count` no whole number from 1 on.
        """
        check_number("count", count, least=1, whole=True)
        likely = self.predict_proba(x)
        order = [int(word) for word in np.argsort(-likely, kind="stable") if word]
        return [(self.words_[word], float(likely[word])) for word in order[:count]]

    def score(self, x: str, y: None = None) -> float:
        """The mean log-probability of the words of the text `x`, in nats: the higher the better.

        Raises:
            InputError: it is no text of two words or more.
        """
        self.check_fitted()
        return -self.network_.mean_loss(*self._examples(self.ids(_words("x", x))))

    def perplexity(self, x: str) -> float:
        """exp(-score): among how many equally likely words it is as hard to tell the next."""
        return math.exp(-self.score(x))

    def write(self, x: str, count: int, *, temperature: float = 1.0, seed: int | None = None) -> str:
        """`count` more words after `x`, each drawn by its probability to the power of 1 / temperature.

        Args:
            seed: of this text, if not the estimator's.

        Raises:
            InputError: an argument is not that; the message names it.
        """
        self.check_fitted()
        check_number("count", count, least=1, whole=True)
        temperature = check_number("temperature", temperature, above=0)
        words, random = words_of(_text("x", x)), self.random("writing", seed=seed)
        for _ in range(count):
            logarithms = np.log(np.maximum(self._chances(words).astype(np.float64), 1e-300))
            logarithms[0] = -np.inf  # nobody can read UNKNOWN
            words.append(self.words_[int(random.choice(len(logarithms), p=softmax(logarithms / temperature)))])
        return re.sub(r" ([.,;:!?])", r"\1", " ".join(words))

    def transform(self, x: Sequence[str]) -> Array:
        """The vectors of words of the vocabulary: (words, dimension).

        Raises:
            InputError: they are no list of words, or one is not in it.
        """
        self.check_fitted()
        ids = [self._id(word, f"x[{place}]") for place, word in enumerate(check_words("x", x))]
        return self.network_.layers[0].parameters["weight"][np.array(ids, dtype=np.int64)]

    def nearest(self, word: str, count: int = 5) -> list[tuple[str, float]]:
        """The words whose vectors have the largest cosine with that of `word`, and the cosines.

        Raises:
            InputError: the word is not in the vocabulary, or `count` no whole number from 1 on.
        """
        self.check_fitted()
        check_number("count", count, least=1, whole=True)
        own, vectors = self._id(word, "word"), self.network_.layers[0].parameters["weight"]
        cosines = vectors @ vectors[own] / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[own]) + 1e-12)
        order = [int(place) for place in np.argsort(-cosines, kind="stable") if place not in (0, own)]
        return [(self.words_[place], float(cosines[place])) for place in order[:count]]

    def _id(self, word: str, where: str) -> int:
        number = self._id_of.get(word) if isinstance(word, str) else None
        if number is None:
            raise InputError(f"the word {shown(word)} is not in the vocabulary", where=where)
        return number

    def _chances(self, words: Sequence[str]) -> Array:
        """The probability of each word of the vocabulary after these: (vocabulary,)."""
        last = self.ids(words[-self.window :])
        window = np.concatenate([np.zeros(self.window - len(last), dtype=np.int64), last])
        result: Array = softmax(self.network_.forward(window[None]))[0]
        return result

    def _examples(self, ids: Array, start: int = 0) -> tuple[Array, Array]:
        """The windows (words, window) before each word from `start` on, and those words (words,)."""
        padded = np.concatenate([np.zeros(self.window, dtype=np.int64), ids])
        windows = np.lib.stride_tricks.sliding_window_view(padded[:-1], self.window)
        return windows[start:], ids[start:]

    def _build(self, words: list[str]) -> None:
        self.words_ = words
        self._id_of = {word: number for number, word in enumerate(words)}
        layers: list[Layer] = [Embedding(len(words), self.dimension), Flatten()]
        layers += [Dense(self.window * self.dimension, self.hidden), Tanh()]
        if self.dropout:
            layers.append(Dropout(self.dropout))
        layers.append(Dense(self.hidden, len(words)))
        self.network_ = Network(layers, seed=self.seed)
        self._optimizer = Adam(self.learning_rate)

    def _fit(self, ids: Array, epochs: int, validation: tuple[Array, Array] | None) -> History:
        x, y = self._examples(ids)
        return self.network_.fit(
            x,
            y,
            optimizer=self._optimizer,
            epochs=epochs,
            batch_size=self.batch_size,
            validation=validation,
            patience=self.patience if validation else None,
        )

    def _state(self) -> dict[str, Any]:
        return {"words_": self.words_, "epochs": self.network_.epochs, **self.network_.parameters}

    def _restore(self, state: Mapping[str, Any]) -> None:
        values = dict(state)
        words, epochs = values.pop("words_"), values.pop("epochs")
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) for word in words)
            or len(set(words)) < len(words)
        ):
            raise InputError("are no words", where="words_")
        widths = self.window * self.dimension, self.hidden, len(words)
        check_size(values, widths, more=len(words) * self.dimension)
        self._build(words)
        arrays = {name: check_array(name, value, np.shape(value)) for name, value in values.items()}
        self.network_.set_parameters(arrays)
        self.network_.epochs = check_number("epochs", epochs, least=0, whole=True)


class CountedWords:
    """The next word from counts of one, two and three words, mixed: what there was before the network.

    P(w | u v) = l0 / V + l1 n(w) / n + l2 n(v w) / n(v) + l3 n(u v w) / n(u v), with shares l that sum to 1 and that
    make held-out words most probable, by expectation-maximisation (Jelinek and Mercer 1980). After words that were
    never counted together, fewer of them have to do.

    Args:
        ids: (words,), whole numbers below `vocabulary`, to count.
        held_out: (words,), to choose the shares by.
    """

    def __init__(self, ids: Array, held_out: Array, vocabulary: int) -> None:
        self.vocabulary = check_number("vocabulary", vocabulary, least=1, most=MOST_COUNTED, whole=True)
        ids = self._checked("ids", ids)
        self._counts = [np.unique(self._runs(ids, length), return_counts=True) for length in (1, 2, 3)]
        self._contexts = [np.unique(self._runs(ids[:-1], length), return_counts=True) for length in (1, 2)]
        self._words = len(ids)
        parts = self._parts(self._checked("held_out", held_out))
        self.shares = np.full(len(parts), 1 / len(parts))
        for _ in range(ROUNDS_OF_SHARES):
            taken = self.shares[:, None] * parts
            self.shares = (taken / taken.sum(axis=0)).mean(axis=1)

    def perplexity(self, ids: Array) -> float:
        """Of the words `ids` (words,), from the third on."""
        return float(np.exp(-np.log(self.shares @ self._parts(self._checked("ids", ids))).mean()))

    def _parts(self, ids: Array) -> Array:
        """What each of the four says of each word from the third on: (4, words - 2)."""
        parts = [np.full(len(ids) - 2, 1 / self.vocabulary)]
        for length in (1, 2, 3):
            seen = _found(self._counts[length - 1], self._runs(ids, length)[3 - length :])
            context = np.full(len(seen), self._words)
            if length > 1:
                context = _found(self._contexts[length - 2], self._runs(ids[:-1], length - 1)[3 - length :])
            parts.append(np.where(context > 0, seen / np.maximum(context, 1), parts[-1]))
        return np.stack(parts)

    def _checked(self, name: str, ids: Array) -> Array:
        ids = check_array(name, ids, ("words",), "whole", below=self.vocabulary)
        if len(ids) < 3:
            raise InputError("has fewer than three words", where=name, todo="Give more.")
        return ids

    def _runs(self, ids: Array, length: int) -> Array:
        """Each run of `length` words as one number."""
        runs = np.lib.stride_tricks.sliding_window_view(ids, length)
        result: Array = runs @ self.vocabulary ** np.arange(length)
        return result


def _found(counted: tuple[Array, Array], runs: Array) -> Array:
    known, counts = counted
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return np.where(known[places] == runs, counts[places], 0)


def _vocabulary(words: Sequence[str], size: int) -> list[str]:
    frequent = sorted(Counter(words).items(), key=lambda each: (-each[1], each[0]))
    return [UNKNOWN, *(word for word, _ in frequent[: size - 1])]


def _text(name: str, text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"is {type(text).__name__} and no text", where=name, todo="Give a string.")
    return text


def _words(name: str, text: str) -> list[str]:
    words = words_of(_text(name, text))
    if len(words) < 2:
        raise InputError("holds fewer than two words", where=name, todo="Give a longer text.")
    return words
