"""Weights of 8 or 4 bits, packed as a processor's vector unit reads them.

    packed = pack(matrix, bits=8); matrix_again = unpacked(packed)
    model = pack_model(decoder, bits=4)

Every 32 columns of a row are a block with numbers of its own: a scale, and with 4 bits a minimum, in half precision.
The numbers are those of GGUF: 8 bits are its Q8_0, 4 bits its Q4_1. Blocks of 8 rows lie interleaved, so that one load
brings numbers of all eight; rows and columns are padded to whole blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhapsode.base.errors import InputError
from rhapsode.base.progress import Progress
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.model import filled
from rhapsode.model.weights import Shapes

ROWS = 8
"""Of a group: floats of a register."""
COLUMNS = 32
"""Of a block."""
BITS = (8, 4)

LARGEST = {8: 127, 4: 15}
"""Of the whole numbers; with 8 bits the smallest is -127."""
ZERO = 128
"""The byte that stands for 0 in 8 bits."""

CUTS = (0.0, 0.05, 0.1)
"""Shares of a block's range that are cut off at either end, where the search for 4 bits begins."""
ROUNDS = 3
"""Of the search, from each beginning."""
NUMBERS_AT_ONCE = 1 << 16
"""As many as a processor's nearest caches hold, with what is computed of them."""

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Bytes = npt.NDArray[np.uint8]

_MATRICES = re.compile(
    r"(stack\.blocks\.\d+\.(attention\.(query|key|value|output)|feed_forward\.(gate|up|down))|embedding|head)\.weight"
)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of `rows` x `columns` numbers. With groups of 8 rows and blocks of 32 columns, both rounded up:

    8 bits: `weights` (groups, blocks, 8, 32), where [g, b, q, 4 r + c] is 128 + v of row 8 g + r and column
    32 b + 4 q + c, and v of -127 to 127 stands for v * scale; `scales` (groups, blocks, 8), one for each row.

    4 bits: `weights` (groups, blocks, 4, 32), where [g, b, p, 4 r + c] has in its lower half n of row 8 g + r and
    column 32 b + 8 p + c, in its upper half that of column 32 b + 8 p + 4 + c, and n of 0 to 15 stands for
    n * scale + minimum; `scales` (groups, blocks, 16), the scales of the eight rows, then their minimums.

    Padded rows are 0. So are padded columns of 8 bits; those of 4 bits are not numbers of the matrix at all.

    Args:
        bits: 8 or 4.
        rows: without padding.
        columns: without padding.
        weights: bytes, in one piece.
        scales: the bits of numbers in half precision, in one piece.
    """

    bits: int
    rows: int
    columns: int
    weights: Bytes
    scales: npt.NDArray[np.uint16]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.weights.nbytes + self.scales.nbytes


@dataclass(frozen=True)
class PackedModel:
    """The weights of a decoder.

    Args:
        config: its shape.
        matrices: by the names of its parameters: those of attention and feed-forward, the embedding, and the head
            where that is not the embedding.
        vectors: all its other parameters, in fp32.
    """

    config: ModelConfig
    matrices: dict[str, PackedMatrix]
    vectors: dict[str, Floats]

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        matrices, vectors = self.matrices.values(), self.vectors.values()
        return sum(matrix.nbytes for matrix in matrices) + sum(vector.nbytes for vector in vectors)


def packed_shapes(bits: int, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of `PackedMatrix.weights` and `.scales`."""
    groups, blocks = -(-rows // ROWS), -(-columns // COLUMNS)
    return (groups, blocks, bits, COLUMNS), (groups, blocks, ROWS if bits == 8 else 2 * ROWS)


def is_matrix(name: str) -> bool:
    """Whether the parameter of a dense decoder is one of the matrices that are packed."""
    return _MATRICES.fullmatch(name) is not None


def require_packable(config: ModelConfig, where: str | None = None) -> None:
    """Refuse what has no packed form.

    Raises:
        InputError: it is no decoder, or has experts.
    """
    if config.kind != "decoder":
        raise InputError(f"only decoders can be quantised; this is an {config.kind}", where=where)
    if config.experts is not None:
        raise InputError(
            "models with a mixture of experts cannot be quantised",
            where=where,
            todo="GGUF can hold it: rhapsode export MODEL --format gguf --type q8_0 --out FILE",
        )


def pack_model(decoder: Decoder, bits: int, progress: Progress | None = None) -> PackedModel:
    """A decoder with its matrices packed; everything else is a copy in fp32.

    Args:
        bits: 8 or 4.
        progress: advanced by the numbers packed.

    Raises:
        InputError: it has experts, or a tensor has values that are not finite or too large for 16 bits.
    """
    require_packable(decoder.config)
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, Floats] = {}
    for name, parameter in decoder.named_parameters():
        values: Floats = parameter.detach().float().cpu().numpy()
        if is_matrix(name):
            matrices[name] = pack(values, bits, where=f"tensor {name!r}")
        elif np.isfinite(values).all():
            vectors[name] = values.copy()
        else:
            raise _not_finite(f"tensor {name!r}")
        if progress is not None:
            progress.advance(values.size)
    return PackedModel(decoder.config, matrices, vectors)


