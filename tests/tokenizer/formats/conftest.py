"""SentencePiece models of every kind, trained by SentencePiece itself, and folders of other tokenizers' files."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

MIXTURE = "Größe naïve 日本語 テキスト 한국어 हिन्दी x == y  for  i in range(10): --- ... 1984 ﬁ ½"

# What models differ in: how text is normalised, what users add, whether bytes stand in for the unknown.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bytes": {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "given": {
        "user_defined_symbols": ["<sep>", "ab", "the", "日本", "  ", "▁▁", "e"],
        "normalization_rule_name": "nfkc",
    },
    "across": {"split_by_whitespace": False, "normalization_rule_name": "nmt_nfkc_cf"},
    "bare": {
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["\n", "<a>", "<ab>", "b>c"],
        "byte_fallback": True,
    },
    "control": {"control_symbols": ["<c>", "the"], "pad_id": 3, "normalization_rule_name": "identity"},
}
MODELS = [f"{kind}-{options}" for kind in ("unigram", "bpe") for options in OPTIONS]

Write = Callable[..., Path]


def train(texts: list[str], size: int, **options: Any) -> bytes:
    """A SentencePiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=3,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def models(plays: str) -> dict[str, bytes]:
    """A model for each of `MODELS`."""
    texts = [*plays[:60_000].split("\n"), *[MIXTURE] * 20]
    kinds = {name: name.split("-") for name in MODELS}
    return {name: train(texts, 700, model_type=kind, **OPTIONS[options]) for name, (kind, options) in kinds.items()}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files, given as bytes, text or JSON, into a new folder and returns it."""

    def written(**files: Any) -> Path:
        folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, content in files.items():
            data = (
                content if isinstance(content, bytes) else content.encode("utf-8") if isinstance(content, str) else None
            )
            (folder / name.replace("__", ".")).write_bytes(
                json.dumps(content).encode("utf-8") if data is None else data
            )
        return folder

    return written


def unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        return file.read()
