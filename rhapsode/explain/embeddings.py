"""Words as directions: nearest words, analogies, tests against people's judgements, and a projection to look at.

    rhapsode similar king --model runs/mytext
    rhapsode analogy king man woman --model glove.6B.300d.txt

Every vector is taken at length one, so that a dot product is the cosine of the angle between two words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rhapsode.base.correlation import spearman
from rhapsode.base.errors import DamagedError, InputError
from rhapsode.explain.judgements import VOCABULARY, Analogies, Pairs

if TYPE_CHECKING:
    from rhapsode.inference.language_model import LanguageModel
    from rhapsode.tokenizer.tokenizer import Tokenizer

Array = npt.NDArray[np.float32]
Real = npt.NDArray[np.float64]

ROWS_AT_ONCE = 4096
QUESTIONS_AT_ONCE = 256

NEAR_SPELLINGS = 3
SPELLINGS_COMPARED = 50_000


@dataclass(frozen=True)
class Neighbour:
    """A word near to another."""

    word: str
    similarity: float
    """The cosine of the angle between the two vectors, from -1 to 1."""


@dataclass(frozen=True)
class Correlation:
    """How well similarities of words agree with people's."""

    spearman: float | None
    """Spearman's rank correlation; None where it is not defined: fewer than two pairs, or all alike."""
    pairs: int
    """The pairs it was computed from: those of which both words have a vector."""
    of: int
    """The pairs there are."""
    composed: int
    """Those of `pairs` with a word that had to be composed of its parts."""


@dataclass(frozen=True)
class Accuracy:
    """How many analogies of one section were completed rightly."""

    section: str
    right: int
    asked: int
    """The questions all four words of which are in the vocabulary."""
    of: int
    """The questions there are."""

    @property
    def share(self) -> float | None:
        """Right ones among those asked; None where none was."""
        return self.right / self.asked if self.asked else None


@dataclass(frozen=True)
class Projection:
    """Words on a plane."""

    words: list[str]
    points: Real
    """(words, 2): the first two principal components."""
    shares: tuple[float, float]
    """The share of the variance of these words that each component holds."""