def unpacked_model(packed: PackedModel, device: torch.device | str = "cpu") -> Decoder:
    """The decoder that packed weights stand for, in fp32."""

    def weights(_: Shapes) -> Iterator[tuple[str, Tensor]]:
        for name, matrix in packed.matrices.items():
            yield name, torch.from_numpy(unpacked(matrix))
        for name, vector in packed.vectors.items():
            yield name, torch.from_numpy(vector.copy())

    model = filled(packed.config, weights, device)
    assert isinstance(model, Decoder)
    return model


def pack(matrix: Floats, bits: int, *, where: str = "matrix") -> PackedMatrix:
    """A matrix (rows, columns), packed.

    Args:
        bits: 8 or 4.
        where: what messages call it.

    Raises:
        InputError: it has numbers that are not finite, or too large for a scale in half precision; or other bits.
    """
    if bits not in BITS:
        raise InputError(f"matrices are packed with 8 or 4 bits, not {bits}")
    rows, columns = matrix.shape
    of_weights, of_scales = packed_shapes(bits, rows, columns)
    weights = np.empty(of_weights, dtype=np.uint8)
    scales = np.empty(of_scales, dtype=np.uint16)
    for groups, some in _groups(rows, columns):
        part = np.asarray(matrix[some], dtype=np.float32)
        if not np.isfinite(part).all():
            raise _not_finite(where)
        numbers, found = _quantised(np.pad(part, ((0, -len(part) % ROWS), (0, 0))), bits)
        if not np.isfinite(found).all():
            raise InputError("its numbers are too large for scales of 16 bits", where=where)
        weights[groups], scales[groups] = _laid_out(numbers, bits), _by_groups(found.view(np.uint16))
    return PackedMatrix(bits, rows, columns, weights, scales)


def unpacked(packed: PackedMatrix) -> Floats:
    """The matrix (rows, columns) that a packed one stands for: to the bit what GGUF's types stand for."""
    matrix = np.empty((packed.rows, packed.columns), dtype=np.float32)
    for groups, some in _groups(packed.rows, packed.columns):
        scales = packed.scales[groups].view(np.float16).astype(np.float32)  # (groups, blocks, 8 or 16)
        numbers = values_of(packed, groups).astype(np.float32)  # (groups, 8, blocks, 32)
        numbers *= scales[:, :, :ROWS].transpose(0, 2, 1)[..., None]
        if packed.bits == 4:
            numbers += scales[:, :, ROWS:].transpose(0, 2, 1)[..., None]
        padded = numbers.reshape(numbers.shape[0] * ROWS, -1)
        matrix[some] = padded[: some.stop - some.start, : packed.columns]
    return matrix


def values_of(packed: PackedMatrix, groups: slice = slice(None)) -> npt.NDArray[np.int8]:
    """The whole numbers of some groups of rows (groups, 8, blocks, 32): -127 to 127, or with 4 bits 0 to 15."""
    weights = packed.weights[groups]
    count, blocks = weights.shape[:2]
    if packed.bits == 8:
        signed = (weights ^ ZERO).view(np.int8).reshape(count, blocks, 8, ROWS, 4)
        return signed.transpose(0, 3, 1, 2, 4).reshape(count, ROWS, blocks, COLUMNS)
    halves = np.stack((weights & 15, weights >> 4), axis=-1).view(np.int8)  # (groups, blocks, 4, 32, 2)
    split = halves.reshape(count, blocks, 4, ROWS, 4, 2)
    return split.transpose(0, 3, 1, 2, 5, 4).reshape(count, ROWS, blocks, COLUMNS)


