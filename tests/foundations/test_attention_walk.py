"""From associative memory to a transformer block: each stage the same numbers in this room and in `rhapsode.model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from rhapsode.base.errors import RhapsodeError
from rhapsode.cli.same_numbers import ModelTransformer
from rhapsode.foundations.demonstrations.attention import TOLERANCE, Step, block_parts, walk
from rhapsode.foundations.layers import Layer, named, transformer_block
from rhapsode.foundations.modern_hopfield import ModernHopfield
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder

Numbers = npt.NDArray[Any]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_numbers_go_all_the_way(seed: int) -> None:
    steps = walk(seed, ModelTransformer())
    assert len(steps) == 9
    for step in steps:
        first, *others = step.ways.values()
        assert others
        for other in others:
            assert other.shape == first.shape == (8, 64)
            np.testing.assert_allclose(other, first, rtol=0, atol=TOLERANCE)
    assert [sum("rhapsode.model" in way for way in step.ways) for step in steps] == [0, 2, 2, 0, 1, 1, 1, 1, 1]
    assert "ModernHopfield" in steps[5].ways  # what attention reads within the block
    distinct = {np.round(next(iter(step.ways.values())), 6).tobytes() for step in steps}
    assert len(distinct) == len(steps)


def test_the_walk_needs_no_other_code() -> None:
    steps = walk(0)
    assert not any("rhapsode.model" in way for step in steps for way in step.ways)
    with_it = walk(0, ModelTransformer())
    assert [step.what for step in steps] == [step.what for step in with_it]


def test_numbers_that_differ_end_the_walk() -> None:
    class Wrong(ModelTransformer):
        def block(
            self, parameters: Mapping[str, Numbers], x: Numbers, heads: int, *, causal: bool
        ) -> dict[str, Numbers]:
            return super().block(parameters, x, heads, causal=not causal)

    with pytest.raises(RhapsodeError, match="what its attention reads: ModernHopfield and transformer_block and"):
        walk(0, Wrong())
    assert not Step("", {"a": np.zeros(2), "b": np.zeros(2), "c": np.array([0, np.nan])}).gap <= TOLERANCE


def made_block(width: int, heads: int, hidden: int) -> tuple[list[Layer], dict[str, Numbers]]:
    noise, layers = np.random.default_rng(0), transformer_block(width, heads, hidden)
    for layer in layers:
        layer.initialize(noise, np.float64)
    parameters = named(layers, "parameters")
    for parameter in parameters.values():
        parameter[...] += 0.2 * noise.standard_normal(parameter.shape)
    return layers, parameters


@pytest.mark.parametrize(("width", "heads", "hidden", "time"), [(6, 1, 5, 1), (12, 3, 20, 7), (8, 8, 8, 4)])
def test_blocks_of_other_shapes(width: int, heads: int, hidden: int, time: int) -> None:
    layers, parameters = made_block(width, heads, hidden)
    x = np.random.default_rng(1).standard_normal((time, width))
    theirs = ModelTransformer().block(parameters, x, heads, causal=True)
    for part, numbers in block_parts(layers, x).items():
        np.testing.assert_allclose(numbers, theirs[part], rtol=0, atol=1e-12)


def test_a_memory_that_grows_is_the_cache_of_a_model() -> None:
    """A decoder read token by token keeps in its cache the keys and values that a memory of this room has stored."""
    config = ModelConfig(
        vocabulary_size=11,
        hidden_size=8,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=8,
        intermediate_size=8,
        context_length=6,
        norm="layer",
        positions="learned",
    )
    model, noise = Decoder(config).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=noise)
    attention = model.stack.blocks[0].attention
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    cache, memory = KeyValueCache(config, 1, 6, dtype=torch.float64), ModernHopfield(beta=8**-0.5)
    queries: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    attention.query.register_forward_hook(lambda module, inputs, output: queries.append(output))
    attention.output.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    attention.key.register_forward_hook(lambda module, inputs, output: keys.append(output))
    attention.value.register_forward_hook(lambda module, inputs, output: values.append(output))
    with torch.no_grad():
        for time in range(6):
            model(ids[:, time : time + 1], cache=cache)
            memory.partial_fit(keys[-1][0].numpy(), values[-1][0].numpy())
            np.testing.assert_allclose(memory.predict(queries[-1][0].numpy()), read[-1][0].numpy(), atol=1e-12)
    whole = F.scaled_dot_product_attention(
        torch.cat(queries, dim=1), torch.cat(keys, dim=1), torch.cat(values, dim=1), is_causal=True
    )
    torch.testing.assert_close(torch.cat(read, dim=1), whole, atol=1e-12, rtol=0)
