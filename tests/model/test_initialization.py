"""How a model starts: at the loss of a uniform guess, the same for the same seed, each parameter in one group."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch

from rhapsode.base.errors import InputError
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.initialization import group_of, initialise

CONFIG = QWEN3.config(512, 96, 3, 4, 2, 24, 160, 64)


def started(config: ModelConfig, seed: int = 0) -> Decoder:
    model = Decoder(config)
    initialise(model, seed)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocabulary", [65, 4096])
@pytest.mark.parametrize("hidden", [32, 384])
def test_first_loss_is_log_vocabulary(tied: bool, vocabulary: int, hidden: int) -> None:
    config = dataclasses.replace(CONFIG, vocabulary_size=vocabulary, hidden_size=hidden, tied_embeddings=tied)
    ids = torch.randint(vocabulary, (4, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = started(config).loss(ids[:, :-1], ids[:, 1:]).item() / (4 * 64)
    assert loss == pytest.approx(math.log(vocabulary), rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group(tied: bool) -> None:
    model = Decoder(dataclasses.replace(CONFIG, tied_embeddings=tied))
    groups = {name: group_of(name) for name, _ in model.named_parameters()}
    assert Counter(groups.values()) == {
        "embedding": 1,
        "matrix": 7 * CONFIG.layers,  # query, key, value, output; gate, up, down
        "gain": 4 * CONFIG.layers + 1,  # two norms, query and key norm; the last
        **({} if tied else {"head": 1}),
    }
    for name, parameter in model.named_parameters():
        assert (parameter.dim() == 1) == (groups[name] == "gain"), name
    grouped = [parameter for group in ("matrix", "embedding", "head", "gain")
               for name, parameter in model.named_parameters() if groups[name] == group]  # fmt: skip
    assert sum(parameter.numel() for parameter in grouped) == model.config.parameters
    assert len({id(parameter) for parameter in grouped}) == len(list(model.parameters()))


def test_parameters_and_matrix_parameters_are_counted_right() -> None:
    for tied in (True, False):
        model = Decoder(dataclasses.replace(CONFIG, tied_embeddings=tied))
        counts = Counter[str]()
        for name, parameter in model.named_parameters():
            counts[group_of(name)] += parameter.numel()
        head = counts["embedding"] if tied else counts["head"]
        assert model.config.matrix_parameters == counts["matrix"] + head
        assert model.config.parameters == counts.total()


def test_the_same_seed_gives_the_same_model_and_another_another() -> None:
    first, again, other = started(CONFIG, 3), started(CONFIG, 3), started(CONFIG, 4)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        constant = group_of(name) == "gain" or name.endswith(("output.weight", "down.weight"))
        assert torch.equal(a, c) == constant, name


def test_a_model_starts_as_its_embedding() -> None:
    """Every block is the identity at first: the hidden states are the normed embeddings."""
    model = started(CONFIG)
    ids = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(ids), model.stack.final_norm(model.embedding(ids)))


def test_targets_below_zero_do_not_count() -> None:
    model = started(CONFIG)
    ids = torch.randint(512, (1, 10), generator=torch.Generator().manual_seed(0))
    targets = ids.clone()
    targets[0, 5:] = -1
    torch.testing.assert_close(model.loss(ids, targets), model.loss(ids[:, :5], ids[:, :5]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size must be between 1 and"),
        ({"layers": -1}, "layers must be between 1 and"),
        ({"heads": 5}, r"heads \(5\) must be a multiple of kv_heads \(2\)"),
        ({"head_dim": 7}, "head_dim must be even"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(CONFIG, **change)