class WordVectors:
    """Words and their vectors, at length one.

    Args:
        words: the words, the more frequent first where that is known.
        matrix: (words, dimension) float32. It is taken over: its rows become unit vectors where they lie.
        compose: the vector of a word that is not among `words`, where it can be made of parts.
        notes: what a user should know of where they come from.
        where: what messages call them.

    A vector of length zero has no direction: its word is left out, and a note says how many there were.

    Raises:
        DamagedError: no word is left, one stands twice, or a vector is not finite.
    """

    def __init__(
        self,
        words: Sequence[str],
        matrix: Array,
        *,
        compose: Callable[[str], Array | None] | None = None,
        notes: Sequence[str] = (),
        where: str = "word vectors",
    ) -> None:
        lengths = _lengths(matrix)
        if not np.isfinite(lengths).all():
            word = words[int(np.argmin(np.isfinite(lengths)))]
            raise DamagedError(f"the vector of {word!r} is not finite", where=where)
        directed = lengths > 0
        self.notes = list(notes)
        if not directed.all():
            count = int(len(words) - directed.sum())
            self.notes.append(f"{count:,} {'vector was' if count == 1 else 'vectors were'} left out, of zeros only.")
            words = [word for word, good in zip(words, directed, strict=True) if good]
            matrix, lengths = matrix[directed], lengths[directed]
        for start in range(0, len(words), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            matrix[rows] = matrix[rows] / lengths[rows, None]
        self.words, self.matrix = list(words), matrix
        self._row = {word: row for row, word in enumerate(self.words)}
        self._compose, self._where = compose, where
        if not self.words:
            raise DamagedError("there is no word with a vector", where=where)
        if len(self._row) != len(self.words):
            raise DamagedError("a word stands there twice", where=where)

    def __contains__(self, word: str) -> bool:
        """Whether `word` has a vector of its own, not one composed of its parts."""
        return word in self._row

    def vector(self, word: str) -> Array:
        """The unit vector (dimension,) of a word, composed of its parts where it is none of `words`.

        Raises:
            InputError: there is none; the message names words that are spelt alike.
        """
        found = self._find(word)
        if found is None:
            raise InputError(f"there is no vector for {word!r}", where=self._where, todo=self._near_spellings(word))
        return found

    def nearest(self, to: str | Array, count: int = 10, *, without: Iterable[str] = ()) -> list[Neighbour]:
        """The words nearest to a word, itself aside, or to a vector (dimension,) of any length; the nearest first.

        Args:
            without: words that shall not be among them.

        Raises:
            InputError: as `vector`, or `count` is below one.
        """
        if count < 1:
            raise InputError(f"count must be at least 1, not {count}")
        if isinstance(to, str):
            without = (*without, to)
            to = self.vector(to)
        similarities = self.matrix @ _unit(to)
        excluded = [self._row[word] for word in without if word in self._row]
        similarities[excluded] = -np.inf
        order = np.argsort(-similarities, kind="stable")[: min(count, len(self.words) - len(set(excluded)))]
        return [Neighbour(self.words[row], float(similarities[row])) for row in order]

    def analogy(self, word: str, minus: str, plus: str, count: int = 10) -> list[Neighbour]:
        """What is to `plus` as `word` is to `minus`: the words nearest to word - minus + plus, these three aside.

        Mikolov et al. 2013, "Linguistic Regularities in Continuous Space Word Representations", section 4.

        Raises:
            InputError: as `nearest`.
        """
        target = self.vector(word) - self.vector(minus) + self.vector(plus)
        return self.nearest(target, count, without=(word, minus, plus))

    def correlation(self, pairs: Pairs) -> Correlation:
        """Spearman's rank correlation of the cosines of pairs of words with the scores that people gave them.

        A word is looked up as `analogies` does it, and composed only when that finds none.
        """
        cosines, scores, composed = [], [], 0
        for first, second, score in pairs:
            left, right = self._find_folded(first), self._find_folded(second)
            if left is not None and right is not None:
                cosines.append(float(left @ right))
                scores.append(score)
                composed += first.upper() not in self._folded or second.upper() not in self._folded
        agreement = spearman(np.array(cosines), np.array(scores))
        return Correlation(agreement, len(scores), len(pairs), composed)

    def analogies(self, analogies: Analogies, vocabulary: int = VOCABULARY) -> list[Accuracy]:
        """Complete each question "a is to b as c is to d" with the word nearest to b - a + c, a, b and c aside.

        As word2vec's `compute-accuracy`: only the first `vocabulary` words count, as questions and as answers; upper
        and lower case are one, of words that differ in nothing else the first is asked with, and any is right; a
        question with a word that is not among them is left out.

        Returns: the sections, in their order.
        """
        words = [word.upper() for word in self.words[:vocabulary]]
        row = {word: number for number, word in reversed(list(enumerate(words)))}
        matrix = self.matrix[: len(words)]
        results = []
        for section, questions in analogies.items():
            known = []
            for question in questions:
                rows = [row.get(word.upper()) for word in question]
                if None not in rows:
                    known.append(rows)
            right = 0
            for start in range(0, len(known), QUESTIONS_AT_ONCE):
                a, b, c, d = np.array(known[start : start + QUESTIONS_AT_ONCE], dtype=np.int64).T
                similarities = (matrix[b] - matrix[a] + matrix[c]) @ matrix.T  # (questions, vocabulary)
                for given in (a, b, c):
                    similarities[np.arange(len(given)), given] = -np.inf
                answers = similarities.argmax(axis=1)
                right += sum(words[answer] == words[wanted] for answer, wanted in zip(answers, d, strict=True))
            results.append(Accuracy(section, right, len(known), len(questions)))
        return results

    def project(self, words: Sequence[str]) -> Projection:
        """The first two principal components of the unit vectors of `words`, by a singular value decomposition.

        Of the two signs that a component may have, the one is taken that makes its largest coordinate positive.

        Raises:
            InputError: as `vector`, fewer than three different words, or all with the same vector.
        """
        words = list(dict.fromkeys(words))
        if len(words) < 3:
            raise InputError("there are fewer than three different words", todo="A plane needs three at least.")
        vectors = np.stack([self.vector(word) for word in words]).astype(np.float64)
        vectors = np.pad(vectors - vectors.mean(axis=0), ((0, 0), (0, 1)))  # vectors of one number have a plane too
        left, singular, _ = np.linalg.svd(vectors, full_matrices=False)
        variance = singular**2
        if variance.sum() < 1e-12:
            raise InputError("these words all have the same vector", todo="Choose others.")
        points = left[:, :2] * singular[:2]
        points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
        shares = variance[:2] / variance.sum()
        return Projection(words, points, (float(shares[0]), float(shares[1])))

    def _find(self, word: str) -> Array | None:
        row = self._row.get(word)
        if row is not None:
            vector: Array = self.matrix[row]
            return vector
        composed = None if self._compose is None else self._compose(word)
        return None if composed is None or not composed.any() else _unit(composed)

    def _find_folded(self, word: str) -> Array | None:
        row = self._folded.get(word.upper())
        if row is not None:
            vector: Array = self.matrix[row]
            return vector
        return self._find(word)

    @cached_property
    def _folded(self) -> dict[str, int]:
        """The first row of all words that are the same in upper case."""
        return {word.upper(): row for row, word in reversed(list(enumerate(self.words)))}

    def _near_spellings(self, word: str) -> str:
        """A sentence with the words that are spelt most alike."""
        import difflib

        folded = self._folded.get(word.upper())
        some = self.words[:SPELLINGS_COMPARED]
        near = difflib.get_close_matches(word, some, n=NEAR_SPELLINGS, cutoff=0.6)
        if folded is not None:
            near = list(dict.fromkeys([self.words[folded], *near]))[:NEAR_SPELLINGS]
        if near:
            return f"Spelt alike: {', '.join(map(repr, near))}."
        return f"No word is spelt alike; the first of {len(self.words):,} is {self.words[0]!r}."


def open_word_vectors(path: Path) -> WordVectors:
    """The word vectors in a file, or those of a model, of whatever `load` opens.

    Raises:
        InputError: as `read_word_vectors`, `load` and `word_vectors`.
    """
    from rhapsode.exchange.recognise import is_model

    if is_model(path):
        from rhapsode.inference.language_model import load

        return word_vectors(load(path, "cpu"))
    if not path.exists():
        todo = "Name a model folder, a run, a GGUF file, or a file of word vectors."
        raise InputError("there is no such file or folder", where=str(path), todo=todo)
    from rhapsode.exchange.word_vectors import read_word_vectors

    file = read_word_vectors(path)
    return WordVectors(file.words, file.matrix, notes=file.notes, where=str(path))


def read_words(model: LanguageModel, words: Iterable[str]) -> WordVectors:
    """The vectors of some words as the model reads each of them, alone, as a text (`LanguageModel.embed`).

    Raises:
        InputError: as `LanguageModel.embed`.
    """
    every = list(dict.fromkeys(words))
    return WordVectors(every, model.embed(every), where=model.where)


def word_vectors(model: LanguageModel) -> WordVectors:
    """The input embeddings of a model's tokens that are words; other words get the mean of those of their tokens.

    A token is a word when it begins with a space or, where none does that (characters, WordPiece), when it does not go
    on another; and when its first character is a letter or a digit. It may be the beginning of longer words as well.

    Raises:
        InputError: no token is a word.
    """
    import torch

    tokenizer, table = model.tokenizer, model.model.embedding.weight.detach()  # (vocabulary, hidden)
    id_of = _words_with_space(tokenizer)
    spaced = bool(id_of)
    id_of = id_of or _words_without_space(tokenizer)
    if not id_of:
        raise InputError("no token is a word", where=model.where)

    def rows(ids: Sequence[int]) -> Array:
        found: Array = table[torch.tensor(ids, device=table.device)].float().cpu().numpy()
        return found

    def compose(word: str) -> Array | None:
        try:
            ids = tokenizer.encode(word)
            if spaced and ids and not tokenizer.id_to_bytes(ids[0]).startswith(b" "):
                ids = tokenizer.encode(f" {word}")
        except InputError:  # a character that the vocabulary has no token for
            return None
        if not ids or tokenizer.unknown_count(ids):
            return None
        mean: Array = rows(ids).mean(axis=0)
        return mean

    return WordVectors(list(id_of), rows(list(id_of.values())), compose=compose, where=model.where)


def _words_with_space(tokenizer: Tokenizer) -> dict[str, int]:
    texts = ((id, text) for id, text in _plain_tokens(tokenizer) if text.startswith(" "))
    return _first_ids((id, text[1:]) for id, text in texts)


def _words_without_space(tokenizer: Tokenizer) -> dict[str, int]:
    tokens = _plain_tokens(tokenizer)
    return _first_ids((id, text) for id, text in tokens if not tokenizer.id_to_token(id).startswith("##"))


def _plain_tokens(tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """The tokens that text is made of, and what they stand for, as far as that is whole characters."""
    vocabulary = tokenizer.content["model"]["vocab"]
    special = set(tokenizer.special_tokens.values())
    for id in sorted(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary)):
        if id not in special and id != tokenizer.unknown_id:
            with suppress(UnicodeDecodeError):
                yield id, tokenizer.id_to_bytes(id).decode("utf-8")


def _first_ids(tokens: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Word -> its first id, of tokens that begin with a letter or a digit."""
    ids: dict[str, int] = {}
    for id, word in tokens:
        if word[:1].isalnum():
            ids.setdefault(word, id)
    return ids


def _lengths(matrix: Array) -> Real:
    """The length of each row, (rows,), computed in float64, in which no float32 overflows when squared."""
    parts = range(0, len(matrix), ROWS_AT_ONCE)
    lengths = [np.linalg.norm(matrix[at : at + ROWS_AT_ONCE].astype(np.float64), axis=1) for at in parts]
    return np.concatenate([np.empty(0), *lengths])


def _unit(vector: Array) -> Array:
    """A vector at length one; one of zeros as it is."""
    wide = vector.astype(np.float64)
    unit: Array = (wide / (np.linalg.norm(wide) or 1.0)).astype(np.float32)
    return unit
