"""The next word: what can be foretold is, what the network is made of is what torch makes, and counts are counts."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.foundations.next_word import UNKNOWN, CountedWords, NextWord, bundled_text, words_of

RHYME = "the cat sat on the mat. the dog sat on the rug. the bird sat in the tree. " * 30


@pytest.fixture(scope="module")
def rhyme() -> NextWord:
    return NextWord(window=3, dimension=8, hidden=16, learning_rate=0.02, batch_size=32, epochs=20, seed=1).fit(RHYME)


def test_words_of_a_text() -> None:
    assert words_of("Speak, speak. We know't; Well-a-day! №5 of 12") == [
        *("speak", ",", "speak", ".", "we", "know't", ";", "well-a-day", "!", "5", "of", "12"),
    ]
    assert words_of("Élan — Ærø 漢字") == ["élan", "ærø", "漢字"]


def test_the_cat_sat_on_the_mat(rhyme: NextWord) -> None:
    assert rhyme.predict("The cat sat on", 1)[0][0] == "the"
    assert rhyme.predict("mat. the dog", 1)[0][0] == "sat"
    assert rhyme.predict("the bird sat", 1)[0][0] == "in"
    assert rhyme.predict("cat sat on the", 2)[0][0] in {"mat", "rug"}
    assert rhyme.perplexity(RHYME) < 1.5
    assert rhyme.write("the cat sat", 3, temperature=0.1).startswith("the cat sat on the")


def test_words_used_alike_have_vectors_alike() -> None:
    animals, things = ["cat", "dog", "fox", "hen"], ["mat", "rug", "bed", "box"]
    chance = np.random.default_rng(0)
    text = " ".join(f"the {chance.choice(animals)} sat on the {chance.choice(things)}." for _ in range(1500))
    model = NextWord(window=2, dimension=6, hidden=16, learning_rate=0.01, epochs=20, seed=1).fit(text)
    vectors = model.transform([*animals, *things])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    alike = [cosines[i, j] for i in range(8) for j in range(i) if (i < 4) == (j < 4)]
    apart = cosines[:4, 4:].ravel()
    assert np.mean(alike) > np.mean(apart) + 0.3
    assert model.nearest("cat", 1)[0][0] in animals
    assert model.nearest("mat", 1)[0][0] in things


def test_probabilities_are_those_of_the_same_network_in_torch(rhyme: NextWord) -> None:
    p = {name: torch.tensor(value) for name, value in rhyme.network_.parameters.items()}
    ids = torch.tensor(rhyme.ids(["dog", "sat", "on"]))
    hidden = torch.tanh(p["0.weight"][ids].flatten() @ p["2.weight"] + p["2.bias"])
    expected = torch.softmax(hidden @ p["4.weight"] + p["4.bias"], -1)
    assert np.allclose(rhyme.predict_proba("the dog sat on"), expected.numpy(), atol=1e-6)


def test_the_score_is_the_mean_log_probability_of_each_word(rhyme: NextWord) -> None:
    text = "The cat sat on the table."
    words = words_of(text)
    each = [
        math.log(rhyme.predict_proba(" ".join(words[:place]))[rhyme.ids([word])[0]]) for place, word in enumerate(words)
    ]
    assert rhyme.score(text) == pytest.approx(np.mean(each), abs=1e-5)
    assert rhyme.perplexity(text) == pytest.approx(math.exp(-np.mean(each)), rel=1e-4)


def test_its_gradients_are_those_of_torch() -> None:
    model = NextWord(window=2, dimension=3, hidden=5, epochs=1).fit("a b c a b d a c")
    x, y = np.array([[0, 1], [1, 1], [2, 3]]), np.array([2, 3, 1])
    model.network_.loss_and_gradients(x, y)
    p = {name: torch.tensor(value, requires_grad=True) for name, value in model.network_.parameters.items()}
    hidden = torch.tanh(p["0.weight"][torch.tensor(x)].flatten(1) @ p["2.weight"] + p["2.bias"])
    F.cross_entropy(hidden @ p["4.weight"] + p["4.bias"], torch.tensor(y)).backward()
    for name, gradient in model.network_.gradients.items():
        grad = p[name].grad
        assert grad is not None
        assert np.allclose(gradient, grad.numpy(), atol=1e-6), name


def test_the_vocabulary_keeps_the_frequent_words() -> None:
    model = NextWord(vocabulary_size=3, epochs=1).fit("c b b a a a d")
    assert model.words_ == [UNKNOWN, "a", "b"]
    assert model.ids(["b", "d", "a", "zebra"]).tolist() == [2, 0, 1, 0]
    assert UNKNOWN not in [word for word, _ in model.predict("a", 10)]


def test_early_stopping_and_parts() -> None:
    model = NextWord(window=2, hidden=32, dropout=0.1, epochs=100, patience=2, validation=0.2, seed=1).fit(RHYME[:700])
    assert len(model.history_.loss) == len(model.history_.validation_loss) <= 100
    parts = NextWord(window=2, seed=1)
    parts.partial_fit(RHYME).partial_fit(RHYME[:300])
    whole = NextWord(window=2, seed=1, epochs=1).fit(RHYME)
    whole.partial_fit(RHYME[:300])
    assert np.array_equal(parts.predict_proba("the cat"), whole.predict_proba("the cat"))


def test_a_saved_one_is_the_same(rhyme: NextWord, tmp_path: Path) -> None:
    rhyme.save(tmp_path / "rhyme")
    loaded = NextWord.load(tmp_path / "rhyme")
    assert loaded.words_ == rhyme.words_
    assert np.array_equal(loaded.predict_proba("the cat"), rhyme.predict_proba("the cat"))
    description = (tmp_path / "rhyme" / "estimator.json").read_text(encoding="utf-8")
    (tmp_path / "rhyme" / "estimator.json").write_text(description.replace('"cat"', '"dog"'), encoding="utf-8")
    with pytest.raises(DamagedError, match="words_: are no words"):
        NextWord.load(tmp_path / "rhyme")


@pytest.mark.parametrize(("name", "value"), [("dimension", 10**9), ("hidden", 10**12), ("window", 10**12)])
def test_a_file_cannot_ask_for_more_than_it_holds(name: str, value: int, rhyme: NextWord, tmp_path: Path) -> None:
    rhyme.save(tmp_path / "rhyme")
    path = tmp_path / "rhyme" / "estimator.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description["settings"][name] = value
    path.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(DamagedError, match="and the settings ask for"):
        NextWord.load(tmp_path / "rhyme")


def test_a_seed_is_a_text(rhyme: NextWord) -> None:
    texts = [rhyme.write("the cat", 20, temperature=2.0, seed=seed) for seed in (None, rhyme.seed, -1, -1)]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert UNKNOWN not in texts[0]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.lists(st.integers(0, 3), min_size=3, max_size=20))
def test_counted_words_share_out_all_probability(counted: list[int], held_out: list[int]) -> None:
    model = CountedWords(np.array(counted), np.array(held_out), 4)
    assert model.shares.sum() == pytest.approx(1)
    for u, v in itertools.product(range(4), repeat=2):
        chances = [1 / model.perplexity(np.array([u, v, w])) for w in range(4)]
        assert sum(chances) == pytest.approx(1)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.lists(st.integers(0, 3), min_size=3, max_size=20))
def test_counted_words_are_counted_rightly(counted: list[int], asked: list[int]) -> None:
    model = CountedWords(np.array(counted), np.array(asked), 4)
    ones, twos = Counter(counted), Counter(itertools.pairwise(counted))
    threes = Counter(zip(counted, counted[1:], counted[2:], strict=False))
    before, pairs = Counter(counted[:-1]), Counter(itertools.pairwise(counted[:-1]))
    total = 0.0
    for u, v, w in zip(asked, asked[1:], asked[2:], strict=False):
        one = ones[w] / len(counted)
        two = twos[v, w] / before[v] if before[v] else one
        three = threes[u, v, w] / pairs[u, v] if pairs[u, v] else two
        total += math.log(np.dot(model.shares, [0.25, one, two, three]))
    assert model.perplexity(np.array(asked)) == pytest.approx(math.exp(-total / (len(asked) - 2)))


def test_shares_are_the_best_there_are() -> None:
    random = np.random.default_rng(0)
    counted, held_out = random.integers(5, size=400), random.integers(5, size=200)
    model = CountedWords(counted, held_out, 5)
    best = model.perplexity(held_out)
    for _ in range(200):
        model.shares = random.dirichlet(np.ones(4))
        assert model.perplexity(held_out) > 0.999 * best


def test_the_bundled_text_is_there() -> None:
    words = words_of(bundled_text())
    assert len(words) > 200_000
    assert words[:2] == ["first", "citizen"]


def counted(ids: list[int], held_out: list[int]) -> CountedWords:
    return CountedWords(np.array(ids), np.array(held_out), 5)


GREEDY = NextWord(patience=1, validation=0.99)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.fit(3), "x: is int and no text. Give a string."),
        (lambda model: model.fit("one"), "x: holds fewer than two words. Give a longer text."),
        (lambda model: model.score(""), "x: holds fewer than two words. Give a longer text."),
        (lambda model: model.transform(["cat", "zebra"]), "x[1]: the word 'zebra' is not in the vocabulary."),
        (lambda model: model.nearest("zebra"), "word: the word 'zebra' is not in the vocabulary."),
        (lambda model: model.nearest(["cat"]), "word: the word ['cat'] is not in the vocabulary."),
        (lambda model: model.nearest("cat", -1), "count: is -1. It must be at least 1."),
        (lambda model: model.predict("cat", -1), "count: is -1. It must be at least 1."),
        (lambda model: model.predict(["cat"]), "x: is list and no text. Give a string."),
        (lambda model: model.predict_proba(None), "x: is NoneType and no text. Give a string."),
        (lambda model: model.transform("cat"), "x: is 'cat' and no list of words. Give a list of strings."),
        (lambda model: model.transform([["cat"]]), "x[0]: is ['cat'] and no word. It must be a string."),
        (lambda model: model.ids(3), "words: is 3 and no list of words. Give a list of strings."),
        (lambda model: model.write("the", -2), "count: is -2. It must be at least 1."),
        (lambda model: model.write(5, 2), "x: is int and no text. Give a string."),
        (lambda model: model.write("the", 1, seed="x"), "seed: 'x' is not a whole number."),
        (lambda _: GREEDY.fit("a b"), "validation: leaves nothing to train on. Give a longer text."),
        (lambda _: CountedWords([0, 1, 2], [0, 1, 2], 10**7), "vocabulary: is 10000000. It must be at most 2000000."),
        (lambda model: model.write("the", 1, temperature=0), "temperature: is 0. It must be more than 0."),
        (lambda _: NextWord(window=0), "window: is 0. It must be at least 1."),
        (lambda _: NextWord(vocabulary_size=1), "vocabulary_size: is 1. It must be at least 2."),
        (lambda _: NextWord().predict("the"), "this NextWord has learned nothing yet. Call fit first."),
        (lambda _: counted([0, 5, 1], [0, 1, 1]), "ids[1]: is 5. It must be a whole number from 0 to 4."),
        (lambda _: counted([0, 2, 1], [0, 1]), "held_out: has fewer than three words. Give more."),
    ],
)  # fmt: skip
def test_bad_input(rhyme: NextWord, call: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        call(rhyme)
    assert error.value.message == message
