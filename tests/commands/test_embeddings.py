"""rhapsode similar, analogy and embeddings: on a word-vector file, a model folder and a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsode.explain.embeddings import open_word_vectors
from rhapsode.explain.judgements import read_judgements

from .conftest import Rhapsode

VECTORS = """\
king 0.9 0.9 0.1
queen 0.9 -0.8 0.1
man 0.1 0.9 0.1
woman 0.1 -0.8 0.1
car 0.1 0.0 -1
lorry 0.2 0.1 -1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text(VECTORS, encoding="utf-8")
    return path


def test_similar(file: Path, rhapsode: Rhapsode) -> None:
    done = rhapsode("similar", "car", "--model", file, "--top", 3)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["word", "similarity"]
    assert [line.split()[0] for line in lines[1:4]] == [each.word for each in open_word_vectors(file).nearest("car", 3)]
    assert re.fullmatch(r"lorry +0\.\d{3} █+[▏▎▍▌▋▊▉]? *", lines[1])
    assert lines[-1] == f"next: rhapsode embeddings picture {file} car lorry king queen --out words.svg"


def test_analogy(file: Path, rhapsode: Rhapsode) -> None:
    done = rhapsode("analogy", "king", "man", "woman", "--model", file)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "king - man + woman"
    assert lines[2].split()[0] == "queen"
    assert lines[-1] == f"next: rhapsode similar queen --model {file}"


def test_json(file: Path, rhapsode: Rhapsode) -> None:
    vectors = open_word_vectors(file)
    answer = json.loads(rhapsode("similar", "car", "--model", file, "--json").out)
    assert answer["word"] == "car"
    assert [each["word"] for each in answer["neighbours"]] == [each.word for each in vectors.nearest("car")]
    answer = json.loads(rhapsode("analogy", "king", "man", "woman", "--model", file, "--json", "--top", 1).out)
    (expected,) = vectors.analogy("king", "man", "woman", 1)
    assert answer["neighbours"] == [{"word": "queen", "similarity": expected.similarity}]
    assert (answer["word"], answer["minus"], answer["plus"]) == ("king", "man", "woman")


def test_evaluate(file: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "pairs.txt").write_text("king queen 8\nman woman 7\ncar lorry 9\ncar tree 1\n", encoding="utf-8")
    (tmp_path / "analogies.txt").write_text(": family\nMan King Woman Queen\nman king woman oak\n", encoding="utf-8")
    done = rhapsode("embeddings", "evaluate", file, "pairs.txt", "analogies.txt")
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()]
    correlation = open_word_vectors(file).correlation(read_judgements(tmp_path / "pairs.txt"))
    assert ["pairs.txt", f"{correlation.spearman:.4f}", "3", "4"] in rows
    assert ["family", "100.0", "%", "1", "1", "2"] in rows
    assert ["all", "100.0", "%", "1", "1", "2"] in rows
    assert "asked: the questions whose words are among the first 6" in done.out
    answer = json.loads(
        rhapsode("embeddings", "evaluate", file, "pairs.txt", "analogies.txt", "--json", "--vocabulary", 3).out
    )
    assert answer["similarity"] == [
        {"file": "pairs.txt", "spearman": correlation.spearman, "pairs": 3, "of": 4, "composed": 0}
    ]
    assert answer["analogies"] == [
        {"file": "analogies.txt", "sections": [{"section": "family", "right": 0, "asked": 0, "of": 2}]}
    ]
    assert answer["vocabulary"] == 3


def test_evaluate_says_none_where_there_is_nothing_to_say(file: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "pairs.txt").write_text("oak tree 8\n", encoding="utf-8")
    (tmp_path / "analogies.txt").write_text("oak tree rose bush\n", encoding="utf-8")
    done = rhapsode("embeddings", "evaluate", file, "pairs.txt", "analogies.txt")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert ["pairs.txt", "none", "0", "1"] in rows
    assert ["all", "none", "0", "0", "1"] in rows
    assert (
        json.loads(rhapsode("embeddings", "evaluate", file, "pairs.txt", "--json").out)["similarity"][0]["spearman"]
        is None
    )


