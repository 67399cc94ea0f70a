"""`rhapsode tokenizer train|encode|decode|compare`, run as the console script runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rhapsode.cli.main import run
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import KINDS, train_tokenizer

Rhapsode = Callable[..., str]


@pytest.fixture
def rhapsode(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rhapsode:
    """Runs `rhapsode tokenizer WORDS`, gives `stdin` to it, and returns what it prints; else the one line of error."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str | Path, code: int = 0, stdin: str = "") -> str:
        (tmp_path / "stdin").write_text(stdin, encoding="utf-8")
        capsys.readouterr()
        with (tmp_path / "stdin").open(encoding="utf-8") as file:
            monkeypatch.setattr(sys, "stdin", file)
            assert run(["tokenizer", *map(str, words)]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        if code:
            assert out == ""
            (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
            return line
        return out + err

    return command


@pytest.fixture
def text(tmp_path: Path, plays: str) -> Path:
    (tmp_path / "plays.txt").write_text(plays[:60_000], encoding="utf-8")
    return tmp_path / "plays.txt"


@pytest.fixture
def folder(tmp_path: Path, trained: dict[str, Tokenizer]) -> Path:
    """A byte-level BPE tokenizer on disk."""
    trained["bpe"].save(tmp_path / "bpe")
    return tmp_path / "bpe"


@pytest.mark.parametrize("kind", KINDS)
def test_train_writes_what_training_gives(rhapsode: Rhapsode, text: Path, tmp_path: Path, kind: str) -> None:
    assert f"{kind}, " in rhapsode("train", text, "--kind", kind, "--vocabulary-size", 500, "--out", "made")
    made = Tokenizer.load(tmp_path / "made")
    assert made.digest == train_tokenizer([text.read_text(encoding="utf-8")], kind, 500).digest
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


def test_train_reads_standard_input_and_prepared_corpora(rhapsode: Rhapsode, text: Path, tmp_path: Path) -> None:
    content = text.read_text(encoding="utf-8")
    rhapsode("train", "-", "--kind", "character", "--out", "piped", stdin=content)
    assert Tokenizer.load(tmp_path / "piped").digest == train_tokenizer([content], "character").digest
    corpus = prepare_corpus([str(text)], tmp_path / "corpus")
    rhapsode("train", "corpus", "--kind", "bpe", "--vocabulary-size", 400, "--out", "prepared")
    expected = train_tokenizer(corpus.documents("train"), "bpe", 400)
    assert Tokenizer.load(tmp_path / "prepared").digest == expected.digest


def test_train_says_when_the_text_gives_fewer_tokens(rhapsode: Rhapsode, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("to be or not to be", encoding="utf-8")
    told = rhapsode("train", "short.txt", "--vocabulary-size", 5000, "--out", "made")
    assert "The text gives no more than" in told


def test_train_replaces_only_when_told(rhapsode: Rhapsode, text: Path, tmp_path: Path) -> None:
    rhapsode("train", text, "--kind", "byte", "--out", "made")
    before = (tmp_path / "made" / "tokenizer.json").read_bytes()
    error = rhapsode("train", text, "--kind", "character", "--out", "made", code=2)
    assert "already exists" in error and "--force" in error
    assert (tmp_path / "made" / "tokenizer.json").read_bytes() == before
    rhapsode("train", text, "--kind", "character", "--out", "made", "--force")
    assert Tokenizer.load(tmp_path / "made").kind == "character"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.txt"], "missing.txt"),
        (["empty.txt"], "empty.txt"),
        ([], "there is no TEXT"),
        (["plays.txt", "--kind", "bpee"], "'bpe'"),
        (["plays.txt", "--knd", "bpe"], "'--kind'"),
        (["plays.txt", "--vocabulary-size", "100"], "vocabulary size 100"),
        (["plays.txt", "--vocabulary-size", "many"], "many"),
        (["plays.txt", "--pre-tokenizer", "qwen"], "qwen2"),
    ],
)
def test_train_refuses(rhapsode: Rhapsode, text: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "empty.txt").touch()
    error = rhapsode("train", *words, "--out", "made", code=2)
    assert message.replace("'", '"') in error.replace("'", '"')
    assert not (tmp_path / "made").exists()


def test_encode_prints_ids(rhapsode: Rhapsode, folder: Path, trained: dict[str, Tokenizer], text: Path) -> None:
    ids = trained["bpe"].encode("To be <|endoftext|> é")
    shown = " ".join(map(str, ids))
    assert rhapsode("encode", folder, "To be <|endoftext|> é").strip() == shown
    assert rhapsode("encode", folder / "tokenizer.json", "-", stdin="To be <|endoftext|> é").strip() == shown
    assert rhapsode("encode", folder, "-10 degrees").split() == list(map(str, trained["bpe"].encode("-10 degrees")))
    from_file = rhapsode("encode", folder, text)
    assert from_file.split() == list(map(str, trained["bpe"].encode(text.read_text(encoding="utf-8"))))


def test_encode_shows_pieces(rhapsode: Rhapsode, folder: Path) -> None:
    lines = rhapsode("encode", folder, "the 🦙", "--pieces").splitlines()
    assert lines[0].split() == [lines[0].split()[0], "'the'"]
    assert lines[-1].endswith(r"b'\x99'")
    shown = json.loads(rhapsode("encode", folder, "the 🦙", "--json"))
    assert (shown["bytes"], shown["unknown"]) == (8, 0)
    assert len(shown["ids"]) == len(shown["pieces"]) == len(lines)


def test_encode_tells_of_unknown_characters(rhapsode: Rhapsode, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    trained["character"].save(tmp_path / "character")
    assert "2 of 3 tokens stand for something that the vocabulary lacks" in rhapsode("encode", "character", "aéü")
    assert json.loads(rhapsode("encode", "character", "aéü", "--json"))["unknown"] == 2


def test_decode_gives_the_text_back_and_nothing_more(rhapsode: Rhapsode, folder: Path, text: Path) -> None:
    ids = rhapsode("encode", folder, text)
    assert rhapsode("decode", folder, "-", stdin=ids) == text.read_text(encoding="utf-8")
    assert rhapsode("decode", folder, *ids.split()[:50]) == text.read_text(encoding="utf-8")[:0] + rhapsode(
        "decode", folder, "-", stdin=json.dumps([int(id) for id in ids.split()[:50]])
    )
    assert rhapsode("decode", folder, "996") == "<|endoftext|>"
    assert rhapsode("decode", folder, "996", "--skip-special") == ""


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["5000"], "there is no token 5000"),
        (["99999999999999999999"], "there is no token 99999999999999999999"),
        (["1", "x"], "'x' is no token id"),
        (["-1"], "'-1' is no token id"),
        (["1.5"], "'1.5' is no token id"),
        (["²"], "'²' is no token id"),
        ([], "there are no ids"),
    ],
)
def test_decode_refuses(rhapsode: Rhapsode, folder: Path, ids: list[str], message: str) -> None:
    assert message in rhapsode("decode", folder, *ids, code=2)


