"""A decoder as the tables that a step's program reads: where each matrix lies, what each layer is made of.

    laid_out = lay_out(decoder); why_not = unsupported(decoder.config)

Matrices stay where they are, in torch's memory or in a file that is mapped; only small vectors are copied, and fp32
matrices whose rows are no whole number of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rhapsode.inference.kernels import elementwise, program
from rhapsode.inference.kernels.products import BLOCK, GROUP
from rhapsode.inference.kernels.vectors import WIDE_LANES
from rhapsode.model.config import Activation, ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedMatrix, PackedModel
from rhapsode.model.positions import rotary_angles

ACTIVATIONS: dict[Activation, int] = {
    "silu": elementwise.SILU,
    "gelu": elementwise.GELU,
    "gelu_tanh": elementwise.GELU_TANH,
    "relu": elementwise.RELU,
}

FIRST_ANGLES = 512
"""Positions whose angles are computed at first."""


def unsupported(config: ModelConfig) -> str | None:
    """Why a model's steps cannot be computed by the program; None where they can."""
    if config.kind != "decoder":
        return f"it is an {config.kind}"
    if config.experts is not None:
        return "it is a mixture of experts"
    if config.order == "post" or config.positions not in ("rotary", "learned") or config.embedding_norm:
        return "its blocks are of a form that no decoder here has"
    if config.token_types or config.head_transform or config.head_bias == "fixed" or not config.has_head:
        return "its head or embedding is of a form that no decoder here has"
    return None


@dataclass
class Laid:
    """The tables of a model."""

    config: ModelConfig
    shape: np.ndarray
    numbers: np.ndarray
    layers: np.ndarray
    matrices: np.ndarray
    norms: np.ndarray
    angles: np.ndarray
    kept: list[np.ndarray] = field(repr=False)
    """What the addresses in the tables point to."""
    positions: int = 0
    """For which there are angles."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that each token reads."""
        sizes = [_bytes(row) for row in self.matrices]
        if self.shape[program.EMBEDDING] != self.shape[program.HEAD]:
            del sizes[self.shape[program.EMBEDDING]]
        return sum(sizes)

    def reach(self, positions: int) -> None:
        """Have angles for at least so many positions."""
        if positions <= self.positions or self.config.positions != "rotary":
            return
        reach = min(self.config.context_length, max(FIRST_ANGLES, 2 * positions))
        pieces, start = [], 0
        for rope in dict.fromkeys(map(self.config.rope_of, range(self.config.layers))):
            cosine, sine = rotary_angles(torch.arange(reach), rope, self.config.head_dim)  # (reach, 1, pairs) each
            both = torch.cat((cosine, sine), dim=1).numpy()  # (reach, 2, pairs)
            for layer in range(self.config.layers):
                if self.config.rope_of(layer) == rope:
                    self.layers[layer, [program.ANGLES, program.PAIRS]] = start, both.shape[2]
            pieces.append(both.ravel())
            start += both.size
        self.angles, self.positions = np.concatenate(pieces).astype(np.float32), reach


