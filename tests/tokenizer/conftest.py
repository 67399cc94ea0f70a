"""Tokenizers of every kind, trained once on the bundled Shakespeare."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import KINDS, train_tokenizer


@pytest.fixture(scope="session")
def plays(shakespeare: Path) -> str:
    """1.1 MB of English."""
    return shakespeare.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def trained(plays: str) -> dict[str, Tokenizer]:
    """A tokenizer of each kind, of up to 1,000 tokens. Unigram takes its time, and a part of the text will do."""
    return {kind: train_tokenizer([plays[:200_000] if kind == "unigram" else plays], kind, 1000) for kind in KINDS}


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> Tokenizer:
    with gzip.open(shared_data / "tokenizers" / "gpt2" / "tokenizer.json.gz", "rt", encoding="utf-8") as file:
        return Tokenizer(file.read())


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    """Each of the trained tokenizers in turn."""
    return trained[request.param]
