"""Word vectors from the company that words keep: skip-gram with negative sampling (Mikolov et al. 2013).

    vectors = SkipGram(dimension=100, epochs=5).fit(sentences_of(text))
    vectors.nearest("king")
    vectors.predict([("man", "king", "woman")])      # man is to king as woman is to ...
    vectors.score([("tiger", "cat"), ...], [7.35, ...])    # agreement with people

A word's vector v and the vector u of a word near it are trained until sigma(v . u) tells pairs that stand together in
the text from pairs with a word drawn at random. Where that leads is known: v . u comes near to the pair's pointwise
mutual information less log(negatives), so the vectors are counts of pairs, folded into few numbers (Levy and Goldberg
2014).

The loop is compiled by Numba (`skip_gram_loop.py`), some seconds on the first use.
"""

from __future__ import annotations

import difflib
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from rhapsode.base.correlation import spearman
from rhapsode.base.errors import InputError, shown
from rhapsode.base.files import write_atomically
from rhapsode.base.progress import note
from rhapsode.foundations.estimator import Array, Bar, Estimator, check_array, check_number, check_words

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
LONGEST_SENTENCE = 10_000  # words; a longer one is taken as several
WORDS_AT_ONCE = 10_000  # words that one thread trains with one learning rate
SPELLINGS_COMPARED = 20_000
QUESTIONS_AT_ONCE = 256
EACH_WORD = "Each word must be a string."

Text = tuple[Array, Array]
"""Sentences as numbers of words: (words,) int32 one after another, (sentences + 1,) int64 where each begins."""


