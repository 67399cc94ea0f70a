"""Packed weights: to the bit those of GGUF, laid out as a naive loop lays them out, and never worse than plain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.base.progress import Progress
from rhapsode.model.config import Experts, ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedMatrix, is_matrix, pack, pack_model, unpacked, values_of

Floats = npt.NDArray[np.float32]

sizes = st.integers(1, 70)
bits = st.sampled_from([8, 4])
spreads = st.sampled_from([1e-20, 1e-6, 1e-3, 0.02, 1.0, 3000.0])
TINY = ModelConfig(40, 12, 2, 2, 1, 6, 20, 16)


def random_matrix(rows: int, columns: int, seed: int, spread: float = 1.0) -> Floats:
    draw = np.random.default_rng(seed)
    matrix = draw.standard_t(4, (rows, columns)) * spread + draw.choice([0.0, 2.0]) * spread
    return matrix.astype(np.float32)


def by_loop(packed: PackedMatrix) -> Floats:
    """Every number where the layout says that it lies."""
    halves = packed.scales.view(np.float16).astype(np.float32)
    matrix = np.empty((packed.rows, packed.columns), dtype=np.float32)
    for row in range(packed.rows):
        for column in range(packed.columns):
            group, r = divmod(row, 8)
            block, rest = divmod(column, 32)
            if packed.bits == 8:
                byte = packed.weights[group, block, rest // 4, 4 * r + rest % 4]
                matrix[row, column] = np.float32(int(byte) - 128) * halves[group, block, r]
            else:
                p, inside = divmod(rest, 8)
                byte = packed.weights[group, block, p, 4 * r + inside % 4]
                nibble = int(byte) & 15 if inside < 4 else int(byte) >> 4
                matrix[row, column] = np.float32(nibble) * halves[group, block, r] + halves[group, block, 8 + r]
    return matrix


@given(sizes, sizes, bits, st.integers(0, 1000), spreads)
def test_the_layout_is_what_it_says(rows: int, columns: int, bits: int, seed: int, spread: float) -> None:
    packed = pack(random_matrix(rows, columns, seed, spread), bits)
    groups, blocks = -(-rows // 8), -(-columns // 32)
    assert (packed.bits, packed.rows, packed.columns) == (bits, rows, columns)
    assert packed.weights.shape == (groups, blocks, bits, 32) and packed.weights.dtype == np.uint8
    assert packed.scales.shape == (groups, blocks, 8 if bits == 8 else 16) and packed.scales.dtype == np.uint16
    assert packed.weights.flags.c_contiguous and packed.scales.flags.c_contiguous
    assert packed.nbytes == packed.weights.nbytes + packed.scales.nbytes
    matrix = unpacked(packed)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, by_loop(packed))
    # All that padding stands for is 0; of 4 bits the columns beyond a matrix are no numbers.
    whole = replace(packed, rows=8 * groups, columns=32 * blocks if bits == 8 else columns)
    beyond = unpacked(whole)
    beyond[:rows, :columns] = 0
    assert not beyond.any()


@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000), st.sampled_from([1e-6, 0.02, 1.0, 3000.0]))
def test_8_bits_are_those_of_ggml(rows: int, blocks: int, seed: int, spread: float) -> None:
    matrix = random_matrix(rows, 32 * blocks, seed, spread)
    matrix[0, :32] = 0
    packed = pack(matrix, 8)
    values = values_of(packed).reshape(-1, blocks, 32)[:rows]
    scales = packed.scales.transpose(0, 2, 1).reshape(-1, blocks, 1)[:rows]
    ours = np.concatenate((scales.view(np.uint8), values.view(np.uint8)), axis=-1).reshape(rows, -1)
    assert np.array_equal(ours, quants.quantize(matrix, GGMLQuantizationType.Q8_0))
    assert np.array_equal(unpacked(packed), quants.dequantize(ours, GGMLQuantizationType.Q8_0))


@given(st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000), spreads)
def test_4_bits_miss_by_no_more_than_ggml(rows: int, blocks: int, seed: int, spread: float) -> None:
    matrix = random_matrix(rows, 32 * blocks, seed, spread)
    with np.errstate(all="ignore"):
        plain = quants.dequantize(quants.quantize(matrix, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    of_plain, of_ours = (
        np.square((approximation - matrix).astype(np.float64)).reshape(-1, 32).sum(axis=1)
        for approximation in (plain, unpacked(pack(matrix, 4)))
    )
    rounding = np.square(np.abs(matrix).reshape(-1, 32).max(axis=1).astype(np.float64)) * 1e-12
    assert (of_ours <= of_plain * (1 + 1e-5) + rounding).all()


def test_the_search_is_worth_its_time() -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 320)).astype(np.float32)
    plain = quants.dequantize(quants.quantize(matrix, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    assert np.square(unpacked(pack(matrix, 4)) - matrix).sum() < 0.82 * np.square(plain - matrix).sum()


@given(sizes, sizes, st.integers(0, 1000))
def test_columns_beyond_the_matrix_do_not_take_part(rows: int, columns: int, seed: int) -> None:
    matrix = random_matrix(rows, columns, seed) + 5  # far from 0, which padding is
    last = matrix[:, columns - (columns - 1) % 32 - 1 :]
    low, high = last.min(axis=1, keepdims=True), last.max(axis=1, keepdims=True)
    missed = np.abs(unpacked(pack(matrix, 4))[:, -last.shape[1] :] - last)
    assert (missed.max(axis=1, keepdims=True) <= (high - low) / 5 + np.abs(low) / 1024).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.25, 1e-30, -1e-9, 3e-5, 60000.0])
def test_rows_of_one_value(bits: int, value: float) -> None:
    matrix = np.full((9, 33), value, dtype=np.float32)
    off = np.abs(unpacked(pack(matrix, bits)) - matrix)
    assert off.max() <= max(abs(value) / 1024, 4e-6 if bits == 8 else 6e-8)
    if value in (0.0, 1.0, -0.25) and bits == 4:
        assert not off.any()


@pytest.mark.parametrize(("bits", "largest"), [(8, 127 * 65500.0), (4, 65500.0)])
def test_what_scales_cannot_say_is_refused(bits: int, largest: float) -> None:
    matrix = random_matrix(9, 40, 0)
    matrix[5, 7] = matrix[8, 39] = -largest
    pack(matrix, bits)
    for beyond in (largest * 1.01, 1e30, 3e38):
        matrix[8, 39] = -beyond
        with pytest.raises(InputError, match=r"tensor 'x': its numbers are too large for scales of 16 bits"):
            pack(matrix, bits, where="tensor 'x'")


def test_other_bits_are_refused() -> None:
    with pytest.raises(InputError, match="8 or 4 bits, not 5"):
        pack(np.zeros((1, 1), dtype=np.float32), 5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_packed_whole(bits: int, tied: bool) -> None:
    model = Decoder(replace(TINY, tied_embeddings=tied, positions="learned", query_bias=True))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(random_matrix(1, parameter.numel(), number)).view_as(parameter))
    parameters = dict(model.named_parameters())
    with Progress("packing", None, "numbers", quiet=True) as progress:
        packed = pack_model(model, bits, progress)
        assert progress.completed == sum(parameter.numel() for parameter in parameters.values())
    assert packed.config == model.config
    assert packed.matrices.keys() | packed.vectors.keys() == parameters.keys()
    assert not packed.matrices.keys() & packed.vectors.keys()
    assert ("head.weight" in packed.matrices) is not tied
    assert len(packed.matrices) == 7 * 2 + 2 - tied
    assert "stack.positions.weight" in packed.vectors
    assert packed.nbytes < sum(parameter.nbytes for parameter in parameters.values())
    for name, parameter in parameters.items():
        values = parameter.detach().numpy()
        if is_matrix(name):
            assert np.array_equal(unpacked(packed.matrices[name]), unpacked(pack(values, bits)))
        else:
            assert np.array_equal(packed.vectors[name], values)
            assert packed.vectors[name].base is None  # what happens to the model later is no matter


@pytest.mark.parametrize("name", ["stack.blocks.1.feed_forward.down.weight", "stack.final_norm.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [8, 4])
def test_values_that_are_not_finite_are_named(name: str, value: float, bits: int) -> None:
    model = Decoder(TINY)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    with pytest.raises(InputError, match=f"tensor '{name}': it has values that are not finite"):
        pack_model(model, bits)


def test_what_has_no_packed_form_is_refused() -> None:
    experts = Decoder(replace(TINY, experts=Experts(2, 1, 8, normalised=True, layers=(0,))))
    with pytest.raises(InputError, match="a mixture of experts cannot be quantised"):
        pack_model(experts, 8)
