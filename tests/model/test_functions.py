"""Norm, rotation and gate with hand-written backward passes, against autograd on the formula written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhapsode.model.config import Rope
from rhapsode.model.functions import linear, linear_cross_entropy, rms_norm, rotate, rows_at_once, swiglu
from rhapsode.model.positions import rotary_angles

EPSILON = 1e-3  # large enough to matter


def plain_rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * gain


def plain_rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each pair as a complex number, times e^(i angle)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.complex(cosine, sine)
    return torch.cat((turned.real, turned.imag), dim=-1)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + torch.exp(-gate)) * up


def assert_same_values_and_gradients(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """In fp32, where the hand-written passes run, against the plain formula in fp64."""
    single = [x.clone().requires_grad_() for x in inputs]
    double = [x.double().requires_grad_() for x in inputs]
    got, expected = ours(*single), plain(*double)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # the way without autograd is another one
        torch.testing.assert_close(ours(*inputs), got)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for mine, theirs in zip(single, double, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=3e-5, rtol=3e-5)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 70), st.floats(0.01, 30), st.integers(0, 99))
def test_rms_norm(leading: list[int], size: int, scale: float, seed: int) -> None:
    x, gain = noise(*leading, size, seed=seed) * scale + 0.3, 1 + 0.5 * noise(size, seed=seed + 1)
    assert_same_values_and_gradients(lambda x, gain: rms_norm(x, gain, EPSILON), plain_rms_norm, [x, gain])


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9), max_size=2), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 99)
)
def test_linear_of_few_rows(leading: list[int], size: int, out: int, biased: bool, seed: int) -> None:
    x, weight = noise(*leading, size, seed=seed), noise(out, size, seed=seed + 1)
    bias = noise(out, seed=seed + 2) if biased else None
    with torch.no_grad():
        got = linear(x, weight, bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert got.shape == expected.shape and got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)


def test_rms_norm_of_strided_input_and_gradient() -> None:
    """Heads are cut out of a wider tensor: nothing may assume that memory is contiguous."""
    x, gain = noise(4, 6, 10).transpose(0, 1)[..., ::2], 1 + noise(5, seed=1)
    assert_same_values_and_gradients(lambda x, gain: rms_norm(x, gain, EPSILON), plain_rms_norm, [x, gain])
    ours, plain = (x.clone().requires_grad_() for _ in range(2))
    upstream = noise(5, 6, 4, seed=2).permute(1, 2, 0)  # not contiguous
    rms_norm(ours, gain, EPSILON).backward(upstream)
    plain_rms_norm(plain, gain).backward(upstream)
    torch.testing.assert_close(ours.grad, plain.grad, atol=3e-5, rtol=3e-5)


def test_rms_norm_in_double_precision_has_the_right_gradient() -> None:
    x, gain = noise(3, 4).double().requires_grad_(), noise(4, seed=1).double().requires_grad_()
    torch.testing.assert_close(rms_norm(x, gain, EPSILON), plain_rms_norm(x, gain))
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, EPSILON), (x, gain))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_rotate(batch: int, time: int, heads: int, half: int, batched: bool) -> None:
    positions = torch.arange(batch * time).view(batch, time) * 3 if batched else torch.arange(time)
    cosine, sine = rotary_angles(positions, Rope(100.0), 2 * half)
    x = noise(batch, time, heads, 2 * half)
    assert_same_values_and_gradients(
        lambda x: rotate(x, cosine.to(x.dtype), sine.to(x.dtype)),
        lambda x: plain_rotate(x, cosine.to(x.dtype), sine.to(x.dtype)),
        [x],
    )


def test_rotate_and_swiglu_pass_gradcheck() -> None:
    cosine, sine = rotary_angles(torch.arange(4), Rope(100.0), 6, torch.float64)
    x = noise(2, 4, 3, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, cosine, sine), (x,))
    gate, up = noise(3, 5).double().requires_grad_(), noise(3, 5, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_rotation_turns_by_position_times_frequency() -> None:
    cosine, sine = rotary_angles(torch.tensor([0, 7]), Rope(100.0), 4)
    angles = torch.tensor([[0.0, 0.0], [7.0, 7.0 / 10.0]])  # 100^(-0/4) = 1, 100^(-2/4) = 1/10
    torch.testing.assert_close(cosine[:, 0], angles.cos())
    torch.testing.assert_close(sine[:, 0], angles.sin())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.floats(0.01, 10), st.integers(0, 999))
def test_swiglu(shape: list[int], scale: float, seed: int) -> None:
    gate, up = noise(*shape, seed=seed) * scale, noise(*shape, seed=seed + 1)
    assert_same_values_and_gradients(swiglu, plain_swiglu, [gate, up])


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_rms_norm_neither_underflows_nor_overflows(scale: float) -> None:
    x = noise(2, 8) * scale
    expected = plain_rms_norm(x.double(), torch.ones(8, dtype=torch.float64)).float()
    torch.testing.assert_close(rms_norm(x, torch.ones(8), EPSILON), expected)


def plain_cross_entropy(scores: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The cross-entropy of each row's softmax and its smoothed target, written out."""
    counted = targets >= 0
    log_p = scores[counted] - scores[counted].exp().sum(-1, keepdim=True).log()
    wanted = torch.full_like(log_p, smoothing / scores.shape[1])
    wanted[torch.arange(len(wanted)), targets[counted]] += 1 - smoothing
    return -(wanted * log_p).sum()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(2, 300),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.floats(0.1, 5.0),
    st.integers(0, 99),
)
def test_linear_cross_entropy(
    tokens: int, width: int, vocabulary: int, smoothing: float, has_bias: bool, scale: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, vocabulary, (tokens,), generator=draw)
    inputs = [noise(tokens, width, seed=seed) * scale, noise(vocabulary, width, seed=seed + 1)]
    inputs += [noise(vocabulary, seed=seed + 2)] if has_bias else []
    assert_same_values_and_gradients(
        lambda hidden, weight, bias=None: linear_cross_entropy(hidden, weight, bias, targets, smoothing).view(1),
        lambda hidden, weight, bias=0: plain_cross_entropy(hidden @ weight.T + bias, targets, smoothing).view(1),
        inputs,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy_in_several_parts(smoothing: float) -> None:
    """More tokens than have logits at one time, a vocabulary like a real one, and a score far from the others."""
    tokens, vocabulary = 2 * rows_at_once(20_000) + 3, 20_000
    hidden, weight = noise(tokens, 6), noise(vocabulary, 6, seed=1)
    targets = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(2))
    weight[targets[0]] = 4 * hidden[0]
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
        loss = linear_cross_entropy(inputs[0], inputs[1], None, targets, smoothing) / tokens
        loss.backward()
        results.append([loss, *(x.grad for x in inputs)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-6, rtol=1e-5)


def test_linear_cross_entropy_with_what_is_not_learned() -> None:
    hidden, weight = noise(5, 3).requires_grad_(), noise(7, 3, seed=1)
    linear_cross_entropy(hidden, weight, None, torch.arange(5)).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, None, torch.arange(5))
    torch.testing.assert_close(value, plain_cross_entropy(hidden.detach() @ weight.T, torch.arange(5), 0.0))


def test_linear_cross_entropy_of_scores_beyond_what_exp_can_hold() -> None:
    hidden, weight = torch.tensor([[1.0], [1.0]], requires_grad=True), torch.tensor([[2e4], [1e4], [-2e4]])
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 1e4
    assert hidden.grad is not None and hidden.grad.tolist() == [[0.0], [1e4]]
