"""Small decoders of every form that kernels know, texts for them, and who judges: torch in fp64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from rhapsode.inference.step import Reading, Step, TorchStep
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.config import Activation, Llama3Scaling, ModelConfig, Rope, YarnScaling
from rhapsode.model.decoder import Decoder
from rhapsode.model.layers import Head, Linear
from rhapsode.model.packed import PackedModel, unpacked_model

from .oracles import Small

Floats = npt.NDArray[np.float32]

CONTEXT = 3 * BLOCK + 4
ACTIVATIONS: list[Activation] = ["silu", "gelu", "gelu_tanh", "relu"]
ORDERS: list[Literal["pre", "output", "sandwich", "parallel"]] = ["pre", "output", "sandwich", "parallel"]
ROPES = [
    Rope(100.0),
    Rope(10_000.0, 0.5),
    Rope(500_000.0, 1.0, Llama3Scaling(8.0, 1.0, 4.0, 16)),
    Rope(10_000.0, 1.0, YarnScaling(4.0, 16)),
]


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """The shape of a dense decoder: any traits, those together too that no family has together."""
    kv_heads = draw(st.integers(1, 3))
    norm, order = draw(st.sampled_from(["rms", "layer"])), draw(st.sampled_from(ORDERS))
    layers, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 6, 8, 12, 34, 64]))
    rope = draw(st.sampled_from(ROPES))
    assume(int(head_dim * rope.share) % 2 == 0)
    windows = draw(st.just(()) | st.tuples(*[st.sampled_from([0, 1, 3, 32, 45])] * layers))
    positions = draw(st.sampled_from(["rotary", "rotary", "learned"]))
    return ModelConfig(
        draw(st.integers(2, 90)),
        draw(st.integers(1, 80)),
        layers,
        kv_heads * draw(st.integers(1, 4)),
        kv_heads,
        head_dim,
        draw(st.integers(1, 90)),
        CONTEXT,
        norm=norm,
        norm_epsilon=draw(st.sampled_from([1e-6, 1e-5])),
        norm_bias=norm == "layer" and draw(st.booleans()),
        norm_unit_offset=norm == "rms" and draw(st.booleans()),
        order=order,
        first_attention_norm=order == "output" or draw(st.sampled_from([True, True, False])),
        positions=positions,
        rope=rope,
        local_rope=draw(st.none() | st.just(Rope(1000.0))) if windows else None,
        position_offset=draw(st.sampled_from([0, 2])) if positions == "learned" else 0,
        windows=windows,
        query_bias=draw(st.booleans()),
        output_bias=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(["none", "head", "all"])),
        attention_scale=draw(st.none() | st.just(0.3)),
        gated=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        feed_forward_bias=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from([1.0, 5.5])),
        tied_embeddings=draw(st.booleans()),
        head_bias=draw(st.sampled_from(["none", "learned"])),
        head_scale=draw(st.sampled_from([1.0, 0.25])),
    )


class Texts:
    """Texts at random, and where they lie: each in blocks of its own, in any order."""

    def __init__(self, vocabulary_size: int, lengths: Sequence[int], seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.ids = [draw.integers(0, vocabulary_size, length).tolist() for length in lengths]
        each = max(1, -(-max(lengths, default=0) // BLOCK))
        order = draw.permutation(each * len(lengths)).tolist()
        self.blocks = [order[each * row : each * row + each] for row in range(len(lengths))]
        self.count = max(1, len(order))

    def alone(self, step: Step) -> list[Floats]:
        """The logits (length, vocabulary) of each text, read whole and after the one before."""
        return [step([Reading(ids, blocks, 0, len(ids))])[0] for ids, blocks in zip(self.ids, self.blocks, strict=True)]

    def together(self, step: Step) -> list[Floats]:
        """The same, all read whole at once."""
        return step([Reading(ids, blocks, 0, len(ids)) for ids, blocks in zip(self.ids, self.blocks, strict=True)])

    def in_pieces(self, step: Step, seed: int, longest: int = 40) -> list[Floats]:
        """The same, each read in pieces at random, whatever others are read beside it."""
        draw = np.random.default_rng(seed)
        read, found = [0] * len(self.ids), [list[Floats]() for _ in self.ids]
        while any(done < len(ids) for done, ids in zip(read, self.ids, strict=True)):
            readings, rows = [], []
            for row, ids in enumerate(self.ids):
                new = min(int(draw.choice([0, 1, 1, draw.integers(longest + 1)])), len(ids) - read[row])
                if new:
                    readings.append(Reading(ids[read[row] : read[row] + new], self.blocks[row], read[row], new))
                    rows.append(row)
                    read[row] += new
            if readings:
                for row, logits in zip(rows, step(readings), strict=True):
                    found[row].append(logits)
        return [np.concatenate(pieces) for pieces in found]


def exactly(model: Decoder, blocks: int) -> TorchStep:
    """The same model's step in fp64."""
    return TorchStep(copy.deepcopy(model).double(), blocks)


def exactly_packed(packed: PackedModel, blocks: int) -> TorchStep:
    """The step in fp64 of the weights that packed ones stand for, where every matrix is given a vector in 8 bits."""
    model = unpacked_model(packed).double()
    for module in model.modules():
        if isinstance(module, Linear | Head):
            module.register_forward_pre_hook(_in_bytes)
    return TorchStep(model, blocks)


def _in_bytes(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x = inputs[0]
    rows = x.float().numpy().reshape(-1, x.shape[-1])
    padded = np.ascontiguousarray(np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32))))
    values = Small.of(padded).values[:, : rows.shape[1]]
    return (torch.from_numpy(values).view_as(x), *inputs[1:])


def off_by(found: Sequence[Floats], exact: Sequence[Floats]) -> npt.NDArray[np.float64]:
    """How far logits are off at each position of all texts, by shares of the range of all logits."""
    right = np.concatenate(exact).astype(np.float64)
    spread = max(float(np.ptp(right)), 1e-30)
    return np.abs(np.concatenate(found) - right).max(axis=1) / spread


def same_bits(found: Sequence[Floats], expected: Sequence[Floats]) -> None:
    """Logits of several texts, equal to the bit."""
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, other)
