"""The decoder against transformers' Qwen3, which loads the saved folder without our code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import load_model

TOLERANCE = 1e-4
CONTEXT = 32

Save = Callable[[Path, Decoder], None]
MakeDecoder = Callable[..., Decoder]


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder)


def random_ids(config: ModelConfig, batch: int, time: int, seed: int) -> torch.Tensor:
    return torch.randint(config.vocabulary_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def test_a_cropped_cache_goes_on_as_if_nothing_had_followed(make_decoder: MakeDecoder) -> None:
    config = QWEN3.config(30, 16, 2, 4, 2, 8, 24, CONTEXT)
    model = make_decoder(config)
    ids = random_ids(config, 2, 20, 0)
    cache = KeyValueCache(config, 2, CONTEXT)
    with torch.no_grad():
        model(ids, cache=cache)
        cache.crop(12)
        again = model(ids[:, 12:], cache=cache)
        torch.testing.assert_close(again, model(ids)[:, 12:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_greedy_text_of_200_tokens(make_decoder: MakeDecoder, save: Save, tmp_path: Path, tied: bool) -> None:
    config = QWEN3.config(65, 48, 3, 4, 2, 12, 96, 256, tied_embeddings=tied)
    save(tmp_path, make_decoder(config, 7))
    ours, theirs = load_model(tmp_path), transformers_model(tmp_path)
    prompt = random_ids(config, 1, 9, 1)
    expected = theirs.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)[0].tolist()
    cache = KeyValueCache(config, 1, 256)
    ids = prompt[0].tolist()
    with torch.no_grad():
        fresh = prompt
        while len(ids) < 209:
            ids.append(int(ours(fresh, cache=cache)[0, -1].argmax()))
            fresh = torch.tensor([ids[-1:]])
    assert ids == expected
    assert len(set(ids)) > 5  # a text that stood still would prove little
