"""Optimizers against torch's own, and Muon against a plain one in float64; state that continues to the bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from rhapsode.base.errors import DamagedError, MismatchError
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.training.optimizers import Muon, Optimizers, orthogonalise
from rhapsode.training.settings import TrainSettings

CONFIG = QWEN3.config(61, 16, 2, 2, 1, 8, 24, 12, tied_embeddings=False)
SETTINGS = TrainSettings(
    learning_rate=0.02,
    embedding_learning_rate=0.05,
    head_learning_rate=0.01,
    momentum=0.9,
    adam_beta1=0.8,
    adam_beta2=0.95,
    adam_epsilon=1e-8,
    weight_decay=0.3,
)
SHARES = (0.25, 0.5, 1.0, 1.0, 0.5, 0.1)
"""Of the peak learning rates, one a step."""

LOWEST, HIGHEST = 0.87, 1.1236
"""The band that singular values of a thousandth of the norm and more end in."""

every_optimizer = pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
both_heads = pytest.mark.parametrize("tied", [True, False])


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def started(tied: bool = False) -> Decoder:
    """A decoder with weights at random everywhere."""
    model = Decoder(replace(CONFIG, tied_embeddings=tied))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=index) / 4 + (parameter.dim() == 1))
    return model


def backward(model: Decoder, step: int) -> None:
    """The gradients of one small batch, the same for the same `step`."""
    ids = torch.randint(CONFIG.vocabulary_size, (3, 11), generator=torch.Generator().manual_seed(step))
    (model.loss(ids[:, :-1], ids[:, 1:]) / 30).backward()  # type: ignore[no-untyped-call]


def train(model: Decoder, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        backward(model, step)
        optimizers.set_share(SHARES[step])
        optimizers.step()


def assert_same(model: Decoder, other: Decoder) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@both_heads
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_adamw_and_sgd_are_those_of_torch(name: str, tied: bool) -> None:
    model, reference = started(tied), started(tied)
    train(model, Optimizers(model, replace(SETTINGS, optimizer=name)), range(5))
    matrices = [parameter for parameter in reference.parameters() if parameter.dim() == 2]
    gains = [parameter for parameter in reference.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": gains, "weight_decay": 0.0}]
    by_hand: torch.optim.Optimizer
    if name == "adamw":
        by_hand = torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.95), eps=1e-8, fused=True)
    else:
        by_hand = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
    for step in range(5):
        by_hand.zero_grad()
        backward(reference, step)
        for group in by_hand.param_groups:
            group["lr"] = 0.02 * SHARES[step]
        by_hand.step()
    assert_same(model, reference)


def test_adamw_is_its_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64."""
    model = started()
    weights = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    means, squares = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    optimizers = Optimizers(model, replace(SETTINGS, optimizer="adamw"))
    for step in range(5):
        train(model, optimizers, range(step, step + 1))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient, rate = parameter.grad.double().numpy(), 0.02 * SHARES[step]
            means[name] = 0.8 * means[name] + 0.2 * gradient
            squares[name] = 0.95 * squares[name] + 0.05 * gradient**2
            mean, square = means[name] / (1 - 0.8 ** (step + 1)), squares[name] / (1 - 0.95 ** (step + 1))
            decay = 0.3 if parameter.dim() == 2 else 0.0
            weights[name] = weights[name] * (1 - rate * decay) - rate * mean / (np.sqrt(square) + 1e-8)
            np.testing.assert_allclose(parameter.detach().numpy(), weights[name], atol=2e-6, err_msg=name)


@every_optimizer
@both_heads
def test_every_parameter_is_in_exactly_one_group(name: str, tied: bool) -> None:
    model = started(tied)
    optimizers = Optimizers(model, replace(SETTINGS, optimizer=name))
    held = [id(parameter) for part in optimizers.parts for group in part.param_groups for parameter in group["params"]]
    assert Counter(held) == Counter(id(parameter) for parameter in model.parameters())


