from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.corpus.corpus import Corpus, Split
from rhapsode.corpus.prepare import prepare_corpus
from rhapsode.tokenizer.store import TokenStore, TokenStores, build_token_store
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import KINDS, train_tokenizer

TEXTS = [
    "To be, or not to be.\n",
    "é🦙 <|endoftext|> plain",
    "x" * 70_000,
    "\n\n a  b\n",
    "that is the question " * 9000,
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Five documents, some longer than a part, one with the name of a special token in it."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "validation.txt").write_text("Whether 'tis nobler", encoding="utf-8")
    return prepare_corpus([str(folder / "texts.jsonl")], folder / "out", validation=[str(folder / "validation.txt")])


@pytest.fixture
def stores(corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path) -> TokenStores:
    return build_token_store(corpus, trained["bpe"], tmp_path / "tokens", quiet=True)


def documents(store: TokenStore) -> list[list[int]]:
    return [
        store.tokens[start:end].tolist() for start, end in zip(store.documents[:-1], store.documents[1:], strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_each_document_and_its_end(
    corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path, kind: str
) -> None:
    tokenizer = trained[kind]
    stores = build_token_store(corpus, tokenizer, tmp_path / "tokens", quiet=True)
    for split, store in zip(("train", "validation"), stores, strict=True):
        texts = list(corpus.documents(split))
        assert documents(store) == [[*tokenizer.encode(text), tokenizer.end_of_text_id] for text in texts]
        assert store.bytes_of_text == corpus.bytes(split) == sum(len(text.encode("utf-8")) for text in texts)
        assert store.unknown == tokenizer.unknown_count(store.tokens)
        assert (store.tokenizer_digest, store.corpus_fingerprint) == (tokenizer.digest, corpus.fingerprint)
        assert store.tokens.dtype == np.uint16
        store.verify()
    assert stores.train.unknown > 0 or kind in ("byte", "bpe", "unigram")


def test_batches_and_parts_change_nothing(
    corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_token_store(corpus, trained["bpe"], tmp_path / "a", quiet=True)
    monkeypatch.setattr("rhapsode.tokenizer.store.BATCH_CHARACTERS", 1000)
    monkeypatch.setattr("rhapsode.tokenizer.pre_tokenizers.PART", 300)
    again = build_token_store(corpus, trained["bpe"], tmp_path / "b", quiet=True)
    assert [store.fingerprint for store in whole] == [store.fingerprint for store in again]
    assert (tmp_path / "a/train/tokens.bin").read_bytes() == (tmp_path / "b/train/tokens.bin").read_bytes()


def test_a_large_vocabulary_takes_four_bytes(corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    definition = json.loads(trained["byte"].definition)
    for token in range(2**16):
        definition["model"]["vocab"][f"more{token}"] = 256 + token
    for token in definition["added_tokens"]:
        token["id"] += 2**16
    tokenizer = Tokenizer(json.dumps(definition))
    assert tokenizer.end_of_text_id == 2**16 + 256
    store = build_token_store(corpus, tokenizer, tmp_path / "tokens", quiet=True).train
    assert store.tokens.dtype == np.uint32
    assert documents(store)[0] == [*TEXTS[0].encode(), 2**16 + 256]
    assert TokenStore.open(tmp_path / "tokens" / "train").tokens[-1] == 2**16 + 256


def test_a_split_without_documents_is_no_error(corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    class OnlyTraining:
        pairs = False
        fingerprint = corpus.fingerprint

        def bytes(self, split: Split) -> int:
            return corpus.bytes(split) if split == "train" else 0

        def pieces(self, split: Split) -> Iterator[tuple[str, bool]]:
            return corpus.pieces(split) if split == "train" else iter(())

    store = build_token_store(OnlyTraining(), trained["byte"], tmp_path / "tokens", quiet=True).validation  # type: ignore[arg-type]
    assert (len(store.tokens), store.documents.tolist(), store.bytes_of_text) == (0, [0], 0)
    store.verify()


def test_the_tokenizer_needs_an_end_of_text(corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    definition = json.loads(trained["byte"].definition) | {"added_tokens": []}
    with pytest.raises(InputError, match="has no end-of-text token"):
        build_token_store(corpus, Tokenizer(json.dumps(definition)), tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_nothing_is_overwritten(corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    build_token_store(corpus, trained["byte"], tmp_path / "tokens", quiet=True)
    with pytest.raises(InputError, match="already exists"):
        build_token_store(corpus, trained["bpe"], tmp_path / "tokens", quiet=True)
    build_token_store(corpus, trained["bpe"], tmp_path / "tokens", replace=True, quiet=True)
    assert TokenStore.open(tmp_path / "tokens" / "train").tokenizer_digest == trained["bpe"].digest


def test_an_interrupt_leaves_nothing(
    corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "encode_parts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_token_store(corpus, trained["byte"], tmp_path / "tokens", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_the_tokens_cannot_be_written_to(stores: TokenStores) -> None:
    with pytest.raises(ValueError, match="read-only"):
        stores.train.tokens[0] = 1


def test_another_tokenizer_or_corpus_is_a_mismatch(
    stores: TokenStores, corpus: Corpus, trained: dict[str, Tokenizer], tmp_path: Path
) -> None:
    folder = stores.train.folder
    TokenStore.open(folder, tokenizer=trained["bpe"], corpus=corpus)
    with pytest.raises(MismatchError, match="was made with the tokenizer"):
        TokenStore.open(folder, tokenizer=trained["byte"])
    (tmp_path / "other.txt").write_text("Another text.\n" * 50, encoding="utf-8")
    other = prepare_corpus([str(tmp_path / "other.txt")], tmp_path / "other")
    with pytest.raises(MismatchError, match="was made from the corpus"):
        TokenStore.open(folder, corpus=other)


@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, -1])
def test_a_truncated_file_is_noticed_at_once(stores: TokenStores, name: str, share: float) -> None:
    path = stores.train.folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] if share == -1 else data[: int(share * len(data))])
    with pytest.raises(DamagedError, match=f"{name}: has"):
        TokenStore.open(stores.train.folder)


@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy", "manifest.json"])
def test_a_missing_file_is_noticed(stores: TokenStores, name: str) -> None:
    (stores.train.folder / name).unlink()
    with pytest.raises(InputError, match=name):
        TokenStore.open(stores.train.folder)


@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy", "manifest.json"])
def test_every_flipped_bit_is_noticed(stores: TokenStores, name: str) -> None:
    path = stores.train.folder / name
    data = path.read_bytes()
    for position in np.linspace(0, len(data) - 2, 40, dtype=int):
        damaged = bytearray(data)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        try:
            store = TokenStore.open(stores.train.folder)
            store.verify()
        except InputError:
            continue
        # What is left are fields that only tell: they change no token.
        assert name == "manifest.json"
        assert store.tokens.tobytes() == stores.train.tokens.tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 10**15},
        {"tokens": -1},
        {"tokens": 1.5},
        {"dtype": "O"},
        {"dtype": "<u8"},
        {"dtype": None},
        {"documents": 10**12},
        {"files": {}},
        {"files": {"tokens.bin": {"bytes": 0}, "documents.npy": {"bytes": 0}}},
        {"tokenizer": None},
        {"corpus": 3},
        {"fingerprint": None},
        {"format_version": 2},
        {"format": "another"},
    ],
)
def test_a_manifest_that_lies_is_refused(stores: TokenStores, change: dict[str, object]) -> None:
    path = stores.train.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(InputError):
        TokenStore.open(stores.train.folder)


def test_documents_that_do_not_fit_are_refused(stores: TokenStores) -> None:
    path = stores.train.folder / "documents.npy"
    documents = np.load(path)
    for wrong in (documents[::-1], documents + 1, documents.astype(np.float64), np.zeros_like(documents)):
        np.save(path, wrong)
        with pytest.raises(DamagedError, match=r"documents\.npy"):
            TokenStore.open(stores.train.folder)


def test_a_pickle_is_not_loaded(stores: TokenStores, tmp_path: Path) -> None:
    path = stores.train.folder / "documents.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    manifest = stores.train.folder / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["files"]["documents.npy"]["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DamagedError, match="is not a NumPy array"):
        TokenStore.open(stores.train.folder)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(plays: str, tmp_path: Path) -> None:
    import psutil

    tokenizer = train_tokenizer([plays[:300_000]], "bpe", 1000)
    grown = []
    for times in (20, 80):
        (tmp_path / f"{times}.txt").write_text(plays * times, encoding="utf-8")
        corpus = prepare_corpus([str(tmp_path / f"{times}.txt")], tmp_path / f"corpus-{times}")
        before = psutil.Process().memory_info().rss
        build_token_store(corpus, tokenizer, tmp_path / f"tokens-{times}", quiet=True)
        grown.append(psutil.Process().memory_info().rss - before)
    assert max(grown) < 150e6
