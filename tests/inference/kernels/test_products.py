"""Matrices of 32, 8 and 4 bits times vectors: as whole numbers and fp64 say, and the same bits in any company."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.inference.kernels import program
from rhapsode.inference.kernels.elementwise import WORDS_TOO, to_bytes
from rhapsode.inference.kernels.products import BLOCK, GROUP
from rhapsode.inference.kernels.vectors import WIDE_LANES
from rhapsode.model.packed import PackedMatrix, pack, packed_shapes

from .oracles import EPSILON, Small, product

Floats = npt.NDArray[np.float32]
ROOM = np.float32(12345)
"""What stands where nothing may be written."""


def padded(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass
class Matrix:
    """A matrix somewhere in memory."""

    rows: int
    columns: int
    bits: int
    bias: Floats | None
    weights: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]
    offset: int

    @classmethod
    def of(cls, source: Floats | PackedMatrix, bias: Floats | None, offset: int = 0) -> Matrix:
        """A copy whose memory begins `offset` bytes beside where it is aligned; rows of fp32 padded to 8."""
        if isinstance(source, PackedMatrix):
            rows, columns, bits = source.rows, source.columns, source.bits
            parts = [source.weights, source.scales]
        else:
            (rows, columns), bits = source.shape, 32
            parts = [np.pad(source, ((0, 0), (0, -columns % WIDE_LANES))), np.zeros(0, np.float32)]
        copies = [np.concatenate((np.zeros(offset, np.uint8), part.reshape(-1).view(np.uint8))) for part in parts]
        padding = None if bias is None else np.pad(bias, (0, -rows % BLOCK))
        return cls(rows, columns, bits, padding, copies[0], copies[1], offset)

    @property
    def table(self) -> npt.NDArray[np.int64]:
        """The row of the table of matrices."""
        row = np.zeros(program.MATRIX_SIZE, np.int64)
        row[program.WEIGHTS] = self.weights.ctypes.data + self.offset
        row[program.SCALES] = self.scales.ctypes.data + self.offset
        row[program.BIAS] = 0 if self.bias is None else self.bias.ctypes.data
        row[program.ROWS], row[program.BITS] = self.rows, self.bits
        row[program.COLUMNS] = padded(self.columns, WIDE_LANES if self.bits == 32 else BLOCK)
        return row


def in_bytes(x: Floats) -> tuple[np.ndarray, ...]:
    """Vectors (tokens, padded columns) in 8 bits."""
    tokens, blocks = len(x), x.shape[1] // BLOCK
    small = (
        np.full(x.size, 99, np.int8),
        np.full(x.size if WORDS_TOO else 0, 99, np.int16),
        np.full(tokens * blocks, ROOM, np.float32),
        np.full(tokens * blocks, 99, np.int32),
        np.full(tokens * blocks, ROOM, np.float32),
    )
    for token in range(tokens):
        to_bytes(x.reshape(-1), token * x.shape[1], blocks, *small, token)
    return small


def multiplied(
    matrix: Matrix, x: Floats, cuts: tuple[int, ...] = (), first: int = 0, count: int | None = None
) -> Floats:
    """The matrix times the vectors from `first` on, its groups of rows in pieces: (count, rows)."""
    count = len(x) if count is None else count
    table, small = matrix.table, in_bytes(x)
    stride = padded(matrix.rows, GROUP) + 24
    out = np.full((count, stride), ROOM)
    groups = -(-matrix.rows // GROUP)
    ends = sorted({*(cut % (groups + 1) for cut in cuts), groups})
    begin = 0
    for end in ends:
        program.multiply(table, begin, end, x.reshape(-1), small, first, count, out.reshape(-1), stride)
        begin = end
    assert (out[:, padded(matrix.rows, GROUP) :] == ROOM).all()
    return out[:, : matrix.rows]


def vectors(draw: np.random.Generator, tokens: int, columns: int) -> Floats:
    """Vectors of all sizes, blocks of zeros among them, padded with zeros."""
    x = draw.standard_normal((tokens, columns)) * 10.0 ** draw.integers(-6, 6, (tokens, columns))
    x[draw.random((tokens, columns)) < 0.2] = 0
    x = np.pad(x, ((0, 0), (0, -columns % BLOCK))).astype(np.float32)
    x.reshape(tokens, -1, BLOCK)[draw.random((tokens, x.shape[1] // BLOCK)) < 0.2] = 0
    return np.ascontiguousarray(x)


SHAPES = given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    tokens=st.integers(1, 9),
    biased=st.booleans(),
    offset=st.integers(0, 9),
    cuts=st.tuples(st.integers(0, 10), st.integers(0, 10)),
)


@pytest.mark.parametrize("bits", [8, 4])
@SHAPES
def test_packed_products(
    bits: int, seed: int, rows: int, columns: int, tokens: int, biased: bool, offset: int, cuts: tuple[int, int]
) -> None:
    draw = np.random.default_rng(seed)
    packed = pack((draw.standard_normal((rows, columns)) * 0.3).astype(np.float32), bits)
    bias = draw.standard_normal(rows).astype(np.float32) if biased else None
    x = vectors(draw, tokens, columns)
    matrix = Matrix.of(packed, bias, offset)
    found = multiplied(matrix, x, cuts)
    right, sizes = product(packed, Small.of(x))
    if bias is not None:
        right, sizes = right + bias, sizes + np.abs(bias)
    blocks = x.shape[1] // BLOCK
    assert (np.abs(found - right) <= (2 * blocks + 4) * EPSILON / 2 * sizes).all()
    for token in range(tokens):
        np.testing.assert_array_equal(multiplied(matrix, x, first=token, count=1)[0], found[token])
        np.testing.assert_array_equal(multiplied(matrix, x[token : token + 1])[0], found[token])


@SHAPES
def test_plain_products(
    seed: int, rows: int, columns: int, tokens: int, biased: bool, offset: int, cuts: tuple[int, int]
) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.standard_normal((rows, columns)).astype(np.float32)
    bias = draw.standard_normal(rows).astype(np.float32) if biased else None
    x = vectors(draw, tokens, columns)
    matrix = Matrix.of(weights, bias, offset)
    found = multiplied(matrix, x, cuts)
    inside = x[:, :columns].astype(np.float64)
    right, sizes = inside @ weights.T.astype(np.float64), np.abs(inside) @ np.abs(weights.T).astype(np.float64)
    if bias is not None:
        right, sizes = right + bias, sizes + np.abs(bias)
    assert (np.abs(found - right) <= (columns / 8 + 5) * EPSILON / 2 * sizes).all()
    for token in range(tokens):
        np.testing.assert_array_equal(multiplied(matrix, x, first=token, count=1)[0], found[token])
        np.testing.assert_array_equal(multiplied(matrix, x[token : token + 1])[0], found[token])


@pytest.mark.parametrize("bits", [8, 4])
def test_the_largest_numbers_do_not_overflow(bits: int) -> None:
    """All weights and all numbers of a vector at their limits, of either sign."""
    draw = np.random.default_rng(0)
    of_weights, of_scales = packed_shapes(bits, 16, 96)
    for _ in range(20):
        limits = [1, 255] if bits == 8 else [0x00, 0x0F, 0xF0, 0xFF]
        weights = draw.choice(limits, of_weights).astype(np.uint8)
        if draw.random() < 0.5:
            weights[:] = 255
        scales = draw.choice([6e4, -6e4, 6e-8], of_scales).astype(np.float16).view(np.uint16)
        packed = PackedMatrix(bits, 16, 96, weights, scales)
        x = draw.choice([-3.0, 3.0], (5, 96)).astype(np.float32)
        if draw.random() < 0.5:
            x[:] = 3
        right, sizes = product(packed, Small.of(x))
        assert (np.abs(multiplied(Matrix.of(packed, None), x) - right) <= 10 * EPSILON / 2 * sizes).all()


@pytest.mark.parametrize("bits", [32, 8, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", range(1, 10))
def test_what_is_no_number_stays_none_and_alone(bits: int, value: float, tokens: int) -> None:
    draw = np.random.default_rng(tokens)
    weights = draw.standard_normal((21, 75)).astype(np.float32)
    matrix = Matrix.of(weights if bits == 32 else pack(weights, bits), None)
    x = vectors(draw, tokens, 75)
    before = multiplied(matrix, x)
    for token in range(tokens):
        spoiled = x.copy()
        spoiled[token, draw.integers(75)] = value
        found = multiplied(matrix, spoiled)
        assert not np.isfinite(found[token]).any()
        others = np.arange(tokens) != token
        np.testing.assert_array_equal(found[others], before[others])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-38, 3e-37, 1e-36, 1e-30, 1e30, 1e32])
def test_vectors_of_any_size_stay_finite(bits: int, size: float) -> None:
    """The inverse of what is next to nothing would be infinite."""
    draw = np.random.default_rng(3)
    matrix = Matrix.of(pack((draw.standard_normal((9, 64)) * 1e-3).astype(np.float32), bits), None)
    x = (draw.choice([-1.0, 1.0], (5, 64)) * size).astype(np.float32)
    found = multiplied(matrix, x)
    assert np.isfinite(found).all()
    if size < 1e-36:
        assert np.abs(found).max() < 1e-30
