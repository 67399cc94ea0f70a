"""Forward and backward passes of every layer, against torch's autograd and against central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhapsode.base.errors import InputError
from rhapsode.foundations.estimator import Array
from rhapsode.foundations.layers import (
    GELU,
    Attention,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    ReLU,
    Residual,
    Sigmoid,
    Tanh,
    scaled_dot_product_attention,
    sigmoid,
    softmax,
    softmax_cross_entropy,
    squared_error,
    transformer_block,
)
from rhapsode.foundations.network import Network, gradient_check

NEAR_AUTOGRAD = 1e-10
NEAR_DIFFERENCES = 1e-6

LENGTHS = st.integers(1, 5)
SEEDS = st.integers(0, 10**6)
SHAPES = settings(max_examples=40)  # of which there are not many more

Reference = Callable[[Tensor, dict[str, Tensor]], Tensor]
"""What a layer does, in torch: from the input and the parameters to the output."""


def filled(layers: list[Layer], seed: int, dtype: type = np.float64) -> list[Layer]:
    """Layers whose parameters are all drawn, those that would begin at 0 or 1 as well."""
    random = np.random.default_rng(seed)
    for layer in layers:
        layer.initialize(random, dtype)
        for parameter in layer.parameters.values():
            parameter[...] += 0.3 * random.standard_normal(parameter.shape)
    return layers


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed + 1).standard_normal(shape)


def check_against_autograd(layer: Layer, x: Array, reference: Reference, random_seed: int | None = None) -> None:
    """Output, gradient by the input and gradients by the parameters, for a random gradient by the output."""
    random = None if random_seed is None else np.random.default_rng(random_seed)
    y = layer.forward(x, random)
    gradient = np.random.default_rng(5).standard_normal(y.shape)
    x_gradient = layer.backward(gradient)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in layer.parameters.items()}
    their_x = torch.tensor(x, requires_grad=x.dtype.kind == "f")
    their_y = reference(their_x, theirs)
    their_y.backward(torch.tensor(gradient))
    assert np.abs(y - their_y.detach().numpy()).max() < NEAR_AUTOGRAD
    if their_x.grad is not None:
        assert np.abs(x_gradient - their_x.grad.numpy()).max() < NEAR_AUTOGRAD
    assert layer.gradients.keys() == layer.parameters.keys()
    for name, parameter in theirs.items():
        assert parameter.grad is not None
        assert layer.gradients[name].shape == layer.parameters[name].shape
        assert np.abs(layer.gradients[name] - parameter.grad.numpy()).max() < NEAR_AUTOGRAD, name


@SHAPES
@given(SEEDS, st.lists(LENGTHS, max_size=3), LENGTHS, LENGTHS, st.booleans())
def test_dense(seed: int, front: list[int], inputs: int, outputs: int, bias: bool) -> None:
    (layer,) = filled([Dense(inputs, outputs, bias=bias)], seed)
    check_against_autograd(
        layer, numbers(seed, *front, inputs), lambda x, p: F.linear(x, p["weight"].mT, p["bias"] if bias else None)
    )


@pytest.mark.parametrize(
    ("layer", "reference"),
    [(Tanh(), torch.tanh), (Sigmoid(), torch.sigmoid), (ReLU(), torch.relu), (GELU(), F.gelu)],
    ids=["tanh", "sigmoid", "relu", "gelu"],
)
@SHAPES
@given(SEEDS, st.lists(LENGTHS, min_size=1, max_size=3), st.sampled_from([0.1, 1.0, 30.0]))
def test_activations(
    layer: Layer, reference: Callable[[Tensor], Tensor], seed: int, shape: list[int], size: float
) -> None:
    check_against_autograd(layer, size * numbers(seed, *shape), lambda x, _: reference(x))


@SHAPES
@given(SEEDS, st.lists(LENGTHS, max_size=2), st.integers(2, 6))
def test_layer_norm(seed: int, front: list[int], width: int) -> None:
    (layer,) = filled([LayerNorm(width)], seed)
    check_against_autograd(
        layer, numbers(seed, *front, width), lambda x, p: F.layer_norm(x, (width,), p["weight"], p["bias"], 1e-5)
    )


@SHAPES
@given(SEEDS, st.lists(LENGTHS, min_size=1, max_size=2), st.integers(1, 6), LENGTHS)
def test_embedding_adds_up_what_an_id_gets_in_all_its_places(
    seed: int, shape: list[int], vocabulary: int, dimension: int
) -> None:
    (layer,) = filled([Embedding(vocabulary, dimension)], seed)
    ids = np.random.default_rng(seed).integers(vocabulary, size=shape)
    check_against_autograd(layer, ids, lambda x, p: F.embedding(x, p["weight"]))


@SHAPES
@given(SEEDS, st.lists(LENGTHS, min_size=2, max_size=4))
def test_flatten(seed: int, shape: list[int]) -> None:
    check_against_autograd(Flatten(), numbers(seed, *shape), lambda x, _: x.flatten(1))


@SHAPES
@given(SEEDS, LENGTHS, LENGTHS, st.sampled_from([0.0, 0.3, 0.9]))
def test_dropout_passes_gradients_where_it_passed_values(seed: int, rows: int, columns: int, rate: float) -> None:
    layer, ones = Dropout(rate), np.ones((rows, columns))
    scale = layer.forward(ones, np.random.default_rng(seed))
    assert set(np.unique(scale)) <= {0.0, 1 / (1 - rate)}
    check_against_autograd(layer, numbers(seed, rows, columns), lambda x, _: x * torch.tensor(scale), seed)


def test_dropout_keeps_the_mean_and_does_nothing_outside_training() -> None:
    layer, x = Dropout(0.25), np.ones((400, 500))
    mean = layer.forward(x, np.random.default_rng(0)).mean()
    assert abs(mean - 1) < 5 * np.sqrt(0.25 / 0.75 / x.size)
    assert layer.forward(x) is x
    assert layer.backward(x) is x


def with_parameters_of(attention: torch.nn.MultiheadAttention, p: dict[str, Tensor], prefix: str = "") -> None:
    """Give torch's module the parameters of ours: one matrix for query, key and value there, three here."""
    names = [f"{prefix}{name}" for name in ("query", "key", "value", "output")]
    with torch.no_grad():
        assert attention.in_proj_weight is not None
        attention.in_proj_weight.copy_(torch.cat([p[f"{name}.weight"].mT for name in names[:3]]))
        attention.in_proj_bias.copy_(torch.cat([p[f"{name}.bias"] for name in names[:3]]))
        attention.out_proj.weight.copy_(p[f"{names[3]}.weight"].mT)
        attention.out_proj.bias.copy_(p[f"{names[3]}.bias"])


