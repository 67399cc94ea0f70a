"""Neighbours, analogies, correlations and projections, against plain second versions, gensim and scipy."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from rhapsode.base.correlation import spearman
from rhapsode.base.errors import InputError
from rhapsode.explain.embeddings import Array, WordVectors, open_word_vectors, word_vectors
from rhapsode.explain.judgements import Analogies, Pairs, read_judgements
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from .conftest import WORDS, model_with, random_matrix


def cosine(a: Array, b: Array) -> float:
    """As it is defined, in Python's own numbers."""
    x, y = a.tolist(), b.tolist()
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def test_nearest_words_are_those_of_the_largest_cosine() -> None:
    matrix = random_matrix()
    vectors = WordVectors(WORDS, matrix.copy())
    of = dict(zip(WORDS, matrix, strict=True))
    for word in WORDS[:5]:
        expected = sorted((other for other in WORDS if other != word), key=lambda other: -cosine(of[word], of[other]))
        found = vectors.nearest(word, 7)
        assert [neighbour.word for neighbour in found] == expected[:7]
        assert [neighbour.similarity for neighbour in found] == pytest.approx(
            [cosine(of[word], of[other]) for other in expected[:7]], abs=1e-6
        )
    assert vectors.nearest(of["ba"] * 50, 1)[0].word == "ba"
    assert vectors.nearest("ba", 1, without=["so"])[0].word != "so"
    assert len(vectors.nearest("ba", 1000)) == len(WORDS) - 1


def test_analogies_leave_out_the_words_they_are_asked_with() -> None:
    matrix = random_matrix()
    unit = {word: row / np.linalg.norm(row) for word, row in zip(WORDS, matrix, strict=True)}
    found = WordVectors(WORDS, matrix).analogy("ba", "di", "fo", 1000)
    target = unit["ba"] - unit["di"] + unit["fo"]
    expected = sorted(set(WORDS) - {"ba", "di", "fo"}, key=lambda word: -cosine(target, unit[word]))
    assert [neighbour.word for neighbour in found] == expected


def test_an_analogy_that_was_built_in_is_found() -> None:
    royal, male, female, common = np.eye(4, dtype=np.float32)
    words = ["king", "man", "woman", "queen", "car"]
    matrix = np.stack([royal + male, common + male, common + female, royal + female, common])
    vectors = WordVectors(words, matrix)
    assert vectors.analogy("king", "man", "woman", 1)[0].word == "queen"
    ((accuracy),) = vectors.analogies({"family": [("man", "king", "woman", "queen"), ("man", "king", "woman", "car")]})
    assert (accuracy.right, accuracy.asked, accuracy.of, accuracy.share) == (1, 2, 2, 0.5)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # gensim leaves them open
def test_against_gensim(shared_data: Path, glove: WordVectors, tmp_path: Path) -> None:
    models = pytest.importorskip("gensim.models", reason="gensim is not installed")
    folder = shared_data / "embeddings"
    theirs = models.KeyedVectors.load_word2vec_format(str(folder / "glove.840B.300d_top256.txt"), no_header=True)
    for word in glove.words[::7]:
        found = [(each.word, pytest.approx(each.similarity, abs=1e-5)) for each in glove.nearest(word, 5)]
        assert theirs.most_similar(word, topn=5) == found
    for a, b, c in zip(glove.words[::5], glove.words[1::5], glove.words[2::5], strict=False):
        found = [(each.word, pytest.approx(each.similarity, abs=1e-5)) for each in glove.analogy(a, b, c, 3)]
        assert theirs.most_similar(positive=[a, c], negative=[b], topn=3) == found
    chance = np.random.default_rng(0)
    words = [*(word.swapcase() for word in glove.words if word.isalpha()), "mesquite"]
    pairs = [f"{a}\t{b}\t{chance.integers(9)}\n" for a, b in chance.choice(words, (400, 2))]
    (tmp_path / "pairs").write_text("".join(pairs), encoding="utf-8")
    _, expected, missing = theirs.evaluate_word_pairs(str(tmp_path / "pairs"))
    found = glove.correlation(read_judgements(tmp_path / "pairs"))
    assert found.spearman == pytest.approx(expected.statistic, abs=1e-6)
    assert 100 * (1 - found.pairs / found.of) == pytest.approx(missing)
    assert 0 < missing < 5


