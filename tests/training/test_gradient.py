"""The gradient of a step is the same, up to rounding, however many workers share its micro-batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.training.dropout import ResidualDropout
from rhapsode.training.gradient import MOST_WORKERS, Gradient, MicroBatch, workers_for

CONFIG = QWEN3.config(
    vocabulary_size=23,
    hidden_size=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    context_length=12,
)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(1)
    model = Decoder(replace(CONFIG, tied_embeddings=request.param))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batches(micro: int, dropout: float, windows: int = 7) -> list[MicroBatch]:
    ids = torch.randint(23, (windows, 11), generator=torch.Generator().manual_seed(5))
    return [
        (
            (ids[first : first + micro, :-1], ids[first : first + micro, 1:]),
            ResidualDropout(dropout, 0, 3, first) if dropout else None,
        )
        for first in range(0, windows, micro)
    ]


def gradients(model: Decoder) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("micro", [1, 3, 7])
def test_it_is_that_of_the_whole_batch(model: Decoder, workers: int, micro: int, dropout: float) -> None:
    (((inputs, targets), whole),) = batches(7, dropout)
    expected_loss = model.loss(inputs, targets, dropout=whole) / 70
    expected = torch.autograd.grad(expected_loss, list(model.parameters()))
    gradient = Gradient(model, workers=workers)
    for _ in range(2):  # what a step before left behind does not count
        loss = gradient.compute(batches(micro, dropout), 70)
        assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
        torch.testing.assert_close(gradients(model), list(expected), rtol=1e-4, atol=1e-6)


def test_it_follows_the_weights(model: Decoder) -> None:
    """The workers' replicas must see every update."""
    gradient = Gradient(model, workers=2)
    before = gradient.compute(batches(3, 0.0), 70)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    after = gradient.compute(batches(3, 0.0), 70)
    assert after != before
    assert after == pytest.approx(Gradient(model, workers=1).compute(batches(3, 0.0), 70), rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_the_bits_do_not_depend_on_who_is_faster(seed: int) -> None:
    torch.manual_seed(seed)
    model = Decoder(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gradient = Gradient(model, workers=3)
    delays: Iterator[float] = iter([])
    losses = list(gradient.losses)

    def slowed(index: int) -> None:
        loss = losses[index]

        def late(*arguments: object, **more: object) -> torch.Tensor:
            threading.Event().wait(next(delays, 0.0))
            return loss(*arguments, **more)

        gradient.losses[index] = late

    for index in range(3):
        slowed(index)
    results = []
    for order in ([0.0, 0.002, 0.004], [0.004, 0.002, 0.0]):
        delays = iter(order)
        results.append((gradient.compute(batches(1, 0.2), 70), gradients(model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_what_a_worker_meets_is_raised(model: Decoder) -> None:
    broken = batches(2, 0.0)
    broken[1] = ((torch.full((2, 10), 99), broken[1][0][1]), None)
    with pytest.raises(IndexError):
        Gradient(model, workers=2).compute(broken, 70)


def test_who_works_where() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert workers_for(cpu, compiled=False, threads=2) == 2
    assert workers_for(cpu, compiled=True, threads=2) == 1
    assert workers_for(cuda, compiled=False, threads=2) == 1
    assert workers_for(cpu, compiled=False, threads=MOST_WORKERS + 1) == 1