def attention_in_torch(heads: int, causal: bool) -> Reference:
    def reference(x: Tensor, p: dict[str, Tensor]) -> Tensor:
        def split(name: str) -> Tensor:
            projected = F.linear(x, p[f"{name}.weight"].mT, p.get(f"{name}.bias"))
            return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split("query"), split("key"), split("value"), is_causal=causal)
        return F.linear(mixed.transpose(1, 2).flatten(2), p["output.weight"].mT, p.get("output.bias"))

    return reference


@SHAPES
@given(SEEDS, LENGTHS, LENGTHS, st.integers(1, 3), LENGTHS, st.booleans(), st.booleans())
def test_attention(seed: int, rows: int, time: int, heads: int, head_dim: int, causal: bool, bias: bool) -> None:
    width = heads * head_dim
    (layer,) = filled([Attention(width, heads, causal=causal, bias=bias)], seed)
    check_against_autograd(layer, numbers(seed, rows, time, width), attention_in_torch(heads, causal))
    assert isinstance(layer, Attention)
    assert layer.weights.shape == (rows, heads, time, time)
    assert np.allclose(layer.weights.sum(axis=-1), 1)
    assert not causal or not np.triu(layer.weights, k=1).any()


def test_attention_equals_the_module_of_torch() -> None:
    (layer,) = filled([Attention(12, 3, causal=True)], 4)
    x = numbers(4, 2, 5, 12)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with_parameters_of(theirs, {name: torch.tensor(value) for name, value in layer.parameters.items()})
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, weights = theirs(torch.tensor(x), torch.tensor(x), torch.tensor(x), attn_mask=later)
    assert np.abs(layer.forward(x) - expected.detach().numpy()).max() < NEAR_AUTOGRAD
    assert isinstance(layer, Attention)
    assert np.abs(layer.weights.mean(axis=1) - weights.detach().numpy()).max() < NEAR_AUTOGRAD


@SHAPES
@given(SEEDS, LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.booleans())
def test_scaled_dot_product_attention(seed: int, to: int, of: int, dim: int, value_dim: int, causal: bool) -> None:
    q, k, v = numbers(seed, 2, to, dim), numbers(seed + 1, 2, of, dim), numbers(seed + 2, 2, of, value_dim)
    found, _ = scaled_dot_product_attention(q, k, v, causal=causal)
    expected = F.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), is_causal=causal)
    assert np.abs(found - expected.numpy()).max() < NEAR_AUTOGRAD