def compute_accuracy(words: list[str], matrix: Array, questions: list[tuple[str, ...]], threshold: int) -> list[int]:
    """Right and asked, as word2vec's compute-accuracy.c has it, loop by loop."""
    vocabulary = [word.upper() for word in words[:threshold]]
    unit = [row / np.linalg.norm(row) for row in matrix[:threshold].astype(np.float64)]
    right = asked = 0
    for question in questions:
        first, second, third, fourth = (word.upper() for word in question)
        if not {first, second, third, fourth} <= set(vocabulary):
            continue
        b1, b2, b3 = (vocabulary.index(word) for word in (first, second, third))
        target = unit[b2] - unit[b1] + unit[b3]
        asked += 1
        best, best_distance = "", 0.0
        for c, row in enumerate(unit):
            if c not in (b1, b2, b3) and float(target @ row) > best_distance:
                best, best_distance = vocabulary[c], float(target @ row)
        right += best == fourth
    return [right, asked]


def test_analogies_are_judged_as_word2vec_does_it() -> None:
    words = [*WORDS, *(word.swapcase() for word in WORDS[:20])]  # a second spelling of some, further down
    matrix = random_matrix(len(words), 3)  # so few dimensions that many answers are right by chance
    chance = np.random.default_rng(1)
    for threshold in (len(words), 70, 30):
        drawn = chance.choice(words, (1500, 4)).tolist()
        questions = [tuple(question) for question in drawn]
        expected = compute_accuracy(words, matrix, questions, threshold)
        (found,) = WordVectors(words, matrix.copy()).analogies({"all": questions}, threshold)
        assert [found.right, found.asked, found.of] == [*expected, 1500]
        assert found.right > 3


@pytest.fixture(scope="module")
def questions(shared_data: Path) -> Analogies:
    found = read_judgements(shared_data / "embeddings" / "questions-words.txt")
    assert isinstance(found, dict)
    return found


def first_words(questions: Analogies, count: int) -> list[str]:
    every = [word for section in questions.values() for question in section for word in question]
    return list(dict.fromkeys(every))[:count]


def test_questions_of_the_shared_file(questions: Analogies) -> None:
    words = first_words(questions, 300)
    matrix = random_matrix(len(words), 4)
    found = WordVectors(words, matrix.copy()).analogies(questions)
    assert [section.section for section in found] == list(questions)
    assert sum(section.of for section in found) == 19_544
    asked = [section for section in found if 0 < section.asked < 600]
    assert asked
    for section in asked:
        expected = compute_accuracy(words, matrix, questions[section.section], 30_000)
        assert [section.right, section.asked] == expected


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # gensim leaves them open
def test_questions_of_the_shared_file_against_gensim(questions: Analogies, shared_data: Path) -> None:
    models = pytest.importorskip("gensim.models", reason="gensim is not installed")
    words = first_words(questions, 300)
    matrix = random_matrix(len(words), 4)
    theirs = models.KeyedVectors(4)
    theirs.add_vectors(words, matrix)
    path = shared_data / "embeddings" / "questions-words.txt"
    _, sections = theirs.evaluate_word_analogies(str(path), restrict_vocab=150)
    expected = {section["section"]: (len(section["correct"]), len(section["incorrect"])) for section in sections}
    total = expected.pop("Total accuracy")
    found = WordVectors(words, matrix.copy()).analogies(questions, 150)
    assert {each.section: (each.right, each.asked - each.right) for each in found} == expected
    assert min(total) > 10


@given(st.lists(st.tuples(st.integers(-4, 4), st.floats(-1, 1, width=16)), max_size=40))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, float]]) -> None:
    a, b = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
    found = spearman(a, b)
    if len(pairs) < 2 or len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_correlation_counts_the_pairs_it_has(vectors: WordVectors) -> None:
    pairs: Pairs = [
        ("ba", "dE", 1.0),
        ("BA", "fi", 2.0),
        ("ba", "none", 3.0),
        ("none", "nothing", 4.0),
        ("ga", "ki", 2.5),
    ]
    found = vectors.correlation(pairs)
    kept = [("ba", "dE", 1.0), ("ba", "fi", 2.0), ("ga", "ki", 2.5)]
    cosines = [cosine(vectors.vector(first), vectors.vector(second)) for first, second, _ in kept]
    assert found.spearman == pytest.approx(spearmanr(cosines, [score for *_, score in kept]).statistic)
    assert (found.pairs, found.of, found.composed) == (3, 5, 0)
    assert vectors.correlation(pairs[2:4]).spearman is None


