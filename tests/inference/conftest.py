"""Two tiny language models with weights at random, saved and loaded like real ones: by characters and by byte pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import save_model
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

CONTEXT = 64


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    model = Decoder(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1.0 + 0.4 * values if parameter.dim() == 1 else values / parameter.shape[1] ** 0.5)
    return model.eval()


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random model for a tokenizer; the tokens named in `never` have no chance to be drawn."""

    def make(tokenizer: Tokenizer, /, *, never: tuple[str, ...] = (), **provenance: Any) -> Path:
        config = QWEN3.config(tokenizer.vocabulary_size, 32, 2, 4, 2, 8, 64, CONTEXT, tied_embeddings=False)
        model = random_decoder(config)
        with torch.no_grad():
            for name in never:
                model.head.weight[tokenizer.special_tokens[name]] = 0.0
        folder = tmp_path_factory.mktemp("model")
        save_model(folder, model, tokenizer, {"objective": "next token", **provenance})
        return folder

    return make


@pytest.fixture(scope="session")
def character_folder(shakespeare: Path, make_folder: Callable[..., Path]) -> Path:
    text = shakespeare.read_text(encoding="utf-8")[:20_000]
    return make_folder(train_tokenizer([text], "character"))


@pytest.fixture(scope="session")
def byte_pair_folder(shakespeare: Path, make_folder: Callable[..., Path]) -> Path:
    text = shakespeare.read_text(encoding="utf-8")[:20_000] + "Žluťoučký kůň 🦙🏽 日本語 " * 20
    return make_folder(train_tokenizer([text], "bpe", 400))


@pytest.fixture(scope="session")
def by_characters(character_folder: Path) -> LanguageModel:
    return load(character_folder, "cpu")


@pytest.fixture(scope="session")
def by_byte_pairs(byte_pair_folder: Path) -> LanguageModel:
    return load(byte_pair_folder, "cpu")
