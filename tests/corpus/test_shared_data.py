"""Real texts by others: hundreds of languages and encodings, archives of novels, pages from the web."""

from __future__ import annotations

import unicodedata
import zipfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from rhapsode.corpus.corpus import SPLITS
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.corpus.read import Document, read_documents


def test_declarations_in_three_hundred_languages(shared_data: Path) -> None:
    """The names of the files say their language and encoding; where the bytes bear that out, we must agree."""
    archive = shared_data / "pretrain" / "udhr.zip"
    documents: dict[str, list[Document]] = defaultdict(list)
    for document in read_documents([str(archive)]):
        documents[document.source.rpartition("-")[2]].append(document)
    assert sum(map(len, documents.values())) > 300

    def agreement(label: str, encoding: str) -> tuple[int, int]:
        agreed = counted = 0
        with zipfile.ZipFile(archive) as members:
            for document in documents[label]:
                data = members.read(document.source.removeprefix(f"{archive}/"))
                with suppress(UnicodeDecodeError):
                    text = unicodedata.normalize("NFC", data.decode(encoding).removeprefix("\ufeff"))
                    counted += 1
                    agreed += text.replace("\r\n", "\n").replace("\r", "\n") == document.text
        return agreed, counted

    agreed, counted = agreement("UTF8", "utf-8")
    assert agreed == counted > 80
    agreed, counted = agreement("Latin1", "cp1252")
    assert agreed > 0.9 * counted > 100
    for label, encoding in (("Greek", "cp1253"), ("Hebrew", "cp1255"), ("GB2312", "gb2312"), ("SJIS", "cp932")):
        assert agreement(label, encoding) == (1, 1)


@pytest.mark.parametrize("name", ["english_novels.tar.xz", "french_novels.tar.xz"])
def test_novels(shared_data: Path, tmp_path: Path, name: str) -> None:
    corpus = prepare_corpus([str(shared_data / "pretrain" / name)], tmp_path / "corpus", licence="public domain")
    documents = sum(corpus.count(split) for split in SPLITS)
    assert documents == (82 if name.startswith("english") else 24)
    share = corpus.bytes("validation") / (corpus.bytes("train") + corpus.bytes("validation"))
    assert share == pytest.approx(0.1, abs=0.02)
    corpus.verify()


def test_stories_with_separators(shared_data: Path, tmp_path: Path) -> None:
    stories = str(shared_data / "pretrain" / "tinystories_10k.txt.gz")
    corpus = prepare_corpus([stories], tmp_path / "corpus", separator="<|endoftext|>")
    assert sum(corpus.count(split) for split in SPLITS) == 1728
    assert not any("<|endoftext|>" in text for split in SPLITS for text in corpus.documents(split))


def test_pages_of_the_web(shared_data: Path, tmp_path: Path) -> None:
    corpus = prepare_corpus([str(shared_data / "pretrain" / "web" / "*.jsonl.gz")], tmp_path / "corpus")
    assert corpus.manifest["read"]["jsonl"]["documents"] == 30
    kept = sum(corpus.count(split) for split in SPLITS)
    assert kept + corpus.manifest["dropped"]["duplicate"]["count"] == 30
    assert corpus.count("train") and corpus.count("validation")


@pytest.mark.parametrize(
    ("name", "field", "rows"),
    [
        ("classification/hate_offensive_tweets.csv.gz", "tweet", 24_783),
        ("audit/xstest_prompts.csv", "prompt", 450),
        ("eval/lambada_test.jsonl.gz", "text", 5_153),
        ("qa/gsm8k/test.jsonl.gz", "question", 1_319),
    ],
)
def test_tables(shared_data: Path, name: str, field: str, rows: int) -> None:
    assert sum(1 for _ in read_documents([str(shared_data / name)], text_field=field)) == rows
