"""A text that is another one beside others was near a tie, where rounding decides; anything else is a fault."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rhapsode.base.random import generator
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.sampling import Sampling, distribution, draw
from rhapsode.inference.step import Reading, TorchStep
from rhapsode.inference.text import Text


@pytest.fixture(scope="module")
def ties() -> ModuleType:
    """benchmarks/ties.py, which counts them."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "ties.py"
    spec = importlib.util.spec_from_file_location("ties", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["ties"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def twins(byte_pair_folder: Path) -> LanguageModel:
    """A model in which every second token is as likely as the one before it, up to the rounding of its weights."""
    model = load(byte_pair_folder, "cpu")
    weight = model.decoder().head.weight
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        even = weight[0::2].clone()
        weight[1::2] = even * (1 + 1e-7 * torch.randn(even.shape, generator=noise))
    return model


def asked(model: LanguageModel, sampling: Sampling, count: int = 16) -> list[tuple[list[int], Sampling]]:
    noise = np.random.default_rng(2)
    prompts = [noise.integers(0, 300, int(noise.integers(1, 30))).tolist() for _ in range(count)]
    return [(prompt, replace(sampling, seed=seed, max_new_tokens=25)) for seed, prompt in enumerate(prompts)]


def test_whatever_is_otherwise_beside_others_is_a_near_tie(ties: ModuleType, twins: LanguageModel) -> None:
    gaps, tokens = [], 0
    for sampling in (Sampling(temperature=0), Sampling(temperature=1.0, top_p=1.0), Sampling(min_p=0.02, top_k=50)):
        texts = asked(twins, sampling)
        alone = [ids for one in texts for ids in ties.written(twins, [one])]
        for _, others in ties.ways(twins, texts):
            found = ties.compare(twins, texts, alone, others)
            gaps += found.gaps
            tokens += found.tokens
    assert tokens > 3_000
    assert gaps  # else this says nothing
    assert max(gaps) <= ties.NEAR


def test_a_fault_is_no_near_tie(ties: ModuleType, by_byte_pairs: LanguageModel) -> None:
    # Not the twins: where every token has its like, most texts part there, and few at the fault.
    class Careless(TorchStep):
        """What stands beside a text is in its logits, a little."""

        def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
            rows = super().__call__(readings)
            return [row + 1e-2 * rows[0][-1:] for row in rows]

    texts = asked(by_byte_pairs, Sampling(temperature=0))
    alone = [ids for one in texts for ids in ties.written(by_byte_pairs, [one])]
    found = ties.compare(
        by_byte_pairs, texts, alone, ties.written(by_byte_pairs, texts, Careless(by_byte_pairs.decoder(), 200))
    )
    assert max(found.gaps) > 10 * ties.NEAR


def text_for(model: LanguageModel, sampling: Sampling) -> Text:
    return Text(0, [1, 2], sampling, model.tokenizer, (), model.config.context_length)


def test_the_gap_is_how_far_a_draw_is_from_another_token(ties: ModuleType, twins: LanguageModel) -> None:
    logits = np.random.default_rng(3).normal(size=twins.tokenizer.vocabulary_size)
    for seed in range(20):
        plain = Sampling(temperature=1.0, top_p=1.0, seed=seed)
        text = text_for(twins, plain)
        likely = distribution(logits, plain)
        drawn, point = draw(likely, seed, 2), generator(seed, "sampling", 2).random()
        border = likely[:drawn].sum()  # where the token before it ends
        assert ties.gap(logits, text, drawn) == 0.0
        assert ties.gap(logits, text, drawn - 1) == pytest.approx(point - border)
        assert ties.gap(logits, text, drawn + 1) == pytest.approx(border + likely[drawn] - point)
    best, second = np.argsort(-logits)[:2].tolist()
    greedy = text_for(twins, Sampling(temperature=0))
    assert ties.gap(logits, greedy, best) == 0.0
    assert ties.gap(logits, greedy, second) == pytest.approx(likely[best] - likely[second])


def test_the_gap_to_what_a_filter_takes_away_is_the_change_that_lets_it_pass(
    ties: ModuleType, twins: LanguageModel
) -> None:
    logits = np.full(twins.tokenizer.vocabulary_size, -20.0)
    logits[:3] = [0.0, 1e-7, -1e-7]  # the third is left out of the best two, by a hair
    # Its share would be the last third.
    seed = next(seed for seed in range(100) if generator(seed, "sampling", 2).random() > 0.7)
    text = text_for(twins, Sampling(temperature=1.0, top_p=1.0, top_k=2, seed=seed))
    assert ties.gap(logits, text, 2) <= ties.NEAR
    assert ties.gap(logits, text, 7) == 1.0
