"""Skip-gram: the compiled loop against a slow one with torch's gradients, against counts, and against gensim."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.exchange.word_vectors import read_word_vectors
from rhapsode.explain.embeddings import WordVectors
from rhapsode.foundations import skip_gram, skip_gram_loop
from rhapsode.foundations.next_word import bundled_text
from rhapsode.foundations.skip_gram import LONGEST_SENTENCE, SkipGram, sentences_of

MASK = 2**64 - 1
SMALL: dict[str, Any] = {"dimension": 8, "min_count": 1, "subsample": 0, "epochs": 2, "learning_rate": 0.1}
TEXT = """the cat sat on the mat and the dog sat on the rug
a dog saw the cat
alone
the mat lay by the rug and a cat lay on the mat"""
SENTENCES = [line.split() for line in TEXT.splitlines()]


@pytest.fixture(scope="module")
def plays() -> list[list[str]]:
    return list(sentences_of(bundled_text()[:400_000]))


@pytest.fixture(scope="module")
def learned() -> SkipGram:
    return SkipGram(**SMALL, seed=3).fit(SENTENCES)


def drawn(state: int) -> int:
    """SplitMix64 in whole numbers without bounds (Steele, Lea and Flood 2014)."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def test_random_numbers_are_the_published_ones() -> None:
    # The first five of the seed 1234567, as the reference implementation in C prints them.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = [(1234567 + (n + 1) * 0x9E3779B97F4A7C15) & MASK for n in range(5)]
    assert [int(skip_gram_loop.drawn(np.uint64(state))) for state in states] == expected
    assert [drawn(state) for state in states] == expected


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40))
def test_the_table_draws_each_word_in_proportion_to_its_weight(weights: list[float]) -> None:
    threshold, alias = skip_gram._walker(np.array(weights))
    own = threshold.astype(np.float64) / 2**32
    chances = (own + np.bincount(alias, weights=1 - own, minlength=len(weights))) / len(weights)
    np.testing.assert_allclose(chances, np.array(weights) / sum(weights), atol=1e-9)


def slow(model: SkipGram, sentences: Sequence[Sequence[str]], state: int, rate: float) -> tuple[Any, Any, float, int]:
    """One pass over sentences as the paper has it, one pair at a time; every gradient is autograd's."""
    row = {word: number for number, word in enumerate(model.words_)}
    v = torch.tensor(model.vectors_, dtype=torch.float64)
    u = torch.tensor(model.outputs_, dtype=torch.float64)
    share = model.counts_ / model.counts_.sum()
    threshold, alias = (table.tolist() for table in skip_gram._walker(model.counts_**0.75))
    total, pairs = 0.0, 0

    def random() -> int:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & MASK
        return drawn(state)

    for sentence in sentences:
        kept = []
        for word in (row[word] for word in sentence if word in row):
            chance = 1.0
            if model.subsample:
                chance = np.sqrt(model.subsample / share[word]) + model.subsample / share[word]
            if (random() >> 32) / 2**32 < chance:
                kept.append(word)
        for middle, w in enumerate(kept):
            reach = 1 + ((random() >> 32) * model.window >> 32)
            for place in range(max(0, middle - reach), min(len(kept), middle + reach + 1)):
                if place == middle:
                    continue
                targets = [(kept[place], 1)]
                for _ in range(model.negatives):
                    number = random()
                    column = (number >> 32) * len(row) >> 32
                    negative = column if number & 0xFFFFFFFF < threshold[column] else alias[column]
                    if negative != kept[place]:
                        targets.append((negative, -1))
                change = torch.zeros(model.dimension, dtype=torch.float64)
                for target, sign in targets:
                    vector, output = v[w].clone().requires_grad_(), u[target].clone().requires_grad_()
                    likelihood = torch.nn.functional.logsigmoid(sign * (vector @ output))
                    for_vector, for_output = torch.autograd.grad(likelihood, (vector, output))
                    change += rate * for_vector
                    u[target] += rate * for_output
                    total += float(likelihood.detach())
                v[w] += change
                pairs += 1
    return v.numpy(), u.numpy(), total, pairs


@pytest.mark.parametrize("subsample", [0, 0.05])
@pytest.mark.parametrize("window", [1, 4])
def test_the_loop_takes_the_steps_of_the_paper(subsample: float, window: int) -> None:
    model = SkipGram(**SMALL | {"epochs": 1, "subsample": subsample}, window=window, negatives=3)
    text = model._build(SENTENCES)
    random = np.random.default_rng(0)
    model.vectors_[:] = random.normal(size=model.vectors_.shape)
    model.outputs_[:] = random.normal(size=model.outputs_.shape)
    state = 987654321
    v, u, likelihood, pairs = slow(model, SENTENCES, state, 0.1)
    kept, table = skip_gram._kept_shares(model.counts_, subsample), skip_gram._walker(model.counts_**0.75)
    given = (*text, 0, len(SENTENCES), model.vectors_, model.outputs_, kept, *table, window, 3, 0.1, np.uint64(state))
    found = skip_gram_loop.train(*given)
    assert pairs > 10
    assert found == (pytest.approx(likelihood, rel=1e-4), pairs)
    np.testing.assert_allclose(model.vectors_, v, atol=2e-5)
    np.testing.assert_allclose(model.outputs_, u, atol=2e-5)