@every_optimizer
def test_decay_shrinks_matrices_and_no_gain(name: str) -> None:
    """With gradients of zero nothing but the decay is left; with Muon it is for the hidden matrices alone."""
    model, before = started(), started()
    optimizers = Optimizers(model, replace(SETTINGS, optimizer=name))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step()
    for (where, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        outside = where in ("embedding.weight", "head.weight")
        decayed = parameter.dim() == 2 and not (name == "muon" and outside)
        torch.testing.assert_close(parameter, old * (1 - 0.02 * 0.3) if decayed else old, rtol=1e-6, atol=0)


@every_optimizer
def test_the_schedule_moves_every_learning_rate(name: str) -> None:
    optimizers = Optimizers(started(), replace(SETTINGS, optimizer=name))
    peaks = {"muon": [0.02, 0.05, 0.01, 0.01], "adamw": [0.02, 0.02], "sgd": [0.02, 0.02]}[name]
    for share in (0.1, 0.0, 1.0):  # of the peak each time, not of what it was
        optimizers.set_share(share)
        rates = [group["lr"] for part in optimizers.parts for group in part.param_groups]
        assert rates == pytest.approx([peak * share for peak in peaks])


@examples(deadline=None, max_examples=60)
@given(rows=st.integers(1, 80), columns=st.integers(1, 80), scale=st.sampled_from([1e-3, 1, 1e4]), seed=st.integers())
def test_orthogonalised_singular_values_are_near_one(rows: int, columns: int, scale: float, seed: int) -> None:
    matrix = noise(rows, columns, seed=seed % 2**31).double() * scale
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonalise(matrix[None])[0] @ right.mT  # in the directions of the matrix
    diagonal = found.diagonal()
    torch.testing.assert_close(found, diagonal.diag(), atol=1e-6, rtol=0)  # the directions are kept
    assert float(diagonal.min()) > 0
    assert float(diagonal.max()) < HIGHEST
    assert float(diagonal[values >= 1e-3 * values.norm()].min()) > LOWEST


@examples(deadline=None, max_examples=30)
@given(rows=st.integers(1, 80), columns=st.integers(1, 80), seed=st.integers(0, 2**31))
def test_orthogonalised_is_close_to_the_polar_factor(rows: int, columns: int, seed: int) -> None:
    """The band allows no cosine below 2 sqrt(0.87 * 1.1236) / (0.87 + 1.1236) = 0.9918."""
    matrix = noise(rows, columns, seed=seed)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assume(bool(values[-1] >= 1e-3 * values.norm()))  # not nearly of lower rank
    assert float(torch.cosine_similarity(orthogonalise(matrix[None]).flatten(), (left @ right).flatten(), dim=0)) > 0.99


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 65), (24, 96), (16, 16)])
def test_tall_is_wide_transposed(shape: tuple[int, int]) -> None:
    matrices = noise(4, *shape, seed=0)
    tall = orthogonalise(matrices.mT.contiguous())
    assert tall.shape == (4, shape[1], shape[0])
    torch.testing.assert_close(tall, orthogonalise(matrices).mT, rtol=0, atol=2e-4)


def test_matrices_do_not_touch_each_other_or_the_input() -> None:
    matrices = noise(5, 12, 20, seed=1)
    kept = matrices.clone()
    together = orthogonalise(matrices)
    assert torch.equal(matrices, kept)
    for matrix, ours in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalise(matrix[None])[0], ours, rtol=0, atol=2e-4)
    assert bool((orthogonalise(torch.zeros(2, 3, 4)) == 0).all())


def polar(matrix: np.ndarray) -> np.ndarray:
    """The five polynomials of the Polar Express, one after another, on one matrix of float64."""
    x = matrix / (1.01 * np.sqrt((matrix**2).sum()) + 1e-7)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    ):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x


def test_muon_is_a_plain_loop_over_matrices_in_float64() -> None:
    shapes = [(16, 24), (24, 16), (16, 24), (8, 16), (16, 16), (24, 16), (64, 8)]
    weights = [noise(*shape, seed=index) for index, shape in enumerate(shapes)]
    expected = [weight.double().numpy().copy() for weight in weights]
    averages = [np.zeros(shape) for shape in shapes]
    muon = Muon(weights, lr=0.05, momentum=0.95, weight_decay=0.1)
    for step in range(4):
        for index, weight in enumerate(weights):
            weight.grad = noise(*weight.shape, seed=100 * step + index + 50)
            gradient = weight.grad.double().numpy()
            averages[index] = 0.95 * averages[index] + 0.05 * gradient
            update = polar(0.05 * gradient + 0.95 * averages[index])
            rows, columns = shapes[index]
            expected[index] = expected[index] * (1 - 0.05 * 0.1) - 0.05 * max(1, rows / columns) ** 0.5 * update
        muon.step()
        for weight, wanted in zip(weights, expected, strict=True):
            np.testing.assert_allclose(weight.numpy(), wanted, rtol=0, atol=1e-4)


