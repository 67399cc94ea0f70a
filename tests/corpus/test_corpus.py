"""The prepared corpus on disk: what it gives back, and every kind of damage noticed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.corpus.corpus import FILES, SPLITS, Corpus, _place_to_cut
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.tokenizer.pre_tokenizers import PATTERNS

TEXTS = [f"Document {number}: Größe, 文書, naïve.\n" * (number + 1) for number in range(30)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    return prepare_corpus([str(tmp_path / "texts.jsonl")], tmp_path / "corpus", licence="CC0-1.0")


def test_documents_come_back(corpus: Corpus) -> None:
    found = {split: list(corpus.documents(split)) for split in SPLITS}
    assert sorted(found["train"] + found["validation"]) == sorted(TEXTS)
    assert found["train"] == [text for text in TEXTS if text in found["train"]]
    for split in SPLITS:
        joined = "".join(found[split])
        assert corpus.text_path(split).read_text(encoding="utf-8") == joined
        assert corpus.count(split) == len(found[split]) > 0
        assert corpus.characters(split) == len(joined)
        assert corpus.bytes(split) == len(joined.encode()) == corpus.offsets(split)[-1]
        entries = [entry for entry in corpus.entries() if entry["split"] == split]
        assert [entry["bytes"] for entry in entries] == np.diff(corpus.offsets(split)).tolist()
        assert {entry["licence"] for entry in entries} == {"CC0-1.0"}
    corpus.verify()


@pytest.mark.parametrize("characters", [1, 3, 17, 1000])
def test_pieces_are_the_documents(corpus: Corpus, characters: int) -> None:
    documents, parts = [], []
    for text, ends in corpus.pieces("train", characters):
        assert len(text) <= characters
        parts.append(text)
        if ends:
            documents.append("".join(parts))
            parts.clear()
    assert documents == list(corpus.documents("train"))
    assert not parts


@pytest.mark.parametrize("name", PATTERNS)
@settings(deadline=None)
@given(text=st.text(alphabet="ab1.' \n\r\t\u3000é", min_size=2, max_size=40), limit=st.integers(1, 30))
def test_pieces_end_where_byte_level_tokenizers_cut_too(name: str, text: str, limit: int) -> None:
    limit = 1 + limit % (len(text) - 1)
    cut = _place_to_cut(text, limit)
    after_lines = [place.end() for place in re.finditer(r"\S\n(?=\S)", text) if place.end() <= limit]
    before_spaces = [place.end() for place in re.finditer(r"\S(?= \S)", text) if place.end() < limit]
    good = after_lines or before_spaces
    assert cut == (good[-1] if good else limit)
    if good:
        split = Split(Regex(PATTERNS[name]), "isolated")
        words = [[word for word, _ in split.pre_tokenize_str(part)] for part in (text[:cut], text[cut:], text)]
        assert words[0] + words[1] == words[2]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer"])
def test_files_of_other_sizes_are_noticed_when_opened(corpus: Corpus, name: str, damage: str) -> None:
    path = corpus.folder / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "shorter" else data + b"x")
    with pytest.raises(DamagedError) as caught:
        Corpus.open(corpus.folder)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed(corpus: Corpus, name: str) -> None:
    data = bytearray((corpus.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (corpus.folder / name).write_bytes(data)
    with pytest.raises(DamagedError) as caught:
        Corpus.open(corpus.folder).verify()
    assert caught.value.where == str(corpus.folder / name)


def test_offsets_that_do_not_fit_are_noticed(corpus: Corpus) -> None:
    path = corpus.folder / "train.documents.npy"
    right = np.load(path)
    wrong = right.copy()
    wrong[1], wrong[2] = wrong[2], wrong[1]
    not_integers = np.empty(right.shape, dtype=object)  # as a pickle
    for array in (wrong, right - 1, right.astype(np.float64), right.reshape(1, -1), not_integers):
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=True)
        manifest = json.loads((corpus.folder / "manifest.json").read_text())
        manifest["files"][path.name]["bytes"] = path.stat().st_size
        (corpus.folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DamagedError, match=r"does not fit its text|is not a NumPy array"):
            Corpus.open(corpus.folder)


def test_a_header_that_promises_too_much_takes_no_memory(corpus: Corpus) -> None:
    path = corpus.folder / "train.documents.npy"
    size, shape = path.stat().st_size, f"({corpus.count('train') + 1},)".encode()
    path.write_bytes(path.read_bytes().replace(shape, b"(1" + b"0" * 13 + b",)")[:size])
    with pytest.raises(DamagedError, match="is not a NumPy array"):
        Corpus.open(corpus.folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a prepared corpus"),
        ('{"format": "something else"}', "is not a prepared corpus"),
        ('{"format": "rhapsode corpus", "format_version": 99}', "was written in version 99"),
        ('{"format": "rhapsode corpus", "format_version": 1}', "is not a whole manifest"),
        ('{"format": "rhapsode corpus", "format_version": 1, "files": 3}', "is not a whole manifest"),
    ],
)
def test_manifests_that_are_none(corpus: Corpus, content: str, told: str) -> None:
    (corpus.folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=told):
        Corpus.open(corpus.folder)


def test_a_folder_that_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Corpus.open(tmp_path / "nowhere")
    assert not Corpus.is_corpus(tmp_path)


def test_a_corpus_may_be_moved(corpus: Corpus, tmp_path: Path) -> None:
    shutil.move(corpus.folder, tmp_path / "elsewhere")
    moved = Corpus.open(tmp_path / "elsewhere")
    moved.verify()
    assert moved.fingerprint == corpus.fingerprint
    assert Corpus.is_corpus(moved.folder)