def test_the_vocabulary_is_the_most_frequent_words_first() -> None:
    model = SkipGram(dimension=2, min_count=2, subsample=0).fit(SENTENCES)
    words = [word for sentence in SENTENCES for word in sentence]
    counts = {word: words.count(word) for word in words}
    assert dict(zip(model.words_, model.counts_.tolist(), strict=True)) == {w: n for w, n in counts.items() if n >= 2}
    assert list(model.counts_) == sorted(model.counts_, reverse=True)
    assert model.words_[0] == "the"
    assert "alone" not in model
    assert "cat" in model


def test_one_thread_gives_the_same_bits(learned: SkipGram, plays: list[list[str]]) -> None:
    again = SkipGram(**SMALL, seed=3).fit(iter(SENTENCES))
    other = SkipGram(**SMALL, seed=4).fit(SENTENCES)
    assert np.array_equal(learned.vectors_, again.vectors_) and np.array_equal(learned.outputs_, again.outputs_)
    assert learned.losses_ == again.losses_
    assert not np.array_equal(learned.vectors_, other.vectors_)
    longer = [SkipGram(dimension=16, epochs=1, seed=5).fit(plays) for _ in range(2)]  # many parts of the text
    assert np.array_equal(longer[0].vectors_, longer[1].vectors_)


def test_threads_learn_as_much_as_one(plays: list[list[str]]) -> None:
    settings: dict[str, Any] = {"dimension": 32, "epochs": 3, "learning_rate": 0.05}
    one, two = (SkipGram(**settings, threads=threads).fit(plays) for threads in (1, 2))
    assert one.losses_[-1] < one.losses_[0] - 0.05
    assert two.losses_[-1] == pytest.approx(one.losses_[-1], abs=0.03)


def test_the_loss_counts_every_word_that_is_drawn() -> None:
    """Their chances are multiplied before one logarithm is taken: that of 2,000 halves is too small for a number."""
    model = SkipGram(**SMALL | {"epochs": 1, "learning_rate": 1e-9}, final_learning_rate=1e-10, negatives=2000)
    words = len({word for sentence in SENTENCES for word in sentence})
    loss = model.fit(SENTENCES).losses_[0] / np.log(2)
    assert 1 + 2000 * (1 - 4 / words) < loss < 2001  # what is drawn and is the true word does not count


def test_it_learns_what_counts_would_say() -> None:
    """With as many numbers as words, v.u becomes log(#(w, c) / (#(w) K P(c))): Levy and Goldberg 2014."""
    random = np.random.default_rng(1)
    size = 6
    chances = random.dirichlet(np.full(size, 3.0), size=size)
    walk = [0]
    for _ in range(60_000):
        walk.append(int(random.choice(size, p=chances[walk[-1]])))
    words = [f"w{number}" for number in walk]
    model = SkipGram(dimension=24, window=1, negatives=2, min_count=1, subsample=0, epochs=30, learning_rate=0.05)
    model.fit([words[start : start + 1000] for start in range(0, len(words), 1000)])
    rows = np.array([model.words_.index(word) for word in words])
    together = np.zeros((size, size))
    np.add.at(together, (rows[:-1], rows[1:]), 1)
    together += together.T
    drawn = model.counts_**0.75 / (model.counts_**0.75).sum()
    others = together.sum(axis=1, keepdims=True) - together  # a negative that is the company itself is left out
    wanted = np.log(together / others / (model.negatives * drawn))
    found = model.vectors_ @ model.outputs_.T
    assert np.abs(found - wanted).mean() < 0.1
    assert spearmanr(found.ravel(), wanted.ravel()).statistic > 0.95


def test_it_finds_what_gensim_finds(plays: list[list[str]]) -> None:
    """The cosines of pairs of frequent words, of two programs that share nothing but the paper."""
    gensim = pytest.importorskip("gensim.models", reason="gensim is not installed")
    common: dict[str, Any] = {"window": 5, "min_count": 20, "epochs": 10, "seed": 1}
    ours = SkipGram(dimension=32, learning_rate=0.05, **common).fit(plays)
    theirs = gensim.Word2Vec(plays, vector_size=32, sg=1, alpha=0.05, workers=1, **common)
    again = gensim.Word2Vec(plays, vector_size=32, sg=1, alpha=0.05, workers=1, **common | {"seed": 2})
    words = ours.words_[30:230]
    assert set(theirs.wv.index_to_key) == set(ours.words_)

    def cosines(vectors: Any) -> Any:
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return (units @ units.T)[np.triu_indices(len(words), 1)]

    first, second, third = cosines(ours.transform(words)), cosines(theirs.wv[words]), cosines(again.wv[words])
    between_seeds = np.corrcoef(second, third)[0, 1]
    assert np.corrcoef(first, second)[0, 1] > between_seeds - 0.03
    assert between_seeds > 0.7


