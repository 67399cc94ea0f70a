"""Steps by kernels against torch's: every family, every combination of traits, texts cut and laid out in any way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.kernels.layout import unsupported
from rhapsode.inference.kernels.step import AT_ONCE, KernelStep
from rhapsode.inference.step import Reading, TorchStep
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.packed import PackedMatrix, PackedModel, pack_model

from ...model.families import DECODERS, Case
from ...model.test_families import ours_of, reference
from ..conftest import random_decoder
from .models import CONTEXT, Floats, Texts, configs, exactly, exactly_packed, off_by, same_bits

TOLERANCE = 1e-4
SEEDS = st.integers(0, 10**6)
DENSE = [case for case in DECODERS if case.family != "qwen3_moe"]
CACHES: list[CacheType] = ["float32", "float16", "int8"]

SMALL = ModelConfig(75, 44, 2, 6, 2, 10, 50, CONTEXT, qk_norm="head", windows=(0, 37), tied_embeddings=False)
"""No size of it is a multiple of what kernels compute side by side."""


def source_of(model: Decoder, bits: int) -> Decoder | PackedModel:
    return model if bits == 32 else pack_model(model, bits)


def lengths_of(seed: int, count: int = 2) -> list[int]:
    return np.random.default_rng(seed).integers(1, CONTEXT + 1, count).tolist()


def check(found: Sequence[Floats], model: Decoder, texts: Texts) -> None:
    """Logits in fp32 are those of fp64, but for what torch's fp32 may lose too where a model makes more of rounding."""
    exact = texts.alone(exactly(model, texts.count))
    by_torch = off_by(texts.alone(TorchStep(model, texts.count)), exact).max()
    assert off_by(found, exact).max() <= TOLERANCE + 2 * by_torch


def test_every_dense_family_is_here() -> None:
    decoders = {name for name, family in FAMILIES.items() if family.kind == "decoder"}
    assert {case.family for case in DENSE} == decoders - {"qwen3_moe"}


