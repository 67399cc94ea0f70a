"""Tiny decoders with weights at random everywhere: no gain is one, no matrix is zero, so that nothing can hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rhapsode.base.files import write_json
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.folder import config_values, save_weights


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    model = Decoder(config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=noise)
            if parameter.dim() == 1:
                parameter.copy_(1.0 + 0.4 * values)
            else:
                parameter.copy_(values / parameter.shape[1] ** 0.5)
    return model.eval()


def save_bare(folder: Path, model: Decoder) -> None:
    """A model folder without a tokenizer."""
    write_json(folder / "config.json", config_values(model.config))
    save_weights(folder, model)


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Decoder]:
    return random_decoder


@pytest.fixture(scope="session")
def save() -> Callable[[Path, Decoder], None]:
    return save_bare