def _bytes(matrix: np.ndarray) -> int:
    groups = -(-int(matrix[program.ROWS]) // GROUP)
    return groups * int(program.group_bytes(matrix))


class _Tables:
    """Tables while they grow."""

    def __init__(self, source: Decoder | PackedModel) -> None:
        self.packed = source if isinstance(source, PackedModel) else None
        self.parameters: dict[str, Tensor] = {} if isinstance(source, PackedModel) else dict(source.named_parameters())
        if isinstance(source, Decoder) and not source.config.tied_embeddings:
            self.parameters["head.weight"] = source.head.weight
        self.config = source.config
        self.matrices: list[list[int]] = []
        self.norms: list[list[int]] = []
        self.kept: list[np.ndarray] = []

    def address(self, array: np.ndarray) -> int:
        """Of an array that is kept from now on."""
        self.kept.append(array)
        return int(array.ctypes.data)

    def vector(self, name: str) -> np.ndarray | None:
        """A parameter that is no matrix of a product, fp32; None where there is none."""
        if self.packed is not None:
            return self.packed.vectors.get(name)
        found = self.parameters.get(name)
        return None if found is None else found.detach().numpy()

    def vector_address(self, name: str, plus: float = 0.0, times: float = 1.0) -> int:
        """Of a vector, padded with zeros to a multiple of 8; 0 where there is none."""
        values = self.vector(name)
        if values is None:
            return 0
        padded = np.zeros(-(-len(values) // BLOCK) * BLOCK, np.float32)
        padded[: len(values)] = (values + np.float32(plus)) * np.float32(times)
        return self.address(padded)

    def matrix(self, name: str) -> int:
        """The number of a matrix; -1 where there is none."""
        weight = f"{name}.weight"
        bias = self.vector_address(f"{name}.bias")
        if self.packed is not None:
            found = self.packed.matrices.get(weight)
            if found is None:
                return -1
            self.matrices.append([*self._packed(found)[:2], bias, *self._packed(found)[2:]])
            return len(self.matrices) - 1
        if weight not in self.parameters:
            return -1
        values = self.parameters[weight].detach()
        columns = -(-values.shape[1] // WIDE_LANES) * WIDE_LANES
        if columns != values.shape[1] or values.dtype != torch.float32 or not values.is_contiguous():
            values = torch.nn.functional.pad(values.float(), (0, columns - values.shape[1])).contiguous()
        self.matrices.append([self.address(values.numpy()), 0, bias, values.shape[0], columns, 32])
        return len(self.matrices) - 1

    def _packed(self, matrix: PackedMatrix) -> list[int]:
        columns = matrix.weights.shape[1] * BLOCK
        weights, scales = self.address(matrix.weights), self.address(matrix.scales)
        return [weights, scales, matrix.rows, columns, matrix.bits]

    def norm(self, name: str, width: int, times: float = 1.0) -> int:
        """The number of a norm; -1 where there is none."""
        offset = 1.0 if self.config.norm_unit_offset else 0.0
        gain = self.vector_address(f"{name}.weight", offset, times)
        if gain == 0:
            return -1
        self.norms.append([gain, self.vector_address(f"{name}.bias", 0.0, times), width])
        return len(self.norms) - 1


def lay_out(source: Decoder | PackedModel, cache_blocks: int) -> Laid:
    """The tables of a model that `unsupported` has nothing against; it must stay on the CPU, and as it is."""
    config, tables = source.config, _Tables(source)
    hidden, heads, head_dim = config.hidden_size, config.heads, config.head_dim
    layers = np.full((config.layers, program.LAYER_SIZE), -1, np.int64)
    for number in range(config.layers):
        layer, block = layers[number], f"stack.blocks.{number}"
        attention, feed = f"{block}.attention", f"{block}.feed_forward"
        for column, name in (
            (program.QUERY, f"{attention}.query"),
            (program.KEY, f"{attention}.key"),
            (program.VALUE, f"{attention}.value"),
            (program.OUTPUT, f"{attention}.output"),
            (program.GATE, f"{feed}.gate"),
            (program.UP, f"{feed}.up"),
            (program.DOWN, f"{feed}.down"),
        ):
            layer[column] = tables.matrix(name)
        every = config.qk_norm == "all"
        layer[program.QUERY_NORM] = tables.norm(f"{attention}.query_norm", heads * head_dim if every else head_dim)
        layer[program.KEY_NORM] = tables.norm(
            f"{attention}.key_norm", config.kv_heads * head_dim if every else head_dim
        )
        first, second = (
            tables.norm(f"{block}.attention_norm", hidden),
            tables.norm(f"{block}.feed_forward_norm", hidden),
        )
        if config.order == "output":
            layer[[program.AFTER_ATTENTION, program.AFTER_FEED_FORWARD]] = first, second
        else:
            layer[[program.BEFORE_ATTENTION, program.BEFORE_FEED_FORWARD]] = first, second
        if config.order == "sandwich":
            layer[program.AFTER_ATTENTION] = tables.norm(f"{block}.attention_output_norm", hidden)
            layer[program.AFTER_FEED_FORWARD] = tables.norm(f"{block}.feed_forward_output_norm", hidden)
        layer[program.WINDOW] = config.window(number)
        layer[[program.ANGLES, program.PAIRS]] = 0
    shape = np.zeros(program.SHAPE_SIZE, np.int64)
    shape[[program.HIDDEN, program.HEADS, program.KV_HEADS, program.HEAD_DIM]] = (
        hidden,
        heads,
        config.kv_heads,
        head_dim,
    )
    shape[[program.INTERMEDIATE, program.LAYERS]] = config.intermediate_size, config.layers
    shape[program.ACTIVATION] = ACTIVATIONS[config.activation]
    shape[program.CENTRED] = config.norm == "layer"
    shape[program.PARALLEL] = config.order == "parallel"
    shape[program.NORM_ALL_HEADS] = config.qk_norm == "all"
    shape[program.EMBEDDING] = tables.matrix("embedding")
    shape[program.HEAD] = shape[program.EMBEDDING] if config.tied_embeddings else tables.matrix("head")
    if config.tied_embeddings and (bias := tables.vector_address("head.bias")):
        tables.matrices.append([*tables.matrices[shape[program.EMBEDDING]]])
        tables.matrices[-1][program.BIAS] = bias
        shape[program.HEAD] = len(tables.matrices) - 1
    shape[program.FINAL_NORM] = tables.norm("stack.final_norm", hidden, config.head_scale)
    shape[program.CACHE_BLOCKS] = cache_blocks
    if config.positions == "learned":
        rows = tables.vector("stack.positions.weight")
        assert rows is not None
        rows = np.ascontiguousarray(rows[config.position_offset :], np.float32)
        shape[[program.POSITION_ROWS, program.POSITION_COUNT]] = tables.address(rows), len(rows)
    numbers = np.zeros(program.NUMBERS_SIZE, np.float32)
    numbers[program.EPSILON] = config.norm_epsilon
    numbers[program.SCALE] = config.scale(config.towers[0])
    numbers[program.EMBEDDING_SCALE] = config.embedding_scale
    matrices, norms = (
        np.array(tables.matrices, np.int64),
        np.array(tables.norms, np.int64).reshape(-1, program.NORM_SIZE),
    )
    laid = Laid(config, shape, numbers, layers, matrices, norms, np.zeros(0, np.float32), tables.kept)
    laid.reach(1)
    return laid