def test_projection_is_that_of_the_covariance_matrix(vectors: WordVectors) -> None:
    words = WORDS[:15]
    found = vectors.project([*words, words[0]])
    assert found.words == words
    centred = np.stack([vectors.vector(word) for word in words]).astype(np.float64)
    centred -= centred.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    for column in (0, 1):
        expected = centred @ directions[:, -1 - column]
        sign = np.sign(expected @ found.points[:, column])
        assert np.abs(sign * expected - found.points[:, column]).max() < 1e-9
        assert found.points[np.abs(found.points[:, column]).argmax(), column] > 0
        assert found.shares[column] == pytest.approx(variances[-1 - column] / variances.sum())


def test_projection_of_few_numbers() -> None:
    flat = WordVectors(["a", "b", "c"], np.array([[1.0], [-2.0], [3.0]], dtype=np.float32)).project(["a", "b", "c"])
    assert flat.points[:, 1].tolist() == [0, 0, 0]
    assert flat.shares == (1.0, 0.0)
    with pytest.raises(InputError, match="fewer than three different words"):
        WordVectors(WORDS, random_matrix()).project(["ba", "dE", "ba"])
    with pytest.raises(InputError, match="all have the same vector"):
        WordVectors(["a", "b", "c"], np.array([[1.0], [2.0], [3.0]], dtype=np.float32)).project(["a", "b", "c"])


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_turning_all_vectors_changes_nothing(seed: int) -> None:
    matrix = random_matrix(seed=seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))
    straight, turned = WordVectors(WORDS, matrix.copy()), WordVectors(WORDS, (matrix @ turn).astype(np.float32))
    for ours, theirs in (
        (straight.nearest("ba", 10), turned.nearest("ba", 10)),
        (straight.analogy("ba", "di", "so", 10), turned.analogy("ba", "di", "so", 10)),
    ):
        similarities = [neighbour.similarity for neighbour in ours]
        assert [neighbour.similarity for neighbour in theirs] == pytest.approx(similarities, abs=1e-5)
        if min(-np.diff(similarities)) > 1e-5:
            assert [neighbour.word for neighbour in ours] == [neighbour.word for neighbour in theirs]
    words = WORDS[: 20 + seed % 20]
    a, b = straight.project(words), turned.project(words)
    assert np.abs(a.points - b.points).max() < 1e-4
    assert a.shares == pytest.approx(b.shares, abs=1e-6)
    pairs: Pairs = [(first, second, float(rank)) for rank, (first, second) in enumerate(pairwise(WORDS))]
    assert straight.correlation(pairs).spearman == pytest.approx(turned.correlation(pairs).spearman, abs=1e-3)
    questions: Analogies = {"all": list(zip(WORDS, WORDS[1:], WORDS[2:], WORDS[3:], strict=False))}
    assert straight.analogies(questions) == turned.analogies(questions)


def test_vectors_of_any_length_count_alike() -> None:
    matrix = random_matrix()
    scaled = matrix * np.geomspace(1e-30, 1e30, len(matrix), dtype=np.float32)[:, None]
    a, b = WordVectors(WORDS, matrix), WordVectors(WORDS, scaled)
    assert np.abs(a.matrix - b.matrix).max() < 1e-6
    assert np.abs(np.linalg.norm(b.matrix, axis=1) - 1).max() < 1e-6


