"""The fast attention equals the written-out one, whose weights are those of the formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.model.attention import Sight, explicit_attention, fast_attention, visible
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.stack import Weights

MakeDecoder = Callable[..., Decoder]
CONFIG = QWEN3.config(40, 24, 3, 6, 2, 8, 32, 24)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    time=st.integers(1, 12),
    past=st.integers(0, 9),
    padded=st.booleans(),
)
def test_fast_equals_explicit(*, batch: int, kv_heads: int, group: int, time: int, past: int, padded: bool) -> None:
    noise = torch.Generator().manual_seed(time)
    keys = past + time
    query = torch.randn(batch, kv_heads * group, time, 8, generator=noise)
    key = torch.randn(batch, kv_heads, keys, 8, generator=noise)
    value = torch.randn(batch, kv_heads, keys, 8, generator=noise)
    padding = torch.rand(batch, keys, generator=noise) < 0.7 if padded else None
    mask = None if past == 0 and not padded else visible(time, keys, causal=True, padding=padding)
    sight = Sight(mask, causal=True)
    fast, _ = fast_attention(query, key, value, sight, 8**-0.5)
    explicit, weights = explicit_attention(query, key, value, sight, 8**-0.5)
    torch.testing.assert_close(fast, explicit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, kv_heads * group, time))
    future = torch.arange(keys)[None, :] > torch.arange(past, keys)[:, None]
    assert weights.masked_select(future).eq(0).all()
    if padding is not None:
        own = torch.arange(keys)[None, :] == torch.arange(past, keys)[:, None]
        hidden = ~padding[:, None, None, :] & ~own
        assert weights.masked_select(hidden).eq(0).all()


@pytest.mark.parametrize("cached", [False, True])
def test_asking_for_weights_changes_no_logit(make_decoder: MakeDecoder, cached: bool) -> None:
    model = make_decoder(CONFIG)
    ids = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(0))
    weights = Weights()
    with torch.no_grad():
        plain = model(ids)
        if cached:
            cache = KeyValueCache(CONFIG, 2, 24)
            model(ids[:, :15], cache=cache)
            seen = model(ids[:, 15:], cache=cache, weights=weights)
            torch.testing.assert_close(seen, plain[:, 15:], atol=1e-5, rtol=0)
        else:
            torch.testing.assert_close(model(ids, weights=weights), plain, atol=1e-5, rtol=0)
    assert [tuple(layer.shape) for layer in weights.decoder] == [(2, 6, 5 if cached else 20, 20)] * 3
    for layer in weights.decoder:
        torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))


def test_weights_are_the_formula(make_decoder: MakeDecoder) -> None:
    """One head by hand: exp(q k / sqrt(d)) over their sum, for two keys."""
    query = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    key = torch.tensor([[[[1.0, 1.0], [0.0, 3.0]]]])
    value = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    mixed, weights = explicit_attention(query, key, value, Sight(None, causal=True), 2**-0.5)
    first, second = torch.exp(torch.tensor([2.0, 6.0]) / 2**0.5)
    expected = torch.stack((first, second)) / (first + second)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(weights[0, 0, 1], expected)
    torch.testing.assert_close(mixed[0, 0, 1], expected)


def test_no_token_sees_a_later_one(make_decoder: MakeDecoder) -> None:
    model = make_decoder(CONFIG)
    ids = torch.randint(40, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 40
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=0, rtol=0)
    assert (before[:, 12:] - after[:, 12:]).abs().amax(-1).min() > 1e-4


def test_a_text_longer_than_the_context_is_refused_with_both_numbers(make_decoder: MakeDecoder) -> None:
    model = make_decoder(CONFIG)
    with pytest.raises(InputError, match="25 tokens exceed the model's context of 24"):
        model(torch.zeros(1, 25, dtype=torch.int64))
    cache = KeyValueCache(CONFIG, 1, 10)
    with pytest.raises(InputError, match=r"11 tokens exceed the cache's capacity of 10"):
        model(torch.zeros(1, 11, dtype=torch.int64), cache=cache)
    with pytest.raises(InputError, match="25 tokens exceeds the model's context of 24"):
        KeyValueCache(CONFIG, 1, 25)
