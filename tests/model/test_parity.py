"""The decoder against transformers' Qwen3, which loads the saved folder without our code."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import DecoderConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.folder import load_model

TOLERANCE = 1e-4
CONTEXT = 32

Save = Callable[[Path, Decoder], None]
MakeDecoder = Callable[..., Decoder]


@st.composite
def shapes(draw: st.DrawFn) -> DecoderConfig:
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    return DecoderConfig(
        vocabulary_size=draw(st.integers(2, 90)),
        hidden_size=draw(st.sampled_from([8, 20, 48])),
        layers=draw(st.integers(1, 3)),
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 6, 16])),
        intermediate_size=draw(st.integers(1, 70)),
        context_length=CONTEXT,
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 1_000_000.0])),
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-5])),
        tied_embeddings=draw(st.booleans()),
    )


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder)


def both(config: DecoderConfig, seed: int, make_decoder: MakeDecoder, save: Save) -> tuple[Decoder, Any]:
    """Our decoder and theirs, each loaded from the same saved folder."""
    with tempfile.TemporaryDirectory() as name:
        save(Path(name), make_decoder(config, seed))
        return load_model(Path(name)), transformers_model(Path(name))


def random_ids(config: DecoderConfig, batch: int, time: int, seed: int) -> torch.Tensor:
    return torch.randint(config.vocabulary_size, (batch, time), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(config=shapes(), batch=st.integers(1, 3), time=st.integers(1, CONTEXT), seed=st.integers(0, 10**6))
def test_logits(
    make_decoder: MakeDecoder, save: Save, *, config: DecoderConfig, batch: int, time: int, seed: int
) -> None:
    ours, theirs = both(config, seed, make_decoder, save)
    ids = random_ids(config, batch, time, seed)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=TOLERANCE, rtol=0)


@settings(deadline=None, max_examples=20)
@given(
    config=shapes(),
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    left=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_logits_of_padded_batches(
    make_decoder: MakeDecoder, save: Save, *, config: DecoderConfig, lengths: list[int], left: bool, seed: int
) -> None:
    ours, theirs = both(config, seed, make_decoder, save)
    time = max(lengths)
    ids = random_ids(config, len(lengths), time, seed)
    column = torch.arange(time)
    size = torch.tensor(lengths)[:, None]
    padding = column >= time - size if left else column < size  # (batch, time), True where real
    positions = (padding.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=padding.long(), position_ids=positions).logits
        got = ours(ids, padding=padding)
        torch.testing.assert_close(got[padding], expected[padding], atol=TOLERANCE, rtol=0)
        for row, length in enumerate(lengths):  # a row gives what it gives alone
            alone = ours(ids[row][padding[row]][None])
            assert alone.shape[1] == length
            torch.testing.assert_close(got[row][padding[row]], alone[0], atol=TOLERANCE, rtol=0)


@settings(deadline=None, max_examples=20)
@given(
    config=shapes(),
    batch=st.integers(1, 3),
    steps=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    padded=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_logits_of_cached_steps(
    make_decoder: MakeDecoder,
    save: Save,
    *,
    config: DecoderConfig,
    batch: int,
    steps: list[int],
    padded: bool,
    seed: int,
) -> None:
    ours, theirs = both(config, seed, make_decoder, save)
    ids = random_ids(config, batch, sum(steps), seed)
    padding = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        padding[0, : steps[0] - 1] = False  # the first row begins late
    positions = (padding.long().cumsum(1) - 1).clamp(min=0)
    cache = KeyValueCache(config, batch, CONTEXT)
    past, start = None, 0
    with torch.no_grad():
        whole = theirs(ids, attention_mask=padding.long(), position_ids=positions).logits
        for step in steps:
            now = slice(start, start + step)
            first = padding[:, now] if padded and start == 0 else None
            got = ours(ids[:, now], cache=cache, padding=first)
            answer = theirs(
                ids[:, now],
                attention_mask=padding[:, : now.stop].long(),
                position_ids=positions[:, now],
                past_key_values=past,
                use_cache=True,
            )
            real = padding[:, now]
            torch.testing.assert_close(got[real], answer.logits[real], atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(got[real], whole[:, now][real], atol=TOLERANCE, rtol=0)
            past, start = answer.past_key_values, now.stop
    assert cache.length == sum(steps)


def test_a_cropped_cache_goes_on_as_if_nothing_had_followed(make_decoder: MakeDecoder) -> None:
    config = DecoderConfig(30, 16, 2, 4, 2, 8, 24, CONTEXT)
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
    config = DecoderConfig(65, 48, 3, 4, 2, 12, 96, 256, tied_embeddings=tied)
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