def with_vectors(words: Sequence[str], vectors: Any) -> SkipGram:
    """An estimator that holds these vectors."""
    model = SkipGram(**SMALL | {"dimension": vectors.shape[1]}).fit([list(words)])
    model._name(list(words))
    model.vectors_ = np.array(vectors, dtype=np.float32)
    return model


def test_neighbours_analogies_and_judgements_are_those_of_the_commands() -> None:
    random = np.random.default_rng(2)
    words = [f"w{number}" for number in range(300)]
    matrix = random.normal(size=(len(words), 7)).astype(np.float32)
    model, reference = with_vectors(words, matrix), WordVectors(words, matrix.copy())
    for word in words[:5]:
        assert [near for near, _ in model.nearest(word, 4)] == [near.word for near in reference.nearest(word, 4)]
        found = [cosine for _, cosine in model.nearest(word, 4)]
        assert found == pytest.approx([near.similarity for near in reference.nearest(word, 4)], abs=1e-6)
    questions = [tuple(random.choice(words, 3, replace=False).tolist()) for _ in range(300)]
    expected = [reference.analogy(b, a, c, 1)[0].word for a, b, c in questions]
    assert model.predict(questions) == expected
    pairs = [tuple(random.choice(words, 2, replace=False).tolist()) for _ in range(50)]
    scores = random.integers(0, 5, size=50).astype(float).tolist()
    cosines = [float(reference.vector(a) @ reference.vector(b)) for a, b in pairs]
    assert model.score(pairs, scores) == pytest.approx(spearmanr(cosines, scores).statistic)
    assert model.score([*pairs, ("w1", "unheard")], [*scores, 9.0]) == pytest.approx(model.score(pairs, scores))
    np.testing.assert_array_equal(model.transform(["w3", "w3", "w0"]), matrix[[3, 3, 0]])


def test_the_file_opens_elsewhere(learned: SkipGram, tmp_path: Path) -> None:
    learned.write_text(str(tmp_path / "words.txt"))
    file = read_word_vectors(tmp_path / "words.txt")
    assert list(file.words) == learned.words_
    np.testing.assert_allclose(file.matrix, learned.vectors_, rtol=1e-5)
    model = SkipGram(**SMALL).fit([["new york", "city"]])
    with pytest.raises(InputError, match=r"words_\[0\]: the word 'new york' holds a space"):
        model.write_text(str(tmp_path / "cities.txt"))
    assert not (tmp_path / "cities.txt").exists()


def test_what_is_saved_comes_back(learned: SkipGram, tmp_path: Path) -> None:
    learned.save(tmp_path / "words")
    again = SkipGram.load(tmp_path / "words")
    assert again.settings() == learned.settings()
    assert (again.words_, again.losses_, again.counts_.tolist()) == (
        learned.words_,
        learned.losses_,
        learned.counts_.tolist(),
    )
    assert again.nearest("cat") == learned.nearest("cat")
    for model in (learned, again):
        model.partial_fit(SENTENCES)
    assert np.array_equal(again.vectors_, learned.vectors_)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"dimension": 8', '"dimension": 9'),
        ('"the",', '"cat",'),
        ('"the",', "5,"),
        ('"the",', ""),
        ('"epochs": 2', '"epochs": 0'),
    ],
)
def test_what_does_not_fit_together_is_damaged(old: str, new: str, tmp_path: Path) -> None:
    SkipGram(**SMALL).fit(SENTENCES).save(tmp_path / "words")
    path = tmp_path / "words" / "estimator.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DamagedError):
        SkipGram.load(tmp_path / "words")


def test_more_text_is_read_with_the_same_vocabulary(plays: list[list[str]]) -> None:
    model = SkipGram(dimension=16, learning_rate=0.05).partial_fit(plays)
    words, counts = list(model.words_), model.counts_.copy()
    for _ in range(3):
        model.partial_fit([*plays, ["unheard", "words"]])
    assert model.words_ == words
    assert np.array_equal(model.counts_, counts)
    assert len(model.losses_) == 4
    assert model.losses_[-1] < model.losses_[0] - 0.1
    with pytest.raises(InputError, match="no two words of the vocabulary stand near each other"):
        model.partial_fit([["unheard", "words"], ["the"]])