@SHAPES
@given(SEEDS, LENGTHS, st.integers(1, 6), st.sampled_from([(1, 4), (2, 3)]), LENGTHS, st.booleans())
def test_a_transformer_block_equals_the_layer_of_torch(
    seed: int, rows: int, time: int, shape: tuple[int, int], hidden: int, causal: bool
) -> None:
    heads, width = shape[0], shape[0] * shape[1]
    attention, feed_forward = filled(transformer_block(width, heads, hidden, causal=causal), seed)
    network = Network([attention, feed_forward], loss=squared_error, dtype=np.float64)
    filled(network.layers, seed)
    x, target = numbers(seed, rows, time, width), numbers(seed + 9, rows, time, width)
    loss, gradient = squared_error(network.forward(x), target)
    x_gradient = network.backward(gradient)

    theirs = torch.nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    p = {name: torch.tensor(value) for name, value in network.parameters.items()}
    with_parameters_of(theirs.self_attn, p, "0.1.")
    with torch.no_grad():
        for module, name in (
            (theirs.norm1, "0.0"),
            (theirs.norm2, "1.0"),
            (theirs.linear1, "1.1"),
            (theirs.linear2, "1.3"),
        ):
            module.weight.copy_(p[f"{name}.weight"].mT if p[f"{name}.weight"].ndim > 1 else p[f"{name}.weight"])
            module.bias.copy_(p[f"{name}.bias"])
    their_x = torch.tensor(x, requires_grad=True)
    later = torch.ones(time, time, dtype=torch.bool).triu(1) if causal else None
    their_loss = 0.5 * (theirs(their_x, src_mask=later) - torch.tensor(target)).square().sum() / rows
    their_loss.backward()
    assert their_x.grad is not None

    def grad(parameter: Tensor | None) -> Array:
        assert parameter is not None
        assert parameter.grad is not None
        return np.asarray(parameter.grad.numpy())

    parts = np.split(grad(theirs.self_attn.in_proj_weight), 3)
    bias_parts = np.split(grad(theirs.self_attn.in_proj_bias), 3)
    expected = {
        **{f"0.1.{name}.weight": part.T for name, part in zip(("query", "key", "value"), parts, strict=True)},
        **{f"0.1.{name}.bias": part for name, part in zip(("query", "key", "value"), bias_parts, strict=True)},
        "0.1.output.weight": grad(theirs.self_attn.out_proj.weight).T,
        "0.1.output.bias": grad(theirs.self_attn.out_proj.bias),
        "0.0.weight": grad(theirs.norm1.weight),
        "0.0.bias": grad(theirs.norm1.bias),
        "1.0.weight": grad(theirs.norm2.weight),
        "1.0.bias": grad(theirs.norm2.bias),
        "1.1.weight": grad(theirs.linear1.weight).T,
        "1.1.bias": grad(theirs.linear1.bias),
        "1.3.weight": grad(theirs.linear2.weight).T,
        "1.3.bias": grad(theirs.linear2.bias),
    }
    assert abs(loss - their_loss.item()) < NEAR_AUTOGRAD
    assert np.abs(x_gradient - their_x.grad.numpy()).max() < NEAR_AUTOGRAD
    assert network.gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(network.gradients[name] - value).max() < NEAR_AUTOGRAD, name


CHECKED = {
    "dense": (lambda: [Dense(3, 4)], (2, 3)),
    "tanh": (lambda: [Dense(3, 4), Tanh()], (2, 3)),
    "sigmoid": (lambda: [Dense(3, 4), Sigmoid()], (2, 3)),
    "relu": (lambda: [Dense(3, 4), ReLU()], (2, 3)),
    "gelu": (lambda: [Dense(3, 4), GELU()], (2, 3)),
    "dropout": (lambda: [Dense(3, 40), Dropout(0.5)], (2, 3)),
    "layer norm": (lambda: [Dense(3, 4), LayerNorm(4)], (2, 3)),
    "flatten": (lambda: [Dense(3, 4), Flatten(), Dense(8, 2)], (5, 2, 3)),
    "attention": (lambda: [Attention(4, 2)], (2, 3, 4)),
    "causal attention": (lambda: [Attention(4, 2, causal=True)], (2, 3, 4)),
    "residual": (lambda: [Residual([Dense(4, 4), Tanh()])], (2, 4)),
    "transformer block": (lambda: transformer_block(6, 2, 8), (2, 4, 6)),
}


@pytest.mark.parametrize("name", CHECKED)
def test_central_differences(name: str) -> None:
    make, shape = CHECKED[name]
    network = Network(filled(make(), 1), loss=squared_error, dtype=np.float64)
    filled(network.layers, 2)
    x = numbers(3, *shape)
    y = numbers(4, *network.forward(x).shape)
    assert gradient_check(network, x, y, seed=7) < NEAR_DIFFERENCES


def test_central_differences_of_a_small_language_model() -> None:
    layers: list[Layer] = [Embedding(7, 6), *transformer_block(6, 2, 10), LayerNorm(6), Dense(6, 7)]
    network = Network(layers, dtype=np.float64)
    filled(network.layers, 2)
    ids = np.random.default_rng(0).integers(7, size=(2, 5))
    assert gradient_check(network, ids[:, :-1], ids[:, 1:]) < NEAR_DIFFERENCES


