"""Vectors to ask: made ones, real ones, and a tiny model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rhapsode.explain.embeddings import Array, WordVectors, open_word_vectors
from rhapsode.inference.language_model import LanguageModel
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.tokenizer.tokenizer import Tokenizer

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "E", "i", "o", "u")]


def random_matrix(rows: int = len(WORDS), dimension: int = 12, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def model_with(tokenizer: Tokenizer) -> LanguageModel:
    """A model with random embeddings for a tokenizer."""
    model = Decoder(QWEN3.config(tokenizer.vocabulary_size, 16, 1, 2, 2, 8, 16, 32, tied_embeddings=False))
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(0))
    return LanguageModel(model.eval(), tokenizer)


@pytest.fixture
def vectors() -> WordVectors:
    return WordVectors(WORDS, random_matrix())


@pytest.fixture(scope="session")
def glove(shared_data: Path) -> WordVectors:
    """The 256 most frequent words of GloVe; do not change it."""
    return open_word_vectors(shared_data / "embeddings" / "glove.840B.300d_top256.txt")
