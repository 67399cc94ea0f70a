"""rhapsode fill, translate and embed, as `rhapsode report` prints them and in other ways."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from rhapsode.cli.main import run
from rhapsode.inference.language_model import load
from rhapsode.report.report import next_commands

from ..measurements import short_measurements
from .conftest import Rhapsode

SIZES = "--steps 3 --vocabulary-size 450 --hidden-size 16 --layers 1 --heads 1 --context-length 48 --batch-size 2 \
--validation-interval 3 --checkpoint-interval 3 --sample-interval 3 --device cpu --threads 1 --validation-tokens 200"


@pytest.fixture(scope="session")
def runs(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind that reads."""
    folder = tmp_path_factory.mktemp("readers")
    text = folder / "text.txt"
    text.write_text(shakespeare.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    found = {}
    for kind in ("encoder", "encoder-decoder"):
        found[kind] = folder / kind
        words = ["train", str(text), "--kind", kind, "--out", str(found[kind]), *SIZES.split()]
        with short_measurements():
            assert run(words) == 0
    return found


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_what_the_report_prints_works(kind: str, runs: dict[str, Path], rhapsode: Rhapsode) -> None:
    Path("texts.txt").write_text("the gods\nSpeak, speak.\n", encoding="utf-8")
    tried = [command for _, command in next_commands(runs[kind]) if not command.startswith("rhapsode verify")]
    assert len(tried) == (2 if kind == "encoder" else 1)
    for command in tried:
        done = rhapsode(*shlex.split(command)[1:])
        assert (done.code, done.out != "") == (0, True), done.err
    if kind == "encoder":
        vectors = np.load("vectors.npy", allow_pickle=False)
        np.testing.assert_array_equal(vectors, load(runs[kind], "cpu").embed(["the gods", "Speak, speak."]))


def test_fill(runs: dict[str, Path], rhapsode: Rhapsode, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the <|mask|> of <|mask|>"
    filling = load(runs["encoder"], "cpu").fill_mask(text, top=3)
    done = rhapsode("fill", runs["encoder"], text, "--top", "3")
    lines = done.out.splitlines()
    assert (done.code, lines[0]) == (0, filling.text)
    assert [line.split()[:2] for line in lines if line.startswith("gap")] == [["gap", "1"], ["gap", "2"]]
    for gap in filling.gaps:
        for each in gap:
            assert f"{100 * each.probability:5.1f} %" in done.out
    answer = json.loads(rhapsode("fill", runs["encoder"], text, "--json").out)
    assert (answer["text"], len(answer["gaps"])) == (filling.text, 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    assert rhapsode("fill", runs["encoder"], "-").out.splitlines()[0] == filling.text
    done = rhapsode("fill", runs["encoder"], "no gap here")
    assert (done.code, done.error) == (2, "there is no gap in the text. Write <|mask|> where a word is missing.")
    done = rhapsode("fill", runs["encoder-decoder"], text)
    assert done.code == 2
    assert "only an encoder fills gaps. It turns one text into another: `rhapsode translate`." in done.error


def test_translate(runs: dict[str, Path], rhapsode: Rhapsode, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["You are all resolved", "", "the gods", "Speak <|span_0|> speak"]
    options = ["--beams", "3", "--max-tokens", "9", "--length-penalty", "0.5"]
    expected = [
        *load(runs["encoder-decoder"], "cpu").translations(texts, beams=3, max_new_tokens=9, length_penalty=0.5)
    ]
    lines = [each.text.replace("\n", " ") for each in expected]
    source = "".join(f"{text}\r\n" for text in texts).encode()
    Path("some.txt").write_bytes(source)
    Path("some.txt.gz").write_bytes(gzip.compress(source))
    for words in (["some.txt"], ["some.txt.gz"], [*texts[:1], "", *texts[2:]]):
        done = rhapsode("translate", runs["encoder-decoder"], *words, *options)
        assert (done.code, done.out.split("\n")) == (0, [*lines, ""])
        assert "4 texts, " in done.err
    for words in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source), encoding="utf-8"))
        assert rhapsode("translate", runs["encoder-decoder"], *words, *options).out.split("\n") == [*lines, ""]
    done = rhapsode("translate", runs["encoder-decoder"], "some.txt", *options, "--out", "german.txt")
    assert (done.code, done.out) == (0, "")
    assert Path("german.txt").read_text(encoding="utf-8").split("\n") == [*lines, ""]
    done = rhapsode("translate", runs["encoder-decoder"], "some.txt", *options, "--json")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["source"] for answer in answers] == texts
    assert [answer["ended"] for answer in answers] == [each.ended for each in expected]
    if cut := sum(not each.ended for each in expected):
        assert f"{cut} of them reached the greatest length" in done.err