@pytest.mark.parametrize("case", DENSE, ids=str)
@settings(max_examples=max(4, settings().max_examples // 15), phases=[Phase.generate])
@given(data=st.data(), threads=st.integers(1, 2), seed=SEEDS)
def test_families(case: Case, data: st.DataObject, threads: int, seed: int) -> None:
    longest = "n_positions" if case.family == "gpt2" else "max_position_embeddings"
    model = ours_of(reference(case, data.draw(case.draw()) | {longest: CONTEXT}, seed))
    assert isinstance(model, Decoder) and unsupported(model.config) is None
    texts = Texts(model.config.vocabulary_size, lengths_of(seed), seed)
    check(texts.in_pieces(KernelStep(model, texts.count, threads=threads), seed), model, texts)


@settings(phases=[Phase.generate])
@given(config=configs(), seed=SEEDS)
def test_traits(config: ModelConfig, seed: int) -> None:
    assert unsupported(config) is None
    model = random_decoder(config, seed)
    texts = Texts(config.vocabulary_size, lengths_of(seed), seed)
    step = KernelStep(model, texts.count, threads=1)
    found = texts.in_pieces(step, seed)
    check(found, model, texts)
    same_bits(texts.alone(step), found)
    same_bits(texts.together(KernelStep(model, texts.count, threads=2)), found)


def test_packed_weights() -> None:
    """Both round the vectors before each matrix to 8 bits. Where a number lies next to the middle between two of them,
    the last bit of fp32 decides, and everything after it differs by a little; but that is rare, and most are alike."""
    off: dict[int, list[float]] = {8: [], 4: []}

    @settings(phases=[Phase.generate])
    @given(config=configs(), bits=st.sampled_from([8, 4]), seed=SEEDS)
    def compare(config: ModelConfig, bits: int, seed: int) -> None:
        packed = pack_model(random_decoder(config, seed), bits)
        texts = Texts(config.vocabulary_size, [min(12, CONTEXT), 3], seed)
        step = KernelStep(packed, texts.count, threads=1)
        found = texts.in_pieces(step, seed)
        same_bits(texts.alone(step), found)
        same_bits(texts.together(KernelStep(packed, texts.count, threads=2)), found)
        off[bits] += off_by(found, texts.alone(exactly_packed(packed, texts.count))).tolist()

    compare()
    for bits, all_off in off.items():
        assert len(all_off) > 100, bits
        assert np.median(all_off) < 2e-6, bits
        assert np.quantile(all_off, 0.8) < 1e-5, bits
        assert max(all_off) < 0.1, bits


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_longer_texts_than_go_through_at_once(bits: int) -> None:
    config = replace(SMALL, context_length=3 * AT_ONCE)
    model = random_decoder(config)
    texts = Texts(75, [AT_ONCE + 1, 3, 1, 2 * AT_ONCE + 45, AT_ONCE, 3 * AT_ONCE], 0)
    source = source_of(model, bits)
    step = KernelStep(source, texts.count, threads=2)
    found = texts.together(step)
    same_bits(texts.in_pieces(step, 1, AT_ONCE + 100), found)
    same_bits(texts.alone(KernelStep(source, texts.count, threads=1)), found)
    if bits == 32:
        check(found, model, texts)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_token_by_token(bits: int) -> None:
    """To the last one that the model can read."""
    model = random_decoder(SMALL)
    texts = Texts(75, [CONTEXT, 1], 3)
    step = KernelStep(source_of(model, bits), texts.count)
    found = texts.alone(step)
    for place, token in enumerate(texts.ids[0]):
        (logits,) = step([Reading([token], texts.blocks[0], place, 1)])
        np.testing.assert_array_equal(logits, found[0][place : place + 1])


@pytest.mark.parametrize("bits", [32, 8])
@settings(max_examples=30, phases=[Phase.generate])
@given(wanted=st.lists(st.sampled_from([0, 1, 2, 1000]), min_size=3, max_size=3), longest=st.integers(1, 100))
def test_only_what_is_wanted(bits: int, wanted: list[int], longest: int) -> None:
    model = random_decoder(SMALL)
    texts = Texts(75, [longest, 1, 1 + longest // 2], longest)
    step = KernelStep(source_of(model, bits), texts.count, threads=2)
    expected = texts.together(step)
    counts = [min(some, len(ids)) for some, ids in zip(wanted, texts.ids, strict=True)]
    readings = [
        Reading(ids, blocks, 0, count) for ids, blocks, count in zip(texts.ids, texts.blocks, counts, strict=True)
    ]
    for _ in range(2):
        found = step(readings)
        assert [len(logits) for logits in found] == counts
        same_bits(found, [logits[len(logits) - count :] for logits, count in zip(expected, counts, strict=True)])
        assert all(logits.dtype == np.float32 for logits in found)


def test_nothing_to_read() -> None:
    step = KernelStep(random_decoder(SMALL), 4)
    assert step([]) == []
    (logits,) = step([Reading([5], [3], 0, 0)])
    assert logits.shape == (0, 75)


@pytest.mark.parametrize(
    ("reading", "error", "match"),
    [
        (Reading([1] * 33, [0, 1, 2, 3], CONTEXT - 32, 1), InputError, f"{CONTEXT + 1} tokens exceed .* of {CONTEXT}"),
        (Reading([1, 75], [0], 0, 1), InputError, "a token is none of the model's 75"),
        (Reading([-1], [0], 0, 1), InputError, "a token is none of the model's 75"),
        (Reading([1], [4], 0, 1), IndexError, "a block is none of the cache's 4"),
        (Reading([1], [0, -1], 40, 1), IndexError, "a block is none of the cache's 4"),
    ],
)
def test_what_lies_outside_is_refused(reading: Reading, error: type[Exception], match: str) -> None:
    """By both ways to compute steps; nothing is read of what stands beside it."""
    model = random_decoder(SMALL)
    good = Reading([1, 2], [1], 0, 1)
    step = KernelStep(model, 4)
    before = step([good])
    with pytest.raises(error, match=match):
        step([good, reading])
    with pytest.raises((error, IndexError)):
        TorchStep(model, 4)([good, reading])
    same_bits(step([good]), before)


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("cache_type", CACHES)
def test_a_text_goes_on_in_two_ways_when_its_last_block_is_copied(cache_type: CacheType, bits: int) -> None:
    model = random_decoder(SMALL)
    step = KernelStep(source_of(model, bits), 6, cache_type=cache_type)
    draw = np.random.default_rng(0)
    text, others = draw.integers(0, 75, BLOCK + 5).tolist(), draw.integers(0, 75, (3, 20)).tolist()
    alone = []
    for other in others:
        alone += step([Reading([*text, *other], [0, 1], 0, 20)])
    step([Reading(text, [4, 1], 0, 1)])
    step.copy([1, 1], [5, 0])
    found = step([Reading(other, [4, last], len(text), 20) for other, last in zip(others, (1, 5, 0), strict=True)])
    same_bits(found, alone)


@pytest.mark.parametrize(
    ("bits", "cache_type", "most"), [(32, "float16", 2e-3), (8, "float16", 1e-2), (32, "int8", 5e-2), (8, "int8", 5e-2)]
)
@settings(max_examples=12, phases=[Phase.generate])
@given(config=configs(), seed=SEEDS)
def test_small_caches_are_near(bits: int, cache_type: CacheType, most: float, config: ModelConfig, seed: int) -> None:
    """What they keep is rounded once: how, is tested where it is done. Here nothing is mixed up."""
    source = source_of(random_decoder(config, seed), bits)
    texts = Texts(config.vocabulary_size, lengths_of(seed), seed)
    step = KernelStep(source, texts.count, cache_type=cache_type, threads=2)
    found = texts.in_pieces(step, seed)
    same_bits(texts.together(step), found)
    off = off_by(found, texts.alone(KernelStep(source, texts.count)))
    assert np.median(off) < most
    assert off.max() < 20 * most


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("cache_type", CACHES)
def test_what_was_there_before_does_not_matter(cache_type: CacheType, bits: int) -> None:
    """Not even what is no number, as a text may leave it that was given up."""
    step = KernelStep(source_of(random_decoder(SMALL), bits), 8, cache_type=cache_type)
    texts = Texts(75, [CONTEXT, 41], 2)
    before = texts.in_pieces(step, 0)
    for memory in step._cache:
        memory[:] = {np.float32: np.nan, np.uint16: 0x7E00, np.int8: 101}[memory.dtype.type]
    same_bits(texts.in_pieces(step, 0), before)


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("cache_type", CACHES)
def test_what_is_no_number_is_told_to_its_own_text_alone(cache_type: CacheType, bits: int) -> None:
    model = random_decoder(replace(SMALL, activation="relu", windows=()))
    source = source_of(model, bits)
    if isinstance(source, PackedModel):
        source.matrices["embedding.weight"].scales.view(np.float16)[7 // 8, :, 7 % 8] = np.nan
    else:
        with torch.no_grad():
            model.embedding.weight[7] = torch.nan
    texts = Texts(74, [40, 50, 30], 2)
    texts.ids = [[id + (id >= 7) for id in ids] for ids in texts.ids]  # none of them is the spoiled token
    step = KernelStep(source, texts.count, cache_type=cache_type, threads=2)
    good = texts.together(step)
    assert all(np.isfinite(logits).all() for logits in good)
    texts.ids[1][20] = 7
    found = texts.together(step)
    same_bits([found[0], found[1][:20], found[2]], [good[0], good[1][:20], good[2]])
    assert np.isnan(found[1][20:]).all()
    texts.ids[1][20] = 8
    assert all(np.isfinite(logits).all() for logits in texts.in_pieces(step, 0))


def test_matrices_may_have_different_bits() -> None:
    model = random_decoder(SMALL)
    eight, four = pack_model(model, 8), pack_model(model, 4)
    draw = np.random.default_rng(1)
    texts = Texts(75, [12], 0)
    off = []
    for _ in range(8):
        matrices = {name: (eight, four)[draw.integers(2)].matrices[name] for name in eight.matrices}
        mixed = replace(eight, matrices=matrices)
        found = texts.alone(KernelStep(mixed, texts.count))
        off += off_by(found, texts.alone(exactly_packed(mixed, texts.count))).tolist()
    assert np.median(off) < 2e-6 and max(off) < 0.1


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_weights_need_not_be_aligned(bits: int) -> None:
    """As in a file that others have written."""
    packed = pack_model(random_decoder(SMALL), bits)

    def moved(array: np.ndarray) -> np.ndarray:
        room = np.zeros(array.nbytes + 1, np.uint8)
        room[1:] = array.reshape(-1).view(np.uint8)
        return np.frombuffer(room.data, array.dtype, offset=1).reshape(array.shape)

    matrices = {
        name: PackedMatrix(bits, matrix.rows, matrix.columns, moved(matrix.weights), moved(matrix.scales))
        for name, matrix in packed.matrices.items()
    }
    texts = Texts(75, [50, 20], 0)
    expected = texts.together(KernelStep(packed, texts.count))
    same_bits(texts.together(KernelStep(replace(packed, matrices=matrices), texts.count)), expected)


def test_room_grows_and_what_was_read_stays() -> None:
    config = replace(SMALL, context_length=1500)
    model = random_decoder(config)
    texts = Texts(75, [1400, *[20] * 40], 0)
    step = KernelStep(model, texts.count, threads=2)
    first = step([Reading(texts.ids[0][:600], texts.blocks[0], 0, 600)])[0]
    (few,) = step([Reading(texts.ids[1], texts.blocks[1], 0, 20)])
    many = step([Reading(ids, blocks, 0, 20) for ids, blocks in zip(texts.ids[1:], texts.blocks[1:], strict=True)])
    second = step([Reading(texts.ids[0][600:], texts.blocks[0], 600, 800)])[0]
    expected = texts.alone(KernelStep(model, texts.count, threads=1))
    same_bits([np.concatenate((first, second)), *many], expected)
    np.testing.assert_array_equal(few, expected[1])


@pytest.mark.parametrize(
    ("traits", "why"),
    [
        ({"order": "post"}, "form"),
        ({"positions": "sinusoidal"}, "form"),
        ({"embedding_norm": True}, "form"),
        ({"token_types": 2}, "head or embedding"),
        ({"head_transform": True}, "head or embedding"),
        ({"head_bias": "fixed"}, "head or embedding"),
        ({"kind": "encoder"}, "it is an encoder"),
    ],
)
def test_what_is_not_supported_is_told(traits: dict[str, object], why: str) -> None:
    told = unsupported(replace(SMALL, **traits))  # type: ignore[arg-type]
    assert told is not None and why in told