def test_vectors_that_cannot_be_used() -> None:
    matrix = random_matrix()
    matrix[3] = 0
    vectors = WordVectors(WORDS, matrix)
    assert WORDS[3] not in vectors
    assert len(vectors.words) == len(vectors.matrix) == len(WORDS) - 1
    assert vectors.notes == ["1 vector was left out, of zeros only."]
    matrix = random_matrix()
    matrix[5, 0] = np.nan
    with pytest.raises(InputError, match=f"the vector of {WORDS[5]!r} is not finite"):
        WordVectors(WORDS, matrix)
    with pytest.raises(InputError, match="no word with a vector"):
        WordVectors(["a"], np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(InputError, match="stands there twice"):
        WordVectors(["a", "a"], np.ones((2, 3), dtype=np.float32))


def test_an_unknown_word_is_told_with_the_nearest_spellings(vectors: WordVectors, glove: WordVectors) -> None:
    with pytest.raises(InputError, match=r"there is no vector for 'be'\. Spelt alike: 'bE'"):
        vectors.vector("be")
    with pytest.raises(InputError, match=r"'peopel'\. Spelt alike: 'people'"):
        glove.nearest("peopel")
    with pytest.raises(InputError, match=r"No word is spelt alike; the first of 60 is 'ba'"):
        vectors.vector("Xylophon")
    with pytest.raises(InputError, match="count must be at least 1, not 0"):
        vectors.nearest("ba", 0)


@pytest.fixture(scope="module")
def plays(shakespeare: Path) -> str:
    return shakespeare.read_text(encoding="utf-8")[:200_000]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_words_of_a_model_are_its_tokens_that_begin_with_a_space(kind: str, plays: str) -> None:
    tokenizer = train_tokenizer([plays[:50_000] if kind == "unigram" else plays], kind, 600)
    model = model_with(tokenizer)
    vectors = word_vectors(model)
    table = model.model.embedding.weight.detach().numpy()
    assert {"the", "my"} <= set(vectors.words)
    for word in vectors.words:
        assert word[0].isalnum()
        ids = tokenizer.encode(f" {word}")
        if len(ids) == 1:
            assert cosine(vectors.vector(word), table[ids[0]]) == pytest.approx(1, abs=1e-6)
    several = "gentlewoman's"
    ids = tokenizer.encode(f" {several}")
    assert several not in vectors
    if kind == "word":
        with pytest.raises(InputError, match="no vector for 'zyzzyva'"):
            vectors.vector("zyzzyva")
    else:
        assert len(ids) > 1
        assert cosine(vectors.vector(several), table[ids].mean(axis=0)) == pytest.approx(1, abs=1e-6)
        found = vectors.correlation([(several, "the", 1.0), ("my", "the", 2.0), ("THE", "my", 3.0)])
        assert (found.pairs, found.composed) == (3, 1)


@pytest.mark.parametrize("kind", ["character", "byte"])
def test_words_of_a_model_of_characters_are_its_letters_and_digits(kind: str, plays: str) -> None:
    model = model_with(train_tokenizer([plays], kind))
    vectors = word_vectors(model)
    assert {"a", "Z"} <= set(vectors.words)
    assert all(len(word) == 1 and word.isalnum() for word in vectors.words)
    table = model.model.embedding.weight.detach().numpy()
    ids = model.tokenizer.encode("king")
    assert cosine(vectors.vector("king"), table[ids].mean(axis=0)) == pytest.approx(1, abs=1e-6)
    with pytest.raises(InputError, match="no vector for ''"):
        vectors.vector("")
    if kind == "character":
        with pytest.raises(InputError, match="no vector for 'kůň'"):
            vectors.vector("kůň")


def test_words_of_tokenizers_by_others(shared_data: Path) -> None:
    import gzip

    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pieces = (shared_data / "tokenizers" / "bert_base_uncased_vocab.txt").read_text(encoding="utf-8").splitlines()
    library = Library(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    word_piece = word_vectors(model_with(Tokenizer(library.to_str())))
    assert {"king", "queen", "the"} <= set(word_piece.words)
    assert not any(word.startswith(("##", "[")) for word in word_piece.words)

    with gzip.open(shared_data / "tokenizers" / "gpt2" / "tokenizer.json.gz", "rt", encoding="utf-8") as file:
        gpt2 = word_vectors(model_with(Tokenizer(file.read())))
    assert {"king", "King", "Paris"} <= set(gpt2.words)
    assert len(gpt2.words) > 30_000

    vocabulary = [("<unk>", 0.0), ("▁", -2.0), ("▁king", -3.0), ("dom", -4.0), ("▁the", -2.5), ("s", -3.0)]
    library = Library(models.Unigram(vocabulary, 0))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    model = model_with(Tokenizer(library.to_str()))
    pieces_of = word_vectors(model)
    assert pieces_of.words == ["king", "the"]
    table = model.model.embedding.weight.detach().numpy()
    assert cosine(pieces_of.vector("kingdoms"), table[[2, 3, 5]].mean(axis=0)) == pytest.approx(1, abs=1e-6)


def test_notes_of_a_file_come_with_its_vectors(shared_data: Path) -> None:
    vectors = open_word_vectors(shared_data / "embeddings" / "wiki.en.top.vec")
    assert len(vectors.notes) == 1
    assert "beginning of another" in vectors.notes[0]