def test_an_epoch_can_be_watched() -> None:
    seen: list[int] = []
    model = SkipGram(**SMALL | {"epochs": 3}).fit(SENTENCES, after_epoch=lambda each: seen.append(len(each.losses_)))
    assert seen == [1, 2, 3]
    assert len(model.losses_) == 3


def test_a_long_sentence_is_several() -> None:
    words = [f"w{number % 7}" for number in range(2 * LONGEST_SENTENCE + 5)]
    text, begins = SkipGram(**SMALL)._build([words])
    assert begins.tolist() == [0, LONGEST_SENTENCE, 2 * LONGEST_SENTENCE, len(words)]
    assert len(text) == len(words)


def test_sentences_of_a_text() -> None:
    text = "The King's men\nmarched -- well-known.\n\n \n42!\n\nÉtoile d’or"
    assert list(sentences_of(text)) == [["the", "king's", "men", "marched", "well", "known"], ["étoile", "d’or"]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("the cat sat", "x: is a text and no list of sentences. Give sentences, each a list of words: "),
        (["the cat sat"], "x[0]: is 'the cat sat' and no list of words. "),
        ([["the", "cat"], 5], "x[1]: is 5 and no list of words. "),
        ([["the", 7], ["the", "cat"]], "x: holds 7, which is no word. Each word must be a string."),
        ([[["the"], ["cat"]]], "x: holds [['the'], ['cat']], which are no words. Each word must be a string."),
        (7, "x: is 7 and no list of sentences. Give sentences"),
        (
            [["the", "the"]],
            "x: fewer than two words are there 1 times or more. Give more text, or a smaller min_count.",
        ),
        ([], "x: fewer than two words are there"),
        ([["the"], ["cat"]], "x: no two words of the vocabulary stand near each other"),
    ],
)
def test_what_is_no_text_is_refused(x: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        SkipGram(**SMALL).fit(x)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.nearest("catt"), "word: the word 'catt' is not in the vocabulary. Spelt alike: 'cat'"),
        (lambda m: m.transform(["cat", "zzz"]), "x[1]: the word 'zzz' is not in the vocabulary. No word of it is"),
        (lambda m: m.predict([("cat", "dog", "zzz")]), "x[0]: the word 'zzz' is not"),
        (lambda m: m.score([("cat", "dog")], [1.0, 2.0]), "y: has the shape (2,), not (1,)."),
        (lambda m: m.score([("cat", "dog"), ("a", "the")], [1.0, float("nan")]), "y[1]: is not a number."),
        (lambda m: m.score([("cat", "dog"), ("a", "zzz")], [1.0, 2.0]), "x: fewer than two pairs have vectors"),
        (lambda m: m.nearest("cat", count=0), "count: is 0. It must be at least 1."),
        (lambda m: m.nearest(["cat"]), "word: the word ['cat'] is not in the vocabulary."),
        (lambda m: m.transform("cat"), "x: is 'cat' and no list of words."),
        (lambda m: m.transform([7]), "x[0]: is 7 and no word."),
        (lambda m: m.predict("cat"), "x: is 'cat'. Give a list of tuples of 3 words each."),
        (lambda m: m.predict([("cat", "dog")]), "x[0]: holds 2 words. Give 3."),
        (lambda m: m.predict(["cat"]), "x[0]: is 'cat' and no list of words."),
        (lambda m: m.score(5, [1.0]), "x: is 5. Give a list of tuples of 2 words each."),
        (lambda m: m.score([("cat", "dog")], 5), "y: has the shape (), not (1,)."),
        (lambda m: SkipGram().nearest("cat"), "this SkipGram has learned nothing yet. Call fit first."),
        (lambda m: SkipGram(window=0), "window: is 0. It must be at least 1."),
        (lambda m: SkipGram(subsample=float("nan")), "subsample: nan is not a number"),
        (
            lambda m: SkipGram(**SMALL | {"learning_rate": 1e19}).fit(SENTENCES),
            "learning_rate: the vectors grew beyond",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(ask: Any, message: str, learned: SkipGram) -> None:
    with pytest.raises(InputError) as error:
        ask(learned)
    assert error.value.message.startswith(message)


def test_without_numba_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("rhapsode.foundations.skip_gram_loop")
    monkeypatch.delitem(sys.modules, "rhapsode.foundations.skip_gram_loop")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(InputError, match="skip-gram needs Numba, which is not installed"):
        SkipGram(**SMALL).fit(SENTENCES)


def test_compiling_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    SkipGram(**SMALL).fit(SENTENCES)
    assert skip_gram_loop.is_kept()
    capsys.readouterr()
    SkipGram(**SMALL).fit(SENTENCES)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(skip_gram_loop, "is_kept", lambda: False)
    SkipGram(**SMALL).partial_fit(SENTENCES)
    assert capsys.readouterr().err == "Compiling the loop over the words: some seconds, once.\n"