def sentences_of(text: str) -> Iterator[list[str]]:
    """The paragraphs of a text, each as its words in lower case: no word is near to one in another paragraph."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = WORD.findall(paragraph.lower())
        if words:
            yield words


class SkipGram(Estimator):
    """Word vectors that tell which words stand near to each other.

    For a word w, each word c not farther from it than a reach drawn from 1 to `window`, and K words n drawn with
    probability proportional to their count to the power of 3/4, it takes one step of gradient ascent on

        log sigma(v_w . u_c) + sum over n of log sigma(- v_w . u_n)

    (Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality", equation 4;
    a word n that is c is left out).

    Args:
        dimension: numbers in a vector.
        window: the farthest that two words near to each other may be apart.
        negatives: K, the words drawn at random for each pair.
        min_count: rarer words get no vector and are left out of the text.
        subsample: t; a word that is the share f of the text is kept with probability sqrt(t / f) + t / f, as in the
            code of word2vec. 0 keeps all.
        epochs: times the text is read.
        learning_rate: at the beginning; it falls in a line.
        final_learning_rate: at the end.
        threads: that train side by side on the same vectors. With one, a seed gives the same bits again; with more, no
            two runs are quite alike.
        seed: of all random numbers.

    Attributes:
        words_: the vocabulary, the most frequent word first.
        counts_: (vocabulary,) int64, how often each is in the text.
        vectors_: (vocabulary, dimension) float32, v: the word vectors.
        outputs_: (vocabulary, dimension) float32, u: those of words as company.
        losses_: the mean of what is maximised over each epoch, with a minus, in nats for each pair.
    """

    learned = ("words_", "counts_", "vectors_", "outputs_", "losses_")

    def __init__(
        self,
        *,
        dimension: int = 100,
        window: int = 5,
        negatives: int = 5,
        min_count: int = 5,
        subsample: float = 1e-3,
        epochs: int = 5,
        learning_rate: float = 0.025,
        final_learning_rate: float = 1e-4,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.dimension = check_number("dimension", dimension, least=1, whole=True)
        self.window = check_number("window", window, least=1, most=LONGEST_SENTENCE, whole=True)
        self.negatives = check_number("negatives", negatives, least=1, whole=True)
        self.min_count = check_number("min_count", min_count, least=1, whole=True)
        self.subsample = check_number("subsample", subsample, least=0)
        self.epochs = check_number("epochs", epochs, least=1, whole=True)
        self.learning_rate = check_number("learning_rate", learning_rate, above=0)
        self.final_learning_rate = check_number("final_learning_rate", final_learning_rate, above=0)
        self.threads = check_number("threads", threads, least=1, whole=True)

    def fit(
        self, x: Iterable[Sequence[str]], y: None = None, *, after_epoch: Callable[[Self], object] | None = None
    ) -> Self:
        """Learn from sentences, from scratch. They are gone through once, and kept as numbers.

        Args:
            x: sentences, each a list of words (`sentences_of` makes them of a text).
            after_epoch: called with this estimator after each epoch, to watch it learn.

        Raises:
            InputError: a sentence is no list of words, fewer than two words are frequent enough, there is no Numba, or
                the vectors grew beyond all measure.
        """
        text = self._build(x)
        rates = np.linspace(self.learning_rate, self.final_learning_rate, self.epochs + 1)
        with Bar("training", len(text[0]) * self.epochs, "words") as bar:
            for epoch in range(self.epochs):
                self._epoch(text, rates[epoch], rates[epoch + 1], bar)
                if after_epoch is not None:
                    after_epoch(self)
        return self

    def partial_fit(self, x: Iterable[Sequence[str]], y: None = None) -> Self:
        """Go through sentences once, at `learning_rate`, which does not fall. The first call chooses the vocabulary.

        Words outside the vocabulary are left out, and its counts stay as they are.

        Raises:
            InputError: as `fit`.
        """
        text = _numbered(_checked(x), self._row) if self.fitted else self._build(x)
        with Bar("training", len(text[0]), "words") as bar:
            self._epoch(text, self.learning_rate, self.learning_rate, bar)
        return self

    def transform(self, x: Sequence[str]) -> Array:
        """The vectors of words: (words, dimension) float32, of whatever length they are.

        Raises:
            InputError: they are no list of words, or one is not in the vocabulary; the message names words that are
                spelt alike.
        """
        self.check_fitted()
        rows = [self._row_of(word, f"x[{place}]") for place, word in enumerate(check_words("x", x))]
        found: Array = self.vectors_[np.array(rows, dtype=np.int64)]
        return found

    def nearest(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words whose vectors have the largest cosine with that of `word`, and the cosines.

        Raises:
            InputError: the word is not in the vocabulary, or `count` no whole number from 1 on.
        """
        self.check_fitted()
        check_number("count", count, least=1, whole=True)
        row = self._row_of(word, "word")
        units = _units(self.vectors_)
        cosines = units @ units[row]
        cosines[row] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(count, len(units) - 1)]
        return [(self.words_[place], float(cosines[place])) for place in order]

    def predict(self, x: Sequence[tuple[str, str, str]]) -> list[str]:
        """The word that completes each "a is to b as c is to ...": the nearest to b - a + c of unit vectors, a, b and c
        aside (Mikolov, Yih and Zweig 2013).

        Raises:
            InputError: they are no such questions, a word is not in the vocabulary, or it has fewer than four.
        """
        self.check_fitted()
        if len(self.words_) < 4:
            raise InputError("has fewer than four words", where="the vocabulary")
        units = _units(self.vectors_)
        answers: list[str] = []
        questions = _tuples(x, 3)
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            asked = questions[start : start + QUESTIONS_AT_ONCE]
            rows = np.array([[self._row_of(word, f"x[{start + n}]") for word in asked[n]] for n in range(len(asked))])
            a, b, c = rows.T
            cosines = (units[b] - units[a] + units[c]) @ units.T  # (questions, vocabulary)
            np.put_along_axis(cosines, rows, -np.inf, axis=1)
            answers += [self.words_[row] for row in cosines.argmax(axis=1)]
        return answers

    def score(self, x: Sequence[tuple[str, str]], y: Sequence[float]) -> float:
        """Spearman's rank correlation of the cosines of pairs of words with what people say of them.

        Args:
            x: pairs of words; one with a word that is not in the vocabulary does not count.
            y: how similar people find each pair.

        Raises:
            InputError: `x` holds no pairs of words, `x` and `y` differ in length, or fewer than two pairs count, or all
                are alike.
        """
        self.check_fitted()
        pairs = _tuples(x, 2)
        scores = check_array("y", y, (len(pairs),))
        known = [n for n, pair in enumerate(pairs) if all(word in self._row for word in pair)]
        units = _units(self.vectors_)
        first, second = (np.array([self._row[pairs[n][side]] for n in known], dtype=np.int64) for side in (0, 1))
        cosines = (units[first] * units[second]).sum(axis=1).astype(np.float64)
        agreement = spearman(cosines, scores[known])
        if agreement is None:
            raise InputError("fewer than two pairs have vectors, or all of them are alike", where="x")
        return agreement

    def __contains__(self, word: str) -> bool:
        """Whether a word has a vector."""
        return self.fitted and isinstance(word, str) and word in self._row

    def write_text(self, path: str | Path) -> None:
        """Write the word vectors as word2vec's text form, which `rhapsode similar WORD --model FILE` opens.

        Raises:
            InputError: a word holds a space, which ends a word in such a file.
        """
        self.check_fitted()
        for place, word in enumerate(self.words_):
            if word.split() != [word]:
                todo = "Write such words with an underscore before you fit."
                raise InputError(f"the word {shown(word)} holds a space", where=f"words_[{place}]", todo=todo)
        lines = [f"{len(self.words_)} {self.dimension}"]
        lines += [
            f"{word} {' '.join(format(number, '.6g') for number in vector)}"
            for word, vector in zip(self.words_, self.vectors_, strict=True)
        ]
        write_atomically(Path(path), "\n".join(lines) + "\n")

    def _build(self, x: Iterable[Sequence[str]]) -> Text:
        """Choose the vocabulary, and make vectors that have learned nothing."""
        row: dict[str, int] = {}
        words, begins = _numbered(_checked(x), row, grow=True)
        counts = np.bincount(words, minlength=len(row))
        order = np.argsort(-counts, kind="stable")
        order = order[: int((counts >= self.min_count).sum())]
        if len(order) < 2:
            todo = "Give more text, or a smaller min_count."
            raise InputError(f"fewer than two words are there {self.min_count} times or more", where="x", todo=todo)
        new_row = np.full(len(row), -1, dtype=np.int32)
        new_row[order] = np.arange(len(order))
        renumbered = new_row[words]
        kept_before = np.concatenate([[0], np.cumsum(renumbered >= 0)])
        every = list(row)
        self._name([every[place] for place in order])
        self.counts_ = counts[order]
        shape = (len(order), self.dimension)
        self.vectors_ = ((self.random("vectors").random(shape, np.float32) - 0.5) / self.dimension).astype(np.float32)
        self.outputs_ = np.zeros(shape, dtype=np.float32)
        self.losses_: list[float] = []
        return renumbered[renumbered >= 0], kept_before[begins]

    def _name(self, words: list[str]) -> None:
        self.words_ = words
        self._row = {word: row for row, word in enumerate(words)}

    def _epoch(self, text: Text, rate: float, final_rate: float, bar: Bar) -> None:
        """Train once on every sentence; the learning rate falls from one to the other."""
        words, begins = text
        loop = _loop()
        kept_share, threshold, alias = _kept_shares(self.counts_, self.subsample), *_walker(self.counts_**0.75)
        cuts = np.unique(np.searchsorted(begins, np.arange(0, len(words) + WORDS_AT_ONCE, WORDS_AT_ONCE)))
        cuts = np.minimum(cuts, len(begins) - 1)
        parts = [(int(first), int(last)) for first, last in pairwise(cuts) if first < last]
        rates = np.linspace(rate, final_rate, len(parts), endpoint=False)
        states = self.random("sentences", len(self.losses_)).integers(0, 2**64, size=len(parts), dtype=np.uint64)

        def train(part: int) -> tuple[float, int]:
            result: tuple[float, int] = loop.train(
                *(words, begins, *parts[part], self.vectors_, self.outputs_, kept_share, threshold, alias),
                *(self.window, self.negatives, float(rates[part]), states[part]),
            )
            return result

        total, pairs = 0.0, 0
        with _mapping(self.threads) as run:
            for (first, last), (likelihood, count) in zip(parts, run(train, range(len(parts))), strict=True):
                total, pairs = total + likelihood, pairs + count
                bar.advance(int(begins[last] - begins[first]), loss=f"{-total / max(pairs, 1):.3f}")
        if not pairs:
            todo = "Give longer sentences, or set subsample to 0."
            raise InputError("no two words of the vocabulary stand near each other", where="x", todo=todo)
        if not np.isfinite(self.vectors_).all():
            todo = "Choose a smaller learning_rate."
            raise InputError("the vectors grew beyond all measure", where="learning_rate", todo=todo)
        self.losses_.append(-total / pairs)

    def _row_of(self, word: str, where: str) -> int:
        row = self._row.get(word) if isinstance(word, str) else None
        if row is None:
            near = difflib.get_close_matches(str(word), self.words_[:SPELLINGS_COMPARED], n=3)
            todo = f"Spelt alike: {', '.join(map(repr, near))}." if near else "No word of it is spelt alike."
            raise InputError(f"the word {shown(word)} is not in the vocabulary", where=where, todo=todo)
        return row

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        words = self.words_
        if not isinstance(words, list) or len(words) < 2 or not all(isinstance(word, str) for word in words):
            raise InputError("are no words", where="words_")
        if len(set(words)) < len(words):
            raise InputError("a word stands there twice", where="words_")
        self._name(words)
        self.counts_ = check_array("counts_", self.counts_, (len(words),), "whole")
        if not self.counts_.all():
            raise InputError("holds a zero", where="counts_")
        for name in ("vectors_", "outputs_"):
            value = check_array(name, getattr(self, name), (len(words), self.dimension))
            setattr(self, name, np.ascontiguousarray(value, dtype=np.float32))
        losses = check_array("losses_", [0.0, *self.losses_], ("epochs",))
        self.losses_ = losses[1:].tolist()