def test_translate_refuses(runs: dict[str, Path], rhapsode: Rhapsode) -> None:
    model = runs["encoder-decoder"]
    Path("bad.txt").write_bytes(b"fine\n\xff\n")
    Path("cut.txt.gz").write_bytes(gzip.compress(b"fine\n" * 1000)[:30])
    Path("there.txt").write_text("mine", encoding="utf-8")
    Path("long.txt").write_text("short\n" + "ab1" * 60, encoding="utf-8")
    for words, message in (
        (["missing.txt"], "missing.txt: there is no such file. Is it a text? Then write it to standard input."),
        (["bad.txt"], "bad.txt:2: is not UTF-8 text"),
        (["cut.txt.gz"], "cut.txt.gz: cannot be read after line"),
        (["a", "--out", "there.txt"], "there.txt: already exists"),
        (["long.txt", "--out", "new.txt"], "text 2 has"),
        (["a", "--beams", "1001", "--out", "new.txt"], "translation: beams: value 1001 is out of range"),
    ):
        done = rhapsode("translate", model, *words)
        assert done.code == 2
        assert done.error.startswith(message)
    assert Path("there.txt").read_text(encoding="utf-8") == "mine"
    assert not Path("new.txt").exists()
    done = rhapsode("translate", runs["encoder"], "a b")
    assert "only an encoder-decoder turns one text into another" in done.error


def test_embed(runs: dict[str, Path], rhapsode: Rhapsode) -> None:
    texts = ["the gods", "Speak, speak.", "You are all resolved"]
    model = load(runs["encoder"], "cpu")
    vectors = model.embed(texts)
    done = rhapsode("embed", runs["encoder"], *texts)
    assert done.code == 0
    cosines = [[float(number) for number in line.split()[-3:]] for line in done.out.splitlines()[1:4]]
    np.testing.assert_allclose(cosines, vectors @ vectors.T, atol=6e-4)
    done = rhapsode("embed", runs["encoder"], *texts, "--json", "--no-normalise", "--pooling", "cls")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    expected = model.embed(texts, "cls", normalise=False)
    np.testing.assert_array_equal(np.array([answer["vector"] for answer in answers], dtype=np.float32), expected)
    assert rhapsode("embed", runs["encoder"], "the gods", "--out", "one.jsonl").code == 0
    assert json.loads(Path("one.jsonl").read_text(encoding="utf-8"))["text"] == "the gods"


def test_embed_refuses(runs: dict[str, Path], rhapsode: Rhapsode) -> None:
    Path("there.npy").write_bytes(b"mine")
    for words, message in (
        (["a"], "1 text cannot be compared in a table. Name 2 to 12, or --out for a file, or --json."),
        (["a", "b", "--out", "there.npy"], "there.npy: already exists"),
        (["a", "b", "--out", "there.csv"], "there.csv: ends in neither .npy nor .jsonl"),
        (["texts.txt", "--out", "new.npy"], "texts.txt: there is no such file"),
        (["a", "ab1 " * 60], "text 2 has"),
    ):
        done = rhapsode("embed", runs["encoder"], *words)
        assert done.code == 2
        assert done.error.startswith(message)
    assert Path("there.npy").read_bytes() == b"mine"
    assert not Path("new.npy").exists()
