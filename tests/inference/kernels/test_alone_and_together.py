"""What kernels compute for a text has the same bits whatever is computed beside it, and by however many threads."""

from __future__ import annotations

import numpy as np
import pytest

from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.engine import Engine
from rhapsode.inference.kernels.step import KernelStep
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.step import Reading
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedModel, pack_model

from ..conftest import random_decoder
from ..test_engine import mixed, written

BITS = [32, 8, 4]
# Wide enough for several pieces of each matrix, and no size is a multiple of what is computed side by side.
WIDE = ModelConfig(1003, 236, 2, 6, 3, 42, 610, 3 * BLOCK, qk_norm="head", windows=(0, 20), tied_embeddings=False)
TEXTS = 32


@pytest.fixture(scope="module", params=BITS)
def wide(request: pytest.FixtureRequest) -> Decoder | PackedModel:
    model = random_decoder(WIDE)
    return model if request.param == 32 else pack_model(model, request.param)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", BITS)
def test_64_mixed_requests_are_the_same_alone_and_together(
    by_byte_pairs: LanguageModel, bits: int, threads: int
) -> None:
    model = by_byte_pairs.decoder()
    source = model if bits == 32 else pack_model(model, bits)
    requests = mixed(by_byte_pairs, 64)

    def new_engine(threads: int) -> Engine:
        step = KernelStep(source, 300, threads=threads)
        return Engine(step, by_byte_pairs.tokenizer, by_byte_pairs.config.context_length)

    alone = []
    for prompt, samplings in requests:
        engine = new_engine(1)
        alone += written(engine, engine.submit(prompt, samplings, by_byte_pairs.end_ids))
    engine = new_engine(threads)
    assert written(engine, *[engine.submit(*request, by_byte_pairs.end_ids) for request in requests]) == alone
    assert engine.idle and engine.pool.held == 0


@pytest.mark.parametrize("bits", BITS)
def test_a_seeded_text_is_the_same_beside_others(by_byte_pairs: LanguageModel, bits: int) -> None:
    """The engine of a language model, as everybody uses it: it remembers what was read, and shares it."""
    decoder = by_byte_pairs.decoder()
    model = LanguageModel(decoder if bits == 32 else pack_model(decoder, bits), by_byte_pairs.tokenizer)
    samplings = [Sampling(seed=seed, max_new_tokens=25, temperature=1.0) for seed in range(12)]
    alone = [model.generate("You are", sampling) for sampling in samplings]
    assert model.step_by == "kernels"
    assert model.generate_several("You are", samplings) == alone


@pytest.mark.parametrize("cache_type", ["float32", "int8"])
def test_logits_have_the_same_bits_alone_and_among_31_others(
    wide: Decoder | PackedModel, cache_type: CacheType
) -> None:
    draw = np.random.default_rng(0)
    longest = WIDE.context_length
    texts = [draw.integers(0, 1003, int(draw.integers(2, longest))).tolist() for _ in range(TEXTS)]
    prompts = [int(draw.integers(1, len(text))) for text in texts]
    blocks = draw.permutation(3 * TEXTS).reshape(TEXTS, 3).tolist()
    steps = {threads: KernelStep(wide, 3 * TEXTS, cache_type=cache_type, threads=threads) for threads in (1, 2)}
    alone = []  # for each text: the prompt whole, then a token at a time
    for text, home, prompt in zip(texts, blocks, prompts, strict=True):
        rows = [steps[1]([Reading(text[:prompt], home, 0, 1)])[0]]
        rows += [steps[1]([Reading([text[place]], home, place, 1)])[0] for place in range(prompt, len(text))]
        alone.append(np.concatenate(rows))
    for step in steps.values():
        readings = [
            Reading(text[:prompt], home, 0, 1) for text, home, prompt in zip(texts, blocks, prompts, strict=True)
        ]
        for row, logits in enumerate(step(readings)):
            np.testing.assert_array_equal(logits[0], alone[row][0])
        for place in range(longest):
            going = [row for row in range(TEXTS) if prompts[row] + place < len(texts[row])]
            readings = []
            for row in going:
                position = prompts[row] + place
                readings.append(Reading([texts[row][position]], blocks[row], position, 1))
            for row, logits in zip(going, step(readings) if readings else [], strict=True):
                np.testing.assert_array_equal(logits[0], alone[row][place + 1])


def test_every_number_of_texts_at_once(wide: Decoder | PackedModel) -> None:
    """Vectors are multiplied in threes, fours and ones: no text may notice in which."""
    draw = np.random.default_rng(1)
    text = draw.integers(0, 1003, 20).tolist()
    step, other = (KernelStep(wide, 40, threads=threads) for threads in (1, 2))
    (expected,) = step([Reading(text, [0], 0, 20)])
    for count in range(1, 14):
        readings = [Reading(text[: 1 + row], [row + 1], 0, 1 + row) for row in range(count)]
        for one in (step, other):
            for row, logits in enumerate(one(readings)):
                np.testing.assert_array_equal(logits, expected[: 1 + row])