def _checked(x: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """The sentences, each a list of words and no text: the letters of a text would pass for words."""
    todo = "Give sentences, each a list of words: sentences_of(text) makes them."
    if isinstance(x, str) or not isinstance(x, Iterable):
        what = "a text" if isinstance(x, str) else shown(x)
        raise InputError(f"is {what} and no list of sentences", where="x", todo=todo)
    for place, sentence in enumerate(x):
        if isinstance(sentence, str) or not isinstance(sentence, Sequence):
            raise InputError(f"is {shown(sentence)} and no list of words", where=f"x[{place}]", todo=todo)
        yield sentence


def _tuples(x: Any, count: int) -> list[list[str]]:
    """Pairs or triples of words, each as a list of `count`."""
    if isinstance(x, str) or not isinstance(x, Iterable):
        raise InputError(f"is {shown(x)}", where="x", todo=f"Give a list of tuples of {count} words each.")
    tuples = [check_words(f"x[{place}]", words) for place, words in enumerate(x)]
    for place, words in enumerate(tuples):
        if len(words) != count:
            raise InputError(f"holds {len(words)} words", where=f"x[{place}]", todo=f"Give {count}.")
    return tuples


def _numbered(sentences: Iterable[Sequence[str]], row: dict[str, int], *, grow: bool = False) -> Text:
    """Sentences as rows of their words. A word that has none gets the next one, or is left out."""
    words, begins = array("i"), array("q", [0])
    for sentence in sentences:
        for start in range(0, len(sentence), LONGEST_SENTENCE):
            part = sentence[start : start + LONGEST_SENTENCE]
            try:
                if grow:
                    words.extend([row.setdefault(word, len(row)) for word in part])
                else:
                    words.extend([row[word] for word in part if word in row])
            except TypeError:  # lists and the like are in no dict
                raise InputError(f"holds {shown(part)}, which are no words", where="x", todo=EACH_WORD) from None
            begins.append(len(words))
    for word in row if grow else ():
        if not isinstance(word, str):
            raise InputError(f"holds {shown(word)}, which is no word", where="x", todo=EACH_WORD)
    return np.array(words, dtype=np.int32), np.array(begins, dtype=np.int64)


def _kept_shares(counts: Array, subsample: float) -> Array:
    """The probability that each word is kept when it is met, (vocabulary,); some are above 1."""
    if subsample == 0:
        return np.ones(len(counts))
    rarity = subsample * counts.sum() / counts
    shares: Array = np.sqrt(rarity) + rarity
    return shares


def _walker(weights: Array) -> tuple[Array, Array]:
    """Walker's table, from which a word is drawn in proportion to its weight by one even draw and one comparison.

    Every column holds one word's own share, up to its threshold, and fills the rest with another word, its alias
    (Vose 1991).

    Returns: the thresholds in units of 2^-32, (vocabulary,) uint64, and the aliases, (vocabulary,) int32.
    """
    shares = (weights * (len(weights) / weights.sum())).tolist()
    alias = list(range(len(shares)))
    small = [row for row, share in enumerate(shares) if share < 1]
    large = [row for row, share in enumerate(shares) if share >= 1]
    while small and large:
        lesser, greater = small.pop(), large[-1]
        alias[lesser] = greater
        shares[greater] -= 1 - shares[lesser]
        if shares[greater] < 1:
            small.append(large.pop())
    for row in (*small, *large):  # what rounding left over is a whole column
        shares[row] = 1.0
    return (np.array(shares) * 2.0**32).astype(np.uint64), np.array(alias, dtype=np.int32)


def _units(vectors: Array) -> Array:
    """Rows at length one; a row of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Array = vectors / np.where(lengths > 0, lengths, 1)
    return units


@contextmanager
def _mapping(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, with so many threads; what has not begun when the block is left early is dropped."""
    if threads == 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _loop() -> ModuleType:
    """The compiled loop."""
    try:
        from rhapsode.foundations import skip_gram_loop
    except ImportError:
        what = "skip-gram needs Numba, which is not installed: it comes with Rhapsode on x86-64 only"
        raise InputError(what, todo="Install numba, if there is one for this machine.") from None
    if not skip_gram_loop.is_kept():
        note("Compiling the loop over the words: some seconds, once.")
    return skip_gram_loop