def _groups(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Some groups at a time, and their rows."""
    step = max(1, NUMBERS_AT_ONCE // (ROWS * columns))
    for first in range(0, -(-rows // ROWS), step):
        yield slice(first, first + step), slice(ROWS * first, min(rows, ROWS * (first + step)))


def _laid_out(numbers: Bytes, bits: int) -> Bytes:
    """`PackedMatrix.weights` of the numbers (8 groups, blocks, 32) of whole groups."""
    rows, blocks, _ = numbers.shape
    shape = packed_shapes(bits, rows, blocks * COLUMNS)[0]
    if bits == 8:
        return numbers.reshape(-1, ROWS, blocks, 8, 4).transpose(0, 2, 3, 1, 4).reshape(shape)
    low, high = numbers.reshape(-1, ROWS, blocks, 4, 2, 4).transpose(4, 0, 2, 3, 1, 5)
    both: Bytes = low | high << 4
    return both.reshape(shape)


def _by_groups(scales: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """`PackedMatrix.scales` of those (1 or 2, 8 groups, blocks) of whole groups."""
    kinds, rows, blocks = scales.shape
    split = scales.reshape(kinds, rows // ROWS, ROWS, blocks)
    return split.transpose(1, 3, 0, 2).reshape(rows // ROWS, blocks, kinds * ROWS)


def _quantised(part: Floats, bits: int) -> tuple[Bytes, Halves]:
    """Bytes (rows, blocks, 32) of a matrix (rows, columns), and its scales and minimums (1 or 2, rows, blocks)."""
    rows, columns = part.shape
    blocks, whole = -(-columns // COLUMNS), columns // COLUMNS * COLUMNS
    numbers = np.full((rows, blocks, COLUMNS), ZERO if bits == 8 else 0, dtype=np.uint8)
    scales = np.empty((1 if bits == 8 else 2, rows, blocks), dtype=np.float16)
    # The last block may have fewer columns; padding must not take part in the search.
    for first, last, width in ((0, whole, COLUMNS), (whole, columns, columns - whole)):
        if first == last:
            continue
        values = np.ascontiguousarray(part[:, first:last].reshape(rows, -1, width).transpose(2, 0, 1))
        of_numbers, found = (_rounded if bits == 8 else _searched)(values)  # (width, rows, blocks), (1 or 2, ...)
        some = slice(first // COLUMNS, blocks if last == columns else last // COLUMNS)
        numbers[:, some, :width] = of_numbers.transpose(1, 2, 0)
        scales[:, :, some] = found
    return numbers, scales


def _rounded(values: Floats) -> tuple[Bytes, Halves]:
    """Bytes (width, ...) and scales (1, ...) of the columns (width, ...) of blocks: as ggml rounds to Q8_0."""
    scale = np.abs(values).max(axis=0) / np.float32(LARGEST[8])
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / scale
        halves = scale.astype(np.float16)
    inverse[~np.isfinite(inverse)] = 0  # nothing in half precision
    scaled = values * inverse
    size = np.abs(scaled)
    below = np.floor(size)
    below += np.floor(2 * (size - below))  # halves away from zero
    numbers = np.copysign(below, scaled).astype(np.int8).view(np.uint8) ^ ZERO
    return numbers, halves[None]


def _searched(values: Floats) -> tuple[Bytes, Halves]:
    """Numbers (width, ...), scales and minimums (2, ...) of the columns (width, ...) of blocks, of little square error.

    From several ranges, the block's own among them, two steps take turns: each number becomes the nearest of the 16
    that a scale and a minimum can say, and these become those of least squares. Whatever was best is kept, counted
    with scale and minimum in half precision.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    total = values.sum(axis=0)
    numbers, errors = np.empty_like(values), np.empty_like(values)
    with np.errstate(all="ignore"):
        scale, minimum = _half((high - low) / LARGEST[4]), _half(low)
        least = _square_error(values, _nearest(values, scale, minimum, numbers), scale, minimum, errors)
        least[~np.isfinite(least)] = 0  # it stays, and is refused by whoever asked
        for below in CUTS:
            for above in CUTS:
                range_left = (high - low) * np.float32((1 - below - above) / LARGEST[4])
                _nearest(values, range_left, low + np.float32(below) * (high - low), numbers)
                for _ in range(ROUNDS):
                    tried = _least_squares(values, total, numbers, errors)
                    error = _square_error(values, _nearest(values, *tried, numbers), *tried, errors)
                    better = error < least
                    for kept, new in ((least, error), (scale, tried[0]), (minimum, tried[1])):
                        np.copyto(kept, new, where=better)
        found = np.stack((scale, minimum)).astype(np.float16)
        return _nearest(values, scale, minimum, numbers).astype(np.uint8), found


def _nearest(values: Floats, scale: Floats, minimum: Floats, out: Floats) -> Floats:
    """The numbers of 0 to 15 whose values are nearest, written to `out`."""
    inverse = np.zeros_like(scale)
    np.divide(1, scale, out=inverse, where=scale > 0)
    np.subtract(values, minimum, out=out)
    np.multiply(out, inverse, out=out)
    np.rint(out, out=out)
    return np.clip(out, 0, LARGEST[4], out=out)


def _square_error(values: Floats, numbers: Floats, scale: Floats, minimum: Floats, room: Floats) -> Floats:
    """The sums over the columns (width, ...) of the squares by which values are missed."""
    np.multiply(numbers, scale, out=room)
    np.add(room, minimum, out=room)
    np.subtract(room, values, out=room)
    np.multiply(room, room, out=room)
    total: Floats = room.sum(axis=0)
    return total


def _least_squares(values: Floats, total: Floats, numbers: Floats, room: Floats) -> tuple[Floats, Floats]:
    """The scale and the minimum of least square error for given numbers, in half precision, the minimum for that
    scale; `total` is the sum of the values over the columns."""
    width, of_numbers = np.float32(len(values)), numbers.sum(axis=0)
    of_squares = np.multiply(numbers, numbers, out=room).sum(axis=0)
    of_products = np.multiply(numbers, values, out=room).sum(axis=0)
    spread = width * of_squares - of_numbers * of_numbers
    scale = np.zeros_like(total)
    np.divide(width * of_products - of_numbers * total, spread, out=scale, where=spread > 0)
    scale = _half(scale)
    return scale, _half((total - scale * of_numbers) / width)


def _half(values: Floats) -> Floats:
    """Rounded to half precision."""
    return values.astype(np.float16).astype(np.float32)


def _not_finite(where: str) -> InputError:
    return InputError("it has values that are not finite", where=where, todo="The model is damaged, or diverged.")