@SHAPES
@given(SEEDS, st.lists(LENGTHS, min_size=1, max_size=2), st.integers(1, 6), st.sampled_from([1.0, 500.0]))
def test_softmax_cross_entropy(seed: int, front: list[int], classes: int, size: float) -> None:
    logits = size * numbers(seed, *front, classes)
    labels = np.random.default_rng(seed).integers(classes, size=front)
    loss, gradient = softmax_cross_entropy(logits, labels)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = F.cross_entropy(theirs.flatten(0, -2), torch.tensor(labels).flatten())
    expected.backward()
    assert theirs.grad is not None
    assert loss == pytest.approx(expected.item(), abs=NEAR_AUTOGRAD)
    assert np.abs(gradient - theirs.grad.numpy()).max() < NEAR_AUTOGRAD
    assert np.abs(softmax(logits) - torch.softmax(theirs, -1).detach().numpy()).max() < NEAR_AUTOGRAD


def test_squared_error() -> None:
    y, target = numbers(0, 3, 4), numbers(1, 3, 4)
    theirs = torch.tensor(y, requires_grad=True)
    expected = F.mse_loss(theirs, torch.tensor(target), reduction="sum") / 2 / 3
    expected.backward()
    loss, gradient = squared_error(y, target)
    assert theirs.grad is not None
    assert loss == pytest.approx(expected.item(), abs=NEAR_AUTOGRAD)
    assert np.abs(gradient - theirs.grad.numpy()).max() < NEAR_AUTOGRAD


def test_large_numbers_overflow_nothing() -> None:
    large = np.array([[-1e4, 0.0, 1e4]])
    assert np.array_equal(sigmoid(large), [[0.0, 0.5, 1.0]])
    assert np.array_equal(softmax(large), [[0.0, 0.0, 1.0]])
    assert np.array_equal(GELU().forward(large), [[0.0, 0.0, 1e4]])
    assert softmax_cross_entropy(large, np.array([0]))[0] == 2e4


@pytest.mark.parametrize("name", CHECKED)
def test_float32_stays_float32(name: str) -> None:
    make, shape = CHECKED[name]
    network = Network(make(), loss=squared_error)
    y = network.forward(numbers(3, *shape).astype(np.float32), np.random.default_rng(0))
    x_gradient = network.backward(np.ones_like(y))
    for array in (y, x_gradient, *network.parameters.values(), *network.gradients.values()):
        assert array.dtype == np.float32


def test_initial_weights_keep_the_size_of_signals() -> None:
    x = numbers(0, 2000, 400)
    assert Dense(400, 400).initialize(np.random.default_rng(0), np.float64).forward(x).std() == pytest.approx(
        1, abs=0.03
    )
    deep = x
    for seed in range(8):
        wide = Dense(400, 400, gain=np.sqrt(2)).initialize(np.random.default_rng(seed), np.float64)
        deep = ReLU().forward(wide.forward(deep))
    assert 0.5 < np.sqrt((deep * deep).mean()) < 2


def passed(layer: Layer, *shape: int, ids: bool = False) -> Array:
    """What a layer makes of ones."""
    return filled([layer], 0)[0].forward(np.ones(shape, np.int64 if ids else np.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0, 3), "inputs: is 0. It must be at least 1."),
        (lambda: Dense(2, 2.5), "outputs: 2.5 is not a whole number."),
        (lambda: Dropout(1.0), "rate: is 1.0. It must be less than 1."),
        (lambda: Attention(6, 4), "width: is 6, no multiple of heads (4). Make it one."),
        (lambda: passed(Dense(3, 2), 2, 4), "x: Dense has 3 inputs and was given the shape (2, 4)."),
        (lambda: passed(Attention(4, 2), 3, 4), "x: has the shape (3, 4), not (examples, time, 4)."),
        (lambda: passed(Embedding(1, 2), 2, ids=True), "x: an id is none of the vocabulary. Give 0 to 0."),
        (lambda: passed(Embedding(3, 2), 2), "x: an id is none of the vocabulary. Give 0 to 2."),
        (lambda: passed(Residual([Dense(3, 2)]), 1, 3), "layers: the layers of a residual block made"),
        (lambda: softmax_cross_entropy(np.ones((2, 3)), np.array([0, 3])), "labels: holds a label that is none"),
        (lambda: softmax_cross_entropy(np.ones((2, 3)), np.array([0])), "labels: has the shape (1,) of int64"),
        (lambda: squared_error(np.ones((2, 3)), np.ones((3, 2))), "targets: has the shape (3, 2), not (2, 3)."),
    ],
)  # fmt: skip
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert error.value.message.startswith(message)
