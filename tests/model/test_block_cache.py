"""Reading several sequences in blocks, in whatever pieces and order, gives the logits of reading each one alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.model.block_cache import BLOCK, BlockCache, BlockReading, Span
from rhapsode.model.decoder import Decoder

from .families import DECODERS, Case
from .test_families import ours_of, reference

CONTEXT = 3 * BLOCK - 5


@pytest.mark.parametrize("case", DECODERS, ids=str)
@settings(max_examples=max(3, settings().max_examples // 20), phases=[Phase.generate])
@given(data=st.data(), count=st.integers(1, 4), side_by_side=st.booleans(), seed=st.integers(0, 10**6))
def test_pieces_of_several_sequences_equal_each_one_alone(
    case: Case, data: st.DataObject, count: int, side_by_side: bool, seed: int
) -> None:
    longest = "n_positions" if case.family == "gpt2" else "max_position_embeddings"
    model = ours_of(reference(case, data.draw(case.draw()) | {longest: CONTEXT}, seed))
    assert isinstance(model, Decoder)
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, CONTEXT + 1, (count,), generator=draw).tolist()
    texts = [torch.randint(4, model.config.vocabulary_size, (length,), generator=draw) for length in lengths]
    order = torch.randperm(3 * len(texts), generator=draw).tolist()
    if side_by_side:
        order.sort()
    blocks = [order[3 * row : 3 * row + 3] for row in range(len(texts))]
    cache = BlockCache(model.config, 3 * len(texts))
    cache.keys.fill_(float("nan"))  # what was never written must not be read
    cache.values.fill_(float("nan"))
    read, found = [0] * len(texts), [torch.zeros(0, model.config.vocabulary_size)] * len(texts)
    while any(done < len(text) for done, text in zip(read, texts, strict=True)):
        spans, ids, rows = [], [], []
        for row, text in enumerate(texts):
            new = min(int(torch.randint(0, 41, (1,), generator=draw)), len(text) - read[row])
            if new:
                spans.append(Span(blocks[row], read[row], new))
                ids.append(text[read[row] : read[row] + new])
                rows.append(row)
                read[row] += new
        if not spans:
            continue
        with torch.no_grad():
            hidden = model.hidden(torch.cat(ids)[None], cache=BlockReading(cache, spans, CONTEXT))[0]
            logits = model.head(hidden).split([span.new for span in spans])
        for row, piece in zip(rows, logits, strict=True):
            found[row] = torch.cat((found[row], piece))
    for text, logits_of_text in zip(texts, found, strict=True):
        with torch.no_grad():
            alone = model(text[None])[0]
        torch.testing.assert_close(logits_of_text, alone, atol=2e-4, rtol=2e-4)


@pytest.fixture(scope="module")
def llama() -> Decoder:
    case = next(case for case in DECODERS if case.family == "llama")
    values = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "head_dim": 8}
    values |= {"num_key_value_heads": 2, "intermediate_size": 8, "max_position_embeddings": CONTEXT}
    model = ours_of(reference(case, values, 0))
    assert isinstance(model, Decoder)
    return model


@torch.no_grad()
def test_a_sequence_goes_on_in_two_ways_when_its_last_block_is_copied(llama: Decoder) -> None:
    text, others = torch.randint(0, 9, (BLOCK + 5,)), torch.randint(0, 9, (3, 20))
    cache = BlockCache(llama.config, 6)
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    llama.hidden(text[None], cache=BlockReading(cache, [Span([4, 1], 0, len(text))], CONTEXT))
    cache.copy([1, 1], [5, 0])
    spans = [Span([4, last], len(text), 20) for last in (1, 5, 0)]
    hidden = llama.hidden(others.reshape(1, -1), cache=BlockReading(cache, spans, CONTEXT))[0]
    for other, logits in zip(others, llama.head(hidden).split(20), strict=True):
        alone = llama(torch.cat((text, other))[None])[0, len(text) :]
        torch.testing.assert_close(logits, alone, atol=2e-4, rtol=2e-4)
    assert cache.keys[:, :, 2 * BLOCK : 4 * BLOCK].isnan().all()  # nothing else was touched


def test_beyond_the_context_is_refused(llama: Decoder) -> None:
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens exceed the model's context of {CONTEXT}"):
        BlockReading(BlockCache(llama.config, 3), [Span([0, 1, 2], CONTEXT - 1, 2)], CONTEXT)