def test_muon_leaves_what_has_no_gradient() -> None:
    moved, left = noise(3, 4, seed=0), noise(3, 4, seed=1)
    before = moved.clone(), left.clone()
    moved.grad = noise(3, 4, seed=2)
    Muon([left, moved], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    assert torch.equal(left, before[1])
    assert not torch.equal(moved, before[0])


@both_heads
def test_beside_muon_the_rest_has_adamw(tied: bool) -> None:
    """Embedding, head and gains at their own rates, without decay; the hidden matrices as Muon alone moves them."""
    model, reference = started(tied), started(tied)
    optimizers = Optimizers(model, replace(SETTINGS, optimizer="muon"))
    names = dict(reference.named_parameters())
    gains = [names.pop(name) for name in list(names) if names[name].dim() == 1]
    groups = [{"params": gains, "lr": 0.01}, {"params": [names.pop("embedding.weight")], "lr": 0.05}]
    if not tied:
        groups.append({"params": [names.pop("head.weight")], "lr": 0.01})
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    muon = Muon(list(names.values()), lr=0.02, momentum=0.9, weight_decay=0.3)
    for _ in range(3):
        train(model, optimizers, range(2, 3))
        reference.zero_grad()
        backward(reference, 2)
        adamw.step()
        muon.step()
        assert_same(model, reference)


@every_optimizer
@both_heads
def test_restored_state_continues_to_the_bit(name: str, tied: bool) -> None:
    settings = replace(SETTINGS, optimizer=name)
    straight, broken = started(tied), started(tied)
    train(straight, Optimizers(straight, settings), range(6))
    before = Optimizers(broken, settings)
    train(broken, before, range(3))
    state = {key: value.clone() for key, value in before.state().items()}
    restored, forgetful = started(tied), started(tied)
    restored.load_state_dict(broken.state_dict())
    forgetful.load_state_dict(broken.state_dict())
    after = Optimizers(restored, settings)
    after.load_state(state)
    for value in state.values():
        value.fill_(0)  # it has copies of its own
    train(restored, after, range(3, 6))
    assert_same(restored, straight)
    train(forgetful, Optimizers(forgetful, settings), range(3, 6))
    assert not torch.equal(forgetful.embedding.weight, straight.embedding.weight)


@every_optimizer
def test_state_names_every_parameter(name: str) -> None:
    model = started()
    optimizers = Optimizers(model, replace(SETTINGS, optimizer=name))
    assert optimizers.state() == {}
    train(model, optimizers, range(1))
    state = optimizers.state()
    assert {key.rpartition("/")[0] for key in state} == {key for key, _ in model.named_parameters()}
    again = Optimizers(model, replace(SETTINGS, optimizer=name))
    again.load_state(state)
    assert again.state().keys() == state.keys()
    assert all(torch.equal(again.state()[key], value) for key, value in state.items())


@every_optimizer
def test_state_of_another_model_is_refused(name: str) -> None:
    model = started()
    optimizers = Optimizers(model, replace(SETTINGS, optimizer=name))
    train(model, optimizers, range(1))
    state = optimizers.state()
    with pytest.raises(MismatchError, match=r"unknown parameters: stack\.blocks\.7\.gate"):
        Optimizers(model, replace(SETTINGS, optimizer=name)).load_state(
            state | {"stack.blocks.7.gate/x": torch.ones(1)}
        )
    key = next(key for key in state if key.startswith("stack.blocks.0.") and not key.endswith("/step"))
    with pytest.raises(DamagedError, match="has a wrong shape"):
        Optimizers(model, replace(SETTINGS, optimizer=name)).load_state(state | {key: state[key][:-1]})