@pytest.mark.parametrize(
    "command",
    [["encode", "TOKENIZER", "text"], ["decode", "TOKENIZER", "1"], ["compare", "TOKENIZER", "--text", "plays.txt"]],
)
def test_a_tokenizer_that_is_none_is_refused(
    rhapsode: Rhapsode, text: Path, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "broken.json").write_text('{"model": {"type": "BPE"', encoding="utf-8")
    for name, message in (
        ("nowhere", "does not exist"),
        ("nothing", "no tokenizer here"),
        ("broken.json", "broken.json:1"),
    ):
        error = rhapsode(*[name if word == "TOKENIZER" else word for word in command], code=2)
        assert message in error and error.startswith(f"error: {name}")


def test_encode_refuses_options_and_other_encodings(rhapsode: Rhapsode, folder: Path, tmp_path: Path) -> None:
    assert "'--json'" in rhapsode("encode", folder, "--jsn", code=2)
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    assert "latin.txt: is not UTF-8 text at byte 2" in rhapsode("encode", folder, "latin.txt", code=2)


def test_compare_prints_a_row_for_each(
    rhapsode: Rhapsode, trained: dict[str, Tokenizer], folder: Path, text: Path, tmp_path: Path
) -> None:
    trained["character"].save(tmp_path / "character")
    printed = rhapsode("compare", folder, "character", "--text", text)
    assert "bytes per" in printed and "tokens per" in printed and "unknown" in printed and "MB/s" in printed
    rows = [line.split() for line in printed.splitlines()[-2:]]
    assert [row[1:3] for row in rows] == [["bpe", "1,000"], ["character", "70"]]
    assert rows[1][3:6] == ["1.00", rows[1][4], "0"] and rows[1][-1] == "yes"
    lines = rhapsode("compare", folder, "character", "--text", text, "--text", text, "--json").splitlines()
    assert [json.loads(line)["tokens"] for line in lines][1] == 2 * 60_000


def test_compare_refuses(rhapsode: Rhapsode, folder: Path, text: Path) -> None:
    assert "there is no TOKENIZER" in rhapsode("compare", "--text", text, code=2)
    assert "missing.txt" in rhapsode("compare", folder, "--text", "missing.txt", code=2)