@pytest.mark.parametrize("name", ["words.svg", "words.png"])
def test_picture(name: str, file: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    words = ["embeddings", "picture", file, "king", "queen", "--group", "things=car,lorry", "--out", name]
    done = rhapsode(*words)
    assert (done.code, done.err) == (0, "")
    image = (tmp_path / name).read_bytes()
    assert image.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert re.match(rf"{name}: 4 words, \d+ % of their variance\nnext: rhapsode similar king --model ", done.out)
    done = rhapsode(*words)
    assert done.code == 2
    assert "--force" in done.error
    answer = json.loads(rhapsode(*words, "--force", "--json").out)
    projection = open_word_vectors(file).project(["king", "queen", "car", "lorry"])
    assert answer["points"] == dict(zip(projection.words, projection.points.tolist(), strict=True))
    assert answer["shares"] == list(projection.shares)
    assert (tmp_path / name).read_bytes() == image


def test_a_run_and_its_model_are_one_model(trained: Path, rhapsode: Rhapsode) -> None:
    outputs = [
        json.loads(rhapsode("similar", "e", "--model", folder, "--json").out) for folder in (trained, trained / "model")
    ]
    assert outputs[0]["neighbours"] == outputs[1]["neighbours"]
    assert len(outputs[0]["neighbours"]) == 10
    done = rhapsode("similar", "king", "--model", trained)
    assert done.code == 0
    assert done.err == "Not in the vocabulary, so taken as the mean of their tokens: 'king'.\n"
    assert rhapsode("analogy", "a", "e", "i", "--model", trained).code == 0
    assert rhapsode("embeddings", "picture", trained, *"aeiou", "--out", "vowels.svg").code == 0


def test_what_a_terminal_would_obey_is_quoted(tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "vectors.txt").write_text("a 1 2\n\x1b[31mred 1 3\n", encoding="utf-8")
    done = rhapsode("similar", "a", "--model", "vectors.txt")
    assert done.code == 0
    assert "\x1b[31mred" not in done.out.splitlines()[1]
    assert r"'\x1b[31mred'" in done.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["similar", "kin", "--model", "vectors.txt"],
            "vectors.txt: there is no vector for 'kin'. Spelt alike: 'king'.",
        ),
        (["similar", "KING", "--model", "vectors.txt"], "there is no vector for 'KING'. Spelt alike: 'king'."),
        (["analogy", "king", "man", "women", "--model", "vectors.txt"], "no vector for 'women'. Spelt alike: 'woman'"),
        (["similar", "king", "--model", "none.txt"], "none.txt: there is no such file or folder. Name a model"),
        (["similar", "king", "--model", "."], "there is no model in this folder"),
        (["similar", "king", "--model", "pairs.txt"], "pairs.txt: holds no word vectors"),
        (["similar", "king", "--model", "bad.txt"], "bad.txt:2: there are 1 numbers after the word; 2 belong there"),
        (["similar", "king", "--model", "vectors.txt", "--top", "0"], "0"),
        (["similar", "--model", "vectors.txt"], "rhapsode similar --help"),
        (["analogy", "king", "man", "--model", "vectors.txt"], "rhapsode analogy --help"),
        (["similar", "king"], "model"),
        (["embeddings", "evaluate", "vectors.txt"], "there is no FILE"),
        (["embeddings", "evaluate", "vectors.txt", "none.txt"], "none.txt: the file does not exist"),
        (["embeddings", "evaluate", "vectors.txt", "vectors.txt"], "vectors.txt:1: "),
        (["embeddings", "evaluate", "vectors.txt", "pairs.txt", "--vocabulary", "0"], "0"),
        (["embeddings", "picture", "vectors.txt", "king", "man", "--out", "a.svg"], "fewer than three different words"),
        (["embeddings", "picture", "vectors.txt", "king", "man", "car"], "--out"),
        (["embeddings", "picture", "vectors.txt", "king", "man", "oak", "--out", "a.svg"], "no vector for 'oak'"),
        (["embeddings", "picture", "vectors.txt", "king", "man", "car", "--out", "a.gif"], "a.gif: ends in neither"),
        (["embeddings", "picture", "vectors.txt", "--group", "royal", "--out", "a.svg"], "group 'royal' has no name"),
        (
            ["embeddings", "picture", "vectors.txt", "--group", "a=king", "--group", "b=king,man", "--out", "a.svg"],
            "group 'b=king,man' has its name or a word in common with 'a'",
        ),
    ],
)
def test_what_cannot_be(words: list[str], told: str, file: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "pairs.txt").write_text("king\tqueen\teight\n", encoding="utf-8")
    (tmp_path / "bad.txt").write_text("king 1 2\nqueen 1\n", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    done = rhapsode(*words)
    assert done.code == 2
    assert told in done.error
    assert done.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_word_vector_file_needs_no_torch(file: Path) -> None:
    code = (
        "import sys\nfrom rhapsode.cli.main import run\n"
        f"assert run(['similar', 'king', '--model', {str(file)!r}]) == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
