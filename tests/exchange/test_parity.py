"""The parity table: its figures by other means, and what makes it fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rhapsode.exchange.parity import (
    GREEDY,
    PROMPTS,
    SAME,
    Logits,
    Ours,
    Parity,
    Prompt,
    Tolerance,
    Transformers,
    check,
    divergence,
)
from rhapsode.model.model import Model
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from .shapes import byte_pairs, random_model, shape_of

LOOSE = Tolerance(1.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_pairs()


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(shape_of("llama", context=128))


@dataclass
class Changed:
    """A peer that is ours, but for a change of its logits."""

    model: Model
    change: Callable[[Logits], Logits]

    def logits(self, prompt: Prompt) -> Logits:
        return self.change(Ours(self.model).logits(prompt))

    def greedy(self, prompt: Prompt, count: int) -> list[int]:
        written: list[int] = []
        while len(written) < count:
            scores = self.logits(Prompt((*prompt.ids, *written)))
            written.append(int(scores[-1].argmax()))
        return written


def table(model: Model, tokenizer: Tokenizer, change: Callable[[Logits], Logits], tolerance: Tolerance) -> Parity:
    return check(model, tokenizer, [("peer", lambda: Changed(model, change), tolerance)], context=128)


def test_divergence_is_torch_s() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.standard_normal((7, 30)) * 4, draw.standard_normal((7, 30))
    logs = [torch.from_numpy(scores).log_softmax(-1) for scores in (ours, theirs)]
    expected = torch.nn.functional.kl_div(logs[1], logs[0], log_target=True, reduction="sum") / 7
    assert divergence(ours, theirs) == pytest.approx(float(expected))
    assert divergence(ours, ours + 5.0) == pytest.approx(0.0, abs=1e-12)


def test_the_same_passes(model: Model, tokenizer: Tokenizer) -> None:
    parity = table(model, tokenizer, lambda scores: scores, SAME)
    (row,) = parity.rows
    assert not parity.faults
    assert (row.largest, row.agreeing, row.of) == (pytest.approx(0, abs=1e-5), GREEDY, GREEDY)


def test_the_figures(model: Model, tokenizer: Tokenizer) -> None:
    """One logit of every place lower by 0.5: that is the largest difference."""

    def lower(scores: Logits) -> Logits:
        scores = scores.copy()
        scores[:, 7] -= 0.5
        return scores

    (row,) = table(model, tokenizer, lower, LOOSE).rows
    assert row.largest == pytest.approx(0.5, abs=1e-5)
    assert row.divergence is not None and 0 < row.divergence < 0.1


@pytest.mark.parametrize(
    ("change", "tolerance", "words"),
    [
        (lambda scores: scores * 1.5, Tolerance(0.01), r"diverges by .* nats; 0\.01 are allowed"),
        (lambda scores: scores + 1.0, SAME, r"logits differ by 1; .* are allowed"),
        (lambda scores: scores[:, 1:], SAME, r"gives \(\d+, 265\) numbers, not \(\d+, 266\)"),
        (lambda scores: scores * float("nan"), LOOSE, "not finite"),
        (lambda scores: 1 / 0, LOOSE, r"does not compute it \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_fails(
    model: Model, tokenizer: Tokenizer, change: Callable[[Logits], Logits], tolerance: Tolerance, words: str
) -> None:
    (fault,) = table(model, tokenizer, change, tolerance).faults
    assert pytest.importorskip("re").search(words, fault), fault


def test_another_text_fails_unless_two_tokens_are_as_good(model: Model, tokenizer: Tokenizer) -> None:
    class Otherwise(Changed):
        """Writes the second best token in fourth place."""

        def greedy(self, prompt: Prompt, count: int) -> list[int]:
            written = super().greedy(prompt, count)
            scores = self.logits(Prompt((*prompt.ids, *written[:3])))[-1]
            return [*written[:3], int(np.argsort(-scores)[1]), *written[4:]]

    def faults(tolerance: Tolerance) -> list[str]:
        peers = [("peer", lambda: Otherwise(model, lambda scores: scores), tolerance)]
        parity = check(model, tokenizer, peers, context=128)
        assert parity.rows[0].agreeing == 3
        return parity.faults

    assert faults(SAME) == ["peer: writes another text from token 4 on"]
    assert faults(Tolerance(1e-5, 10.0)) == []  # where so much may differ, the second is as good
    assert faults(LOOSE) == []  # numbers were rounded: only the divergence counts


@pytest.mark.parametrize("family", ["llama", "bert", "roberta", "marian", "t5"])
def test_every_kind_is_asked_for_what_it_does(family: str, tokenizer: Tokenizer) -> None:
    """Decoders continue, encoders fill masks, encoder-decoders write through cross attention: a change of any
    matrix or gain of a block shows.
    """
    model, context = random_model(shape_of(family)), 12
    same = check(model, tokenizer, [("peer", lambda: Ours(model), SAME)], context=context)
    assert same.rows[0].largest == 0.0
    assert (same.rows[0].agreeing is None) == (model.config.kind == "encoder")
    other = random_model(model.config)
    for name, parameter in other.named_parameters():
        if ".blocks.1." not in name or not name.endswith(".weight"):
            continue
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5).add_(0.1)
        row = check(model, tokenizer, [("peer", lambda: Ours(other), SAME)], context=context).rows[0]
        with torch.no_grad():
            parameter.copy_(before)
        assert row.fault, name


def test_a_model_without_a_head_compares_vectors(tokenizer: Tokenizer) -> None:
    model = random_model(shape_of("bert", has_head=False))
    (row,) = check(model, tokenizer, [("peer", lambda: Ours(model), SAME)], context=24).rows
    assert row.largest == 0.0 and row.fault == ""


@pytest.mark.parametrize("context", [1, 2, 5])
def test_contexts_of_a_few_tokens(context: int, tokenizer: Tokenizer) -> None:
    model = random_model(shape_of("llama", context=context))
    (row,) = check(model, tokenizer, [("peer", lambda: Ours(model), SAME)], context=context).rows
    assert not row.fault


def test_tokenizers_that_lack_letters() -> None:
    tokenizer = train_tokenizer(["aaab"], "character")
    model = random_model(shape_of("llama", rows=tokenizer.vocabulary_size))
    assert not check(model, tokenizer, [("peer", lambda: Ours(model), SAME)], context=24).faults


def test_prompts_do_not_change_from_run_to_run(model: Model, tokenizer: Tokenizer) -> None:
    seen: list[list[Prompt]] = []

    class Noting(Ours):
        def logits(self, prompt: Prompt) -> Logits:
            seen[-1].append(prompt)
            return super().logits(prompt)

    for _ in range(2):
        seen.append([])
        check(model, tokenizer, [("peer", lambda: Noting(model), SAME)], context=128)
    assert seen[0] == seen[1]
    assert len(seen[0]) == PROMPTS


def test_a_folder_that_transformers_cannot_open_is_a_fault(tmp_path: pytest.TempPathFactory, model: Model) -> None:
    parity = check(model, byte_pairs(), [("transformers", lambda: Transformers(tmp_path, model), SAME)], context=128)  # type: ignore[arg-type]
    assert "does not compute it" in parity.faults[0]
