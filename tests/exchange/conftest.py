"""Tokenizers to be taken through GGUF: others', and some trained here."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from rhapsode.exchange.gguf_file import GgufFile
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

TRAINED = ("byte", "bpe-gpt-2", "bpe-llama-bpe", "bpe-qwen2")
OTHERS = ("gpt2", "mistral-v1", "mistral-v3", "bert", "t5", "sentencepiece-test")


@pytest.fixture(scope="session")
def plays(shakespeare: Path) -> str:
    """300,000 characters of English."""
    return shakespeare.read_text(encoding="utf-8")[:300_000]


@pytest.fixture(scope="session")
def tokenizer_of(plays: str, request: pytest.FixtureRequest) -> Callable[[str], Tokenizer]:
    """A tokenizer by its name in `TRAINED` or `OTHERS`, made once."""
    made: dict[str, Tokenizer] = {}

    def make(name: str) -> Tokenizer:
        if name in TRAINED:
            kind, _, pre = name.partition("-")
            return train_tokenizer([plays], kind, 1000, pre_tokenizer=pre or "qwen2")
        folder = request.getfixturevalue("shared_data") / "tokenizers"
        if name == "gpt2":
            with gzip.open(folder / "gpt2" / "tokenizer.json.gz", "rt", encoding="utf-8") as file:
                return Tokenizer(file.read())
        files = {
            "mistral-v1": "mistral/tokenizer.model.v1",
            "mistral-v3": "mistral/mistral_instruct_tokenizer_240323.model.v3",
            "bert": "bert_base_uncased_vocab.txt",
            "t5": "t5_base_spiece.model",
            "sentencepiece-test": "sentencepiece_test.model",
        }
        return Tokenizer.load(folder / files[name])

    def get(name: str) -> Tokenizer:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def vocabulary_file(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GgufFile]:
    """llama.cpp's vocabulary-only file of "gpt-2", "bert-bge" or "phi-3"."""

    def opened(name: str) -> GgufFile:
        path = tmp_path_factory.mktemp("vocabulary") / f"{name}.gguf"
        packed = shared_data / "tokenizer_vectors" / "llama_cpp" / f"ggml-vocab-{name}.gguf.gz"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        return GgufFile(path)

    return opened
