"""Pairs of texts: lines of two files, lines with a TAB, rows with two fields; what is not aligned is refused."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.corpus.corpus import Corpus
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.corpus.sides import as_pair, sides_of
from rhapsode.tokenizer.store import build_token_store
from rhapsode.tokenizer.train import train_tokenizer

SIDES = [("A dog runs.", "Ein Hund rennt."), ("Two men", "Zwei Männer"), ("Snow", "Schnee"), ("A cat", "Eine Katze")]


def pairs_in(corpus: Corpus) -> set[tuple[str, str]]:
    return {sides_of(document) for split in ("train", "validation") for document in corpus.documents(split)}  # type: ignore[arg-type]


def written(folder: Path, name: str, lines: list[str]) -> str:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


@given(first=st.text(), second=st.text())
def test_a_pair_is_one_line_and_comes_apart_again(first: str, second: str) -> None:
    document = as_pair(first, second)
    if not document:
        assert not first.strip() or not second.strip()
        return
    assert document.count("\n") == 1
    assert document.count("\t") == 1
    got = sides_of(document)
    for side, wanted in zip(got, (first, second), strict=True):
        assert side.split() == wanted.split()


def test_lines_of_two_files(tmp_path: Path) -> None:
    english = written(tmp_path, "a.en", [side for side, _ in SIDES])
    with gzip.open(tmp_path / "a.de.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{side}\n" for _, side in SIDES)
    corpus = prepare_corpus([english], tmp_path / "out", target=[str(tmp_path / "a.de.gz")], validation_fraction=0.4)
    assert corpus.pairs
    assert pairs_in(corpus) == set(SIDES)
    characters = sum(len(as_pair(*sides)) for sides in SIDES)
    assert corpus.manifest["read"]["text"] == {"files": 2, "documents": 4, "characters": characters}


def test_validation_pairs_are_named_on_both_sides(tmp_path: Path) -> None:
    first, second = (written(tmp_path, f"a{i}", [side[i] for side in SIDES]) for i in (0, 1))
    more = [written(tmp_path, f"b{i}", [text]) for i, text in enumerate(("New", "Neu"))]
    corpus = prepare_corpus(
        [first], tmp_path / "out", target=[second], validation=[more[0]], validation_target=[more[1]]
    )
    assert [sides_of(document) for document in corpus.documents("validation")] == [("New", "Neu")]
    with pytest.raises(InputError, match="--validation-target"):
        prepare_corpus([first], tmp_path / "other", target=[second], validation=[more[0]])


def test_lines_with_a_tab(tmp_path: Path) -> None:
    lines = [f"{a}\t{b}" for a, b in SIDES]
    lines[1] += "\tCC-BY 2.0 (France)"
    corpus = prepare_corpus(
        [written(tmp_path, "a.tsv.txt", [*lines, "", "\tno side"])], tmp_path / "out", target_field="x"
    )
    assert pairs_in(corpus) == set(SIDES)
    dropped = corpus.manifest["dropped"]
    assert dropped["columns after the second"]["count"] == 1
    assert dropped["columns after the second"]["examples"][0].endswith("a.tsv.txt:2")
    assert dropped["empty"]["count"] == 2


def rows(kind: str, path: Path) -> None:
    table = [{"en": a, "de": b, "id": str(i)} for i, (a, b) in enumerate(SIDES)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "de", "en"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(table)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_rows_with_two_fields(tmp_path: Path, kind: str) -> None:
    rows(kind, tmp_path / f"a.{kind}")
    corpus = prepare_corpus([str(tmp_path / f"a.{kind}")], tmp_path / "out", text_field="en", target_field="de")
    assert pairs_in(corpus) == set(SIDES)
    with pytest.raises(InputError, match=r"there is no field 'fr'.*--target-field"):
        prepare_corpus([str(tmp_path / f"a.{kind}")], tmp_path / "no", text_field="en", target_field="fr")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (["a", "b", "c"], ["x", "y"], "y: ends before line 3, which .*x has"),
        (["a"], ["x", "y"], "x: ends before line 2, which .*y has"),
    ],
)
def test_files_that_are_not_aligned_are_refused(
    tmp_path: Path, first: list[str], second: list[str], words: str
) -> None:
    a, b = written(tmp_path, "x", first), written(tmp_path, "y", second)
    with pytest.raises(InputError, match=words):
        prepare_corpus([a], tmp_path / "out", target=[b])
    assert not (tmp_path / "out").exists()


def test_as_many_files_on_both_sides(tmp_path: Path) -> None:
    a, b = written(tmp_path, "x", ["a"]), written(tmp_path, "y", ["b"])
    with pytest.raises(InputError, match="--target: there are 2 files of texts and 1"):
        prepare_corpus([a, b], tmp_path / "out", target=[b])
    with pytest.raises(InputError, match="Give --target or --target-field"):
        prepare_corpus([a], tmp_path / "out", target=[b], target_field="x")


def test_a_line_without_a_tab_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", ["a\tb", "alone", "c\td"])
    with pytest.raises(InputError, match=r"a\.txt:2: has no TAB, so it is no pair"):
        prepare_corpus([path], tmp_path / "out", target_field="target")
    corpus = prepare_corpus([path], tmp_path / "out", target_field="target", skip_bad=True)
    assert pairs_in(corpus) == {("a", "b"), ("c", "d")}


def test_what_has_one_source_stays_together(tmp_path: Path) -> None:
    """A sentence with several translations must not be in both splits: it could be learned by heart."""
    lines = [f"source {number // 5}\ttranslation {number}" for number in range(1000)]
    corpus = prepare_corpus([written(tmp_path, "a.txt", lines)], tmp_path / "out", target_field="target")
    sources: dict[Any, set[str]] = {
        split: {sides_of(document)[0] for document in corpus.documents(split)}  # type: ignore[arg-type]
        for split in ("train", "validation")
    }
    assert len(sources["validation"]) > 10
    assert len(sources["train"] & sources["validation"]) <= 1  # where the share is full


def test_one_pair_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is one pair"):
        prepare_corpus([written(tmp_path, "a.txt", ["a\tb"])], tmp_path / "out", target_field="target")


def test_the_token_store_holds_each_side_with_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", [f"{a}\t{b}" for a, b in SIDES])
    corpus = prepare_corpus([path], tmp_path / "out", target_field="target")
    tokenizer = train_tokenizer(["".join(a + b for a, b in SIDES)], "character")
    store = build_token_store(corpus, tokenizer, tmp_path / "tokens", quiet=True).train
    expected = []
    for document in corpus.documents("train"):
        for side in sides_of(document):
            expected += [*tokenizer.encode(side), tokenizer.end_of_text_id]
    assert store.tokens.tolist() == expected
    assert len(store.documents) == corpus.count("train") + 1
    store.verify()
