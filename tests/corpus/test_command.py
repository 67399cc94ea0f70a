"""`rhapsode corpus`: what it prints, and that bad input ends in one message, exit code 2 and nothing left behind."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rhapsode.cli.main import run
from rhapsode.corpus.corpus import SPLITS, Corpus

COMMAND = [sys.executable, "-m", "rhapsode", "corpus"]


def test_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(12):
        (Path("texts") / f"{number:02}.txt").write_text(f"text {number % 10}")
    (Path("texts") / "rows.csv").write_text("body\nfirst\nsecond\n")
    (Path("texts") / "picture.png").write_bytes(b"\0")
    arguments = ["corpus", "texts", "--out", "my corpus", "--text-field", "body", "--licence", "CC0-1.0"]
    assert run([*arguments, "--validation-fraction", "0.25", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["read:", "csv", "1", "2", "11"] in rows
    assert ["read:", "text", "12", "12", "72"] in rows
    assert ["dropped:", "duplicate", "2"] in rows
    assert ["dropped:", "unknown", "kind", "1"] in rows
    assert "unknown kind: texts/picture.png".replace("/", os.sep) in printed.out
    corpus = Corpus.open(Path("my corpus"))
    written = [row[:4] for row in rows if row[:1] == ["written:"]]
    assert written == [["written:", split, str(corpus.count(split)), str(corpus.characters(split))] for split in SPLITS]
    assert f"fingerprint: {corpus.fingerprint}" in printed.out
    assert printed.out.splitlines()[-1] == "next: rhapsode train 'my corpus'"
    assert corpus.manifest["settings"]["seed"] == 3
    assert {entry["licence"] for entry in corpus.entries()} == {"CC0-1.0"}


def test_standard_input(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    command = [*COMMAND, "-", "--out", str(out)]
    subprocess.run(command, input="Größe\r\n" * 100, encoding="utf-8", capture_output=True, check=True)
    corpus = Corpus.open(out)
    assert "".join(text for split in ("train", "validation") for text in corpus.documents(split)) == "Größe\n" * 100
    assert next(corpus.entries())["source"] == "standard input"


def files_for_bad_input(folder: Path) -> None:
    contents: dict[str, bytes] = {
        "good.txt": b"a good text",
        "empty.txt": b"",
        "blank.txt": b" \n\n",
        "one.txt": b"x",
        "binary.txt": b"\x7fELF\x02\x01\x01\0\0\0",
        "noise.txt": bytes(1 + (index * index * 7919 + index * 104729) % 255 for index in range(5000)),
        "broken-utf8.txt": "Größe\n".encode() * 50 + b"\xc3\n",
        "rows.jsonl": b'{"text": "one"}\n{"text": "two"\n',
        "fields.jsonl": b'{"content": "one"}\n',
        "rows.csv": b"id,text\n1,one\n2,two,three\n",
        "columns.csv": b"id,words\n1,one\n",
        "bad.parquet": b"PAR1 and nothing more",
        "cut.txt.gz": gzip.compress(b"words\n" * 1000)[:-9],
        "no.zip": b"no archive",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"\0")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_bytes(b"do not touch")


BAD_INPUT = [
    ("missing.txt", "missing.txt: does not exist. Check the name."),
    ("*.xyz", "*.xyz: no file matches. Check the name."),
    ("empty.txt", "empty.txt: holds no text."),
    ("blank.txt", "blank.txt: holds no text."),
    ("one.txt", "one.txt: is too short to keep a part of 0.1 for validation (length: 1)."),
    ("binary.txt", "binary.txt: is binary, not text (it holds zero bytes)."),
    ("noise.txt", "noise.txt: is binary, or text in an unknown encoding. Name its encoding with --encoding"),
    ("broken-utf8.txt", "broken-utf8.txt:51: byte 400 (0xc3) cannot be decoded as utf-8. Name the right encoding"),
    ("rows.jsonl", "rows.jsonl:2: is not JSON (Expecting ',' delimiter at character 16)."),
    ("fields.jsonl", "fields.jsonl:1: there is no field 'text' (there are: content). Name the one"),
    ("rows.csv", "rows.csv:3: has 3 fields where the header has 2."),
    ("columns.csv", "columns.csv:1: there is no field 'text' (there are: id, words). Name the one"),
    ("bad.parquet", "bad.parquet: is damaged or no parquet file ("),
    ("cut.txt.gz", "cut.txt.gz: cannot be unpacked (Compressed file ended before"),
    ("no.zip", "no.zip: cannot be unpacked (File is not a zip file)."),
    ("nothing", "nothing: there is no text to use. Name files or folders that hold some."),
    ("pictures", "pictures: there is no text to use. Dropped were: 1 unknown kind (pictures"),
    ("good.txt --validation empty.txt", "empty.txt: holds no text."),
    (
        "good.txt --validation good.txt",
        "good.txt: there is no text to use. Dropped were: 1 also in validation (good.txt).",
    ),
    ("good.txt --validation nothing", "nothing: there is no text to use."),
    ("good.txt --validation-fraction 1.5", "validation_fraction is 1.5; it must be above 0 and below 1."),
    ("good.txt --validation-fraction x", "Invalid value for --validation-fraction: unable to convert"),
    ("good.txt --encoding uft8", "there is no text encoding 'uft8'. Common ones: utf-8, cp1252, cp1251."),
    ("good.txt --lisence MIT", "there is no option '--lisence'. Did you mean '--licence'?"),
    ("--skip-bda good.txt", "there is no option '--skip-bda'. Did you mean '--skip-bad'?"),
    ("", "there is no TEXT. Name files, folders or globs, or - for standard input."),
    ("good.txt --out full", "full: already exists. Choose another name, or pass --force to replace it."),
    ("good.txt --out full --force", "full: is not a corpus, so it will not be replaced. Choose another name."),
    ("good.txt --out good.txt --force", "good.txt: is not a corpus, so it will not be replaced."),
]


@pytest.mark.parametrize(("arguments", "told"), BAD_INPUT)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files_for_bad_input(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = arguments.split()
    assert run(["corpus", *words, *([] if "--out" in words else ["--out", "corpus"])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: {told}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "corpus").exists()


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\nnot json\n')
    command = [*COMMAND, "rows.jsonl", "--out", "corpus"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: rows.jsonl:2: is not JSON")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_skipping_what_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files_for_bad_input(tmp_path)
    inputs = [name for name, _ in BAD_INPUT if (tmp_path / name).is_file()]
    assert run(["corpus", "good.txt", *inputs, "--skip-bad", "--out", "corpus"]) == 0
    manifest = json.loads(Path("corpus/manifest.json").read_text(encoding="utf-8"))
    assert {reason: entry["count"] for reason, entry in manifest["dropped"].items()} == {
        "binary": 1,
        "binary or unknown encoding": 1,
        "broken row": 2,
        "damaged": 3,
        "duplicate": 1,
        "empty": 2,
        "no such field": 2,
        "undecodable": 1,
    }
    documents = [text for split in ("train", "validation") for text in Corpus.open(Path("corpus")).documents(split)]
    assert sorted(documents) == ["a good text", "one", "x"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to one process")
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    # Whoever runs the tests in the background passes on that interrupts are ignored: they are heeded here again.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}; from rhapsode.cli.main import main; main()"
    command = [sys.executable, "-c", program, "corpus", "-", "--out", "corpus"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        try:
            process.stdin.write(b"words and words\n" * 100_000)
            process.stdin.flush()
            limit = time.monotonic() + 30
            while not list(tmp_path.rglob("texts.txt")) and time.monotonic() < limit:
                time.sleep(0.02)
            assert list(tmp_path.iterdir())
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
        assert process.stderr
        assert process.stderr.read() == b"Interrupted.\n"
    assert not list(tmp_path.iterdir())
