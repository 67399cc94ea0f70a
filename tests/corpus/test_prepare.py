"""From texts to a corpus: cleaned, without duplicates, split, wholly written or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.corpus.corpus import SPLITS, Corpus
from rhapsode.corpus.examples import example
from rhapsode.corpus.prepare import prepare_corpus

TRICKY = st.sampled_from("eAé\u0301\u0323\u1100\u1161\u11a8가\r\n \ufeff\u2028\x1b$B日。𝄞")
ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.lists(TRICKY | ANY, min_size=2, max_size=60).map("".join)


def prepare(folder: Path, files: dict[str, str], **options: object) -> Corpus:
    """A corpus of text files with these names and contents."""
    for name, text in files.items():
        (folder / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "texts" / name).write_text(text, encoding="utf-8", newline="")
    return prepare_corpus([str(folder / "texts")], folder / "corpus", **options)  # type: ignore[arg-type]


def texts(corpus: Corpus) -> dict[str, list[str]]:
    return {split: list(corpus.documents(split)) for split in SPLITS}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 3))
def test_any_unicode_comes_out_clean_and_with_its_offsets(tmp_path: Path, written: list[str], seed: int) -> None:
    clean = [
        unicodedata.normalize("NFC", text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
        for text in written
    ]
    expected = list(dict.fromkeys(text for text in clean if text and not text.isspace()))
    shutil.rmtree(tmp_path / "texts", ignore_errors=True)
    files = {f"{number}.txt": text for number, text in enumerate(written)}
    if not expected or (len(expected) == 1 and len(expected[0]) < 2):
        with pytest.raises(InputError, match=r"no text to use|too short"):
            prepare(tmp_path, files, seed=seed, force=True)
        return
    corpus = prepare(tmp_path, files, seed=seed, force=True)
    found = texts(corpus)
    if len(expected) == 1:
        begin = int(len(expected[0]) * 0.9)
        assert found == {"train": [expected[0][:begin]], "validation": [expected[0][begin:]]}
    else:
        assert found["train"] and found["validation"]
        assert sorted(found["train"] + found["validation"]) == sorted(expected)
        assert found["train"] == [text for text in expected if text in found["train"]]
    for split in SPLITS:
        data = corpus.text_path(split).read_bytes()
        offsets = corpus.offsets(split).tolist()
        assert [data[a:b].decode() for a, b in pairwise(offsets)] == found[split]


def test_shakespeare_is_split_as_by_nanogpt(shakespeare: Path, tmp_path: Path) -> None:
    corpus = prepare_corpus([str(shakespeare)], tmp_path / "corpus")
    data = shakespeare.read_text(encoding="utf-8")
    assert texts(corpus) == {"train": [data[: int(len(data) * 0.9)]], "validation": [data[int(len(data) * 0.9) :]]}
    assert corpus.characters("train") == 1_003_854
    assert corpus.manifest["split_by"] == "position"
    corpus.verify()


def test_one_text_is_cut_between_characters(tmp_path: Path) -> None:
    text = "文書" * 700_000 + "é"
    corpus = prepare(tmp_path, {"a.txt": text}, validation_fraction=0.25)
    before = int(len(text) * 0.75)
    assert texts(corpus) == {"train": [text[:before]], "validation": [text[before:]]}


def test_duplicates_and_empty_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    files = {
        "1.txt": "Café\n",
        "2.txt": "another text",
        "3.txt": "Cafe\u0301\r\n",
        "4.txt": "",
        "5.txt": " \n\t",
        "6.txt": "Café\n",
        "7.txt": "a third",
    }
    corpus = prepare(tmp_path, files)
    found = texts(corpus)
    assert sorted(found["train"] + found["validation"]) == ["Café\n", "a third", "another text"]
    dropped = corpus.manifest["dropped"]
    assert dropped["duplicate"] == {"count": 2, "examples": [str(tmp_path / f"texts/{n}.txt") for n in (3, 6)]}
    assert dropped["empty"]["count"] == 2
    assert corpus.manifest["read"] == {"text": {"files": 7, "documents": 5, "characters": 5 + 5 + 5 + 12 + 7}}


def test_named_validation_texts(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"text": "held out"}\n{"text": "held out"}\n{"text": "held too"}\n')
    files = {"1.txt": "kept", "2.txt": "held out", "3.txt": "kept as well", "4.txt": "kept"}
    corpus = prepare(tmp_path, files, validation=[str(tmp_path / "held.jsonl")])
    assert texts(corpus) == {"train": ["kept", "kept as well"], "validation": ["held out", "held too"]}
    assert {reason: entry["count"] for reason, entry in corpus.manifest["dropped"].items()} == {
        "also in validation": 1,
        "duplicate": 2,
    }
    assert [entry["split"] for entry in corpus.entries()] == ["validation"] * 2 + ["train"] * 2


def test_the_split_depends_on_texts_and_seed_only(tmp_path: Path) -> None:
    contents = [f"text number {number} " * (number % 7 + 1) for number in range(100)]

    def validation(folder: str, order: list[str], seed: int) -> set[str]:
        (tmp_path / folder).mkdir()
        files = {f"{folder}-{number:03}.txt": text for number, text in enumerate(order)}
        return set(texts(prepare(tmp_path / folder, files, seed=seed))["validation"])

    first = validation("a", contents, 1)
    assert validation("b", contents[::-1], 1) == first
    assert validation("c", contents, 2) != first


def test_the_fingerprint_is_that_of_texts_and_split(tmp_path: Path) -> None:
    files = {f"{number}.txt": f"text {number}" for number in range(10)}
    fingerprints = {}
    for name, changed, options in (
        ("a", files, {}),
        ("b", {f"x{name}": text for name, text in files.items()}, {"licence": "MIT", "encoding": "utf-8"}),
        ("c", files, {"seed": 5}),
        ("d", files | {"3.txt": "another"}, {}),
        ("e", {"all.txt": "".join(files.values())}, {}),
    ):
        (tmp_path / name).mkdir()
        fingerprints[name] = prepare(tmp_path / name, changed, **options).fingerprint
    assert fingerprints["a"] == fingerprints["b"]
    assert len(set(fingerprints.values())) == 4


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    files = {f"{number}.txt": f"text {number}" for number in range(10)}
    contents = []
    for _ in range(2):
        corpus = prepare(tmp_path, files, force=True)
        contents.append({path.name: path.read_bytes() for path in corpus.folder.iterdir()})
    assert contents[0] == contents[1]


def test_a_separator_makes_documents(tmp_path: Path) -> None:
    corpus = prepare(tmp_path, {"a.txt": "one\n---\ntwo\n---\nthree\n---\n"}, separator="---")
    found = texts(corpus)
    assert sorted(found["train"] + found["validation"]) == ["one\n", "three\n", "two\n"]


def test_a_bad_text_leaves_nothing_of_itself(tmp_path: Path) -> None:
    long = "words and words\n" * 200_000
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "2.txt").write_bytes(long.encode() + "é".encode() + long.encode() + b"\xff\n")
    files = {"1.txt": "first", "3.txt": "third", "4.txt": "fourth"}
    with pytest.raises(InputError, match=r"2\.txt:400001: byte 6,400,002 \(0xff\) cannot be decoded as utf-8"):
        prepare(tmp_path, files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]
    corpus = prepare(tmp_path, files, skip_bad=True)
    found = texts(corpus)
    assert sorted(found["train"] + found["validation"]) == ["first", "fourth", "third"]
    assert corpus.manifest["dropped"] == {
        "undecodable": {"count": 1, "examples": [f"{tmp_path / 'texts/2.txt'}:400001"]}
    }


def test_what_is_there_is_only_replaced_when_asked_and_only_a_corpus(tmp_path: Path) -> None:
    first = prepare(tmp_path, {"a.txt": "one text"})
    with pytest.raises(InputError, match="already exists"):
        prepare(tmp_path, {"a.txt": "another text"})
    assert texts(first)["train"] == ["one tex"]
    with pytest.raises(InputError, match="does not exist"):
        prepare_corpus(["nothing"], tmp_path / "corpus", force=True)
    assert Corpus.open(first.folder).fingerprint == first.fingerprint
    assert texts(prepare(tmp_path, {"a.txt": "another text"}, force=True))["train"] == ["another te"]
    for mine in (tmp_path / "texts", tmp_path / "texts" / "a.txt", tmp_path):
        with pytest.raises(InputError, match="is not a corpus, so it will not be replaced"):
            prepare_corpus([str(tmp_path / "texts")], mine, force=True)
    with pytest.raises(InputError, match="lies in the corpus that is to be replaced"):
        prepare_corpus([str(first.folder / "train.txt")], first.folder, force=True)
    assert (tmp_path / "texts" / "a.txt").read_text() == "another text"


def test_the_corpus_is_not_read_into_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    for _ in range(2):
        corpus = prepare_corpus([str(tmp_path)], tmp_path / "corpus", force=True)
        assert corpus.manifest["read"]["text"]["files"] == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    with pytest.raises(InputError, match=r"corpus: cannot be written"):
        prepare_corpus([str(tmp_path / "a.txt")], tmp_path / "a.txt" / "corpus")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one text " * 1_000_000)
    real_open = Path.open

    def open_full(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        return real_open(Path("/dev/full") if path.name == "texts.txt" else path, mode, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(InputError, match=r"corpus: cannot be written \(No space left on device\)"):
        prepare_corpus([str(tmp_path / "a.txt")], tmp_path / "corpus")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_fractions_out_of_range(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(InputError, match="validation_fraction is"):
        prepare(tmp_path, {"a.txt": "x"}, validation_fraction=fraction)


def test_memory_does_not_grow_with_one_large_text(tmp_path: Path) -> None:
    line = "Größe: a line of text that is one of very many, and is not all ASCII.\n"
    with (tmp_path / "a.txt").open("w", encoding="utf-8", newline="") as file:
        for _ in range(48):
            file.write(line * 15_000)
    size = (tmp_path / "a.txt").stat().st_size
    assert size > 48_000_000
    prepare_corpus([str(example("shakespeare"))], tmp_path / "warm")
    tracemalloc.start()
    try:
        corpus = prepare_corpus([str(tmp_path / "a.txt")], tmp_path / "corpus")
        for _ in corpus.pieces("train"):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corpus.bytes("train") + corpus.bytes("validation") == size
    assert peak < 24_000_000


def test_memory_does_not_grow_with_many_rows(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w", encoding="utf-8") as file:
        for number in range(8_000):
            file.write(json.dumps({"text": f"{number} " + "word " * 500}) + "\n")
    tracemalloc.start()
    try:
        corpus = prepare_corpus([str(tmp_path / "a.jsonl")], tmp_path / "corpus")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corpus.count("train") + corpus.count("validation") == 8_000
    assert corpus.bytes("train") + corpus.bytes("validation") > 20_000_000
    assert peak < 16_000_000


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run the test as nobody where the user is root, who may read everything."""
    if not hasattr(os, "geteuid"):
        pytest.skip("file permissions are other things here")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_files(unprivileged: None) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is not open to nobody
        folder = Path(name)
        for file in ("a.txt", "b.txt", "c/d.txt"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(f"text of {file}")
        (folder / "b.txt").chmod(0)
        (folder / "c").chmod(0)
        try:
            with pytest.raises(InputError, match=r"b\.txt: cannot be read \(Permission denied\)"):
                prepare_corpus([str(folder / "b.txt")], folder / "corpus")
            with pytest.raises(InputError, match=r"c/d\.txt: cannot be read \(Permission denied\)"):
                prepare_corpus([str(folder / "c" / "d.txt")], folder / "corpus")
            with pytest.raises(InputError, match=r"c: cannot be read \(Permission denied\)"):
                prepare_corpus([str(folder / "c")], folder / "corpus")
            corpus = prepare_corpus([str(folder)], folder / "corpus", skip_bad=True)
            assert corpus.manifest["dropped"]["unreadable"]["count"] == 2
        finally:
            (folder / "c").chmod(0o700)


def test_examples() -> None:
    assert example("shakespeare").stat().st_size == 1_115_394
    with pytest.raises(InputError, match="Did you mean 'shakespeare'"):
        example("shakespear")
