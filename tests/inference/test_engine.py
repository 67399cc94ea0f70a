"""The engine: texts do not depend on what is written beside them, on what is shared, or on how prompts are cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhapsode.base.errors import InputError, NotFiniteError, RhapsodeError
from rhapsode.inference import engine as module
from rhapsode.inference.engine import Engine, Look, QueueFullError, Request
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.speculation import DraftModel, PromptLookup, Speculation
from rhapsode.inference.step import Reading, TorchStep
from rhapsode.inference.text import Likelihood, Piece, Text
from rhapsode.model.block_cache import BLOCK


class Recorded:
    """The torch step, and what it was asked to read."""

    def __init__(self, model: LanguageModel, blocks: int) -> None:
        self.step, self.blocks = TorchStep(model.decoder(), blocks), blocks
        self.asked: list[list[Reading]] = []

    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        self.asked.append(list(readings))
        return self.step(readings)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.step.copy(sources, targets)


def new_engine(model: LanguageModel, blocks: int = 200, **settings: Any) -> tuple[Engine, Recorded]:
    step = Recorded(model, blocks)
    return Engine(step, model.tokenizer, model.config.context_length, **settings), step


def written(engine: Engine, *requests: Request) -> list[list[tuple[list[int], str, str | None]]]:
    """All texts of the requests: ids, text and why each ended."""
    pieces: list[list[Piece]] = [[] for _ in requests]
    while True:
        for mine, request in zip(pieces, requests, strict=True):
            mine.extend(request.waiting)
            request.waiting.clear()
        if all(request.finished for request in requests):
            break
        engine.step()
    assert all(request.error is None for request in requests)
    found = []
    for mine, request in zip(pieces, requests, strict=True):
        rows = [[piece for piece in mine if piece.row == row] for row in range(len(request.texts))]
        texts = (([piece.token for piece in row], "".join(piece.text for piece in row)) for row in rows)
        found.append([(*text, row[-1].finish_reason) for text, row in zip(texts, rows, strict=True)])
    return found


def mixed(model: LanguageModel, count: int) -> list[tuple[list[int], list[Sampling]]]:
    """Requests of all kinds; many begin alike."""
    noise = np.random.default_rng(5)
    begin = model.tokenizer.encode("Before we proceed any further, hear me speak. " * 3)
    requests = []
    for number in range(count):
        own = noise.integers(0, 200, int(noise.integers(1, 12))).tolist()
        prompt = [*begin[: int(noise.integers(0, 45))], *own]
        sampling = Sampling(
            temperature=float(noise.choice([0.0, 0.7, 1.3])),
            top_k=int(noise.choice([0, 20])),
            typical_p=float(noise.choice([1.0, 0.9])),
            repetition_penalty=float(noise.choice([1.0, 1.2])),
            frequency_penalty=float(noise.choice([0.0, 0.5])),
            logit_bias={"3": 1.0} if number % 5 == 0 else {},
            seed=number,
            max_new_tokens=int(noise.integers(1, 30)),
            stop=("e",) if number % 7 == 0 else (),
        )
        requests.append((prompt, [sampling] * int(noise.integers(1, 3))))
    return requests


@pytest.mark.parametrize("blocks", [2, 7, 300])
def test_64_mixed_requests_are_the_same_alone_and_together(by_byte_pairs: LanguageModel, blocks: int) -> None:
    requests = mixed(by_byte_pairs, 64)
    alone = []
    for prompt, samplings in requests:
        engine, _ = new_engine(by_byte_pairs)
        alone += written(engine, engine.submit(prompt, samplings, by_byte_pairs.end_ids))
    engine, step = new_engine(by_byte_pairs, blocks)
    together = written(engine, *[engine.submit(*request, by_byte_pairs.end_ids) for request in requests])
    assert together == alone
    assert engine.idle and engine.pool.held == 0
    if blocks == 300:
        assert max(map(len, step.asked)) > 50


class Wild:
    """Guesses at random, right ones among them."""

    def __init__(self, expected: dict[int, list[int]]) -> None:
        self.expected, self.noise = expected, np.random.default_rng(1)
        self.texts: set[Text] = set()

    def guess(self, text: Text, most: int) -> list[int]:
        self.texts.add(text)
        coming = self.expected[text.sampling.seed][len(text.ids) - text.prompt_length :][:most]
        wrong = self.noise.random(len(coming)) < 0.2
        return np.where(wrong, self.noise.integers(0, 300, len(coming)), coming).tolist()

    def forget(self, text: Text) -> None:
        self.texts.discard(text)


@pytest.mark.parametrize("kind", ["prompt", "wild", "itself", "another"])
def test_speculation_never_changes_what_is_written(
    by_byte_pairs: LanguageModel, make_folder: Callable[..., Path], kind: str
) -> None:
    requests = mixed(by_byte_pairs, 40)
    engine, plain = new_engine(by_byte_pairs)
    expected = written(engine, *[engine.submit(*request, by_byte_pairs.end_ids) for request in requests])
    another = load(make_folder(by_byte_pairs.tokenizer, never=("<|endoftext|>",)), "cpu")
    wild = Wild({seed: rows[0][0] for seed, rows in enumerate(expected)})
    speculation: dict[str, Speculation] = {
        "prompt": PromptLookup(),
        "wild": wild,
        "itself": DraftModel(by_byte_pairs.decoder()),
        "another": DraftModel(another.decoder()),
    }
    engine, step = new_engine(by_byte_pairs, speculation=speculation[kind])
    submitted = [engine.submit(*request, by_byte_pairs.end_ids) for request in requests]
    assert written(engine, *submitted) == expected
    assert engine.pool.held == 0 and not wild.texts
    guessed, accepted = sum(r.guessed for r in submitted), sum(r.accepted for r in submitted)
    assert 0 < accepted <= guessed
    if kind == "itself":
        for request in submitted:  # wrong is only what is guessed beyond an end that nobody knows before
            if all(text.finish_reason == "length" for text in request.texts):
                assert request.accepted == request.guessed
        assert len(step.asked) < len(plain.asked) / 2
    if kind == "wild":
        assert 0.3 < accepted / guessed < 0.9


def test_log_probabilities_are_the_models_own(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    prompt = [5, 6, 7]
    sampling = Sampling(temperature=2.0, top_k=3, max_new_tokens=5, seed=2)
    pieces = list(engine.pieces(engine.submit(prompt, [sampling], (), look=Look(likeliest=4, logits=True))))
    ids = torch.tensor([prompt + [piece.token for piece in pieces]])
    logits = by_byte_pairs.logits(ids)[0, :, : by_byte_pairs.tokenizer.vocabulary_size]
    for place, piece in enumerate(pieces, start=len(prompt) - 1):
        assert piece.likelihood is not None and piece.logits is not None
        assert_is_likelihood(piece.likelihood, logits[place], piece.token, 4)
        assert piece.logits == pytest.approx(logits[place].numpy(), abs=1e-4)
    (only, *_) = list(engine.pieces(engine.submit(prompt, [sampling], ())))
    assert only.likelihood is None and only.logits is None


@pytest.mark.parametrize("length", [1, 2, BLOCK, 2 * BLOCK - 5])
@pytest.mark.parametrize("speculates", [False, True])
def test_a_prompt_is_judged_whatever_was_read_before(
    by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch, length: int, speculates: bool
) -> None:
    monkeypatch.setattr(module, "PROMPT_TOKENS", 20)
    engine, _ = new_engine(by_byte_pairs, speculation=PromptLookup() if speculates else None)
    prompt = [3 + place % 7 for place in range(length)]
    samplings = [Sampling(seed=seed, max_new_tokens=4) for seed in range(3)]
    plain = written(engine, engine.submit(prompt, samplings, ()))
    request = engine.submit(prompt, samplings, (), look=Look(likeliest=2, prompt=True))
    other = engine.submit(prompt, samplings, ())
    assert written(engine, request, other) == plain * 2
    logits = by_byte_pairs.logits(torch.tensor([prompt]))[0, :, : by_byte_pairs.tokenizer.vocabulary_size]
    first, *others = request.prompt
    assert first is None and len(others) == length - 1
    for place, found in enumerate(others):
        assert found is not None
        assert_is_likelihood(found, logits[place], prompt[place + 1], 2)


def assert_is_likelihood(found: Likelihood, logits: torch.Tensor, token: int, count: int) -> None:
    """What torch makes of the logits (vocabulary,)."""
    expected = logits.log_softmax(-1)
    best = expected.topk(count)
    assert found.log_probability == pytest.approx(float(expected[token]), abs=1e-4)
    assert [id for id, _ in found.likeliest] == best.indices.tolist()
    assert [value for _, value in found.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_the_same_prompt_is_read_once(by_byte_pairs: LanguageModel) -> None:
    engine, step = new_engine(by_byte_pairs)
    prompt = list(range(2 * BLOCK - 5))
    request = engine.submit(prompt, [Sampling(seed=seed, max_new_tokens=3) for seed in range(5)], ())
    written(engine, request)
    read = sum(len(reading.ids) for readings in step.asked for reading in readings)
    assert read == len(prompt) + 4 * (len(prompt) - BLOCK) + 5 * 2  # five times only what fills no block
    assert request.cached == BLOCK
    again = engine.submit([*prompt[:BLOCK], 1, 2], [Sampling(max_new_tokens=1)], ())
    assert written(engine, again) and again.cached == BLOCK


def test_long_prompts_do_not_hold_up_who_is_writing(
    by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROMPT_TOKENS", 8)
    engine, step = new_engine(by_byte_pairs)
    writer = engine.submit([1, 2], [Sampling(max_new_tokens=40, top_p=1.0)], ())
    engine.step()
    prompts = [engine.submit([number] * 50, [Sampling(max_new_tokens=2)], ()) for number in range(3)]
    while not writer.finished:
        before = len(writer.waiting)
        engine.step()
        assert len(writer.waiting) == before + 1
        assert sum(len(reading.ids) for reading in step.asked[-1]) <= 8 + 4
    texts = [text for (text,) in written(engine, *prompts)]
    monkeypatch.undo()
    for number, text in enumerate(texts):
        engine, _ = new_engine(by_byte_pairs)
        assert written(engine, engine.submit([number] * 50, [Sampling(max_new_tokens=2)], ())) == [[text]]


def test_who_goes_away_is_forgotten_and_nobody_else(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs, blocks=4)
    stays, goes, waits = (engine.submit([7, number], [Sampling(max_new_tokens=40)] * 2, ()) for number in range(3))
    expected = []
    for number in (0, 2):
        other, _ = new_engine(by_byte_pairs)
        expected += written(other, other.submit([7, number], [Sampling(max_new_tokens=40)] * 2, ()))
    for _ in range(3):
        engine.step()
    engine.cancel(goes)
    engine.cancel(goes)
    assert written(engine, stays, waits) == expected
    assert len(goes.waiting) <= 2 * 3 and engine.pool.held == 0


def test_several_threads_may_ask_at_once(by_byte_pairs: LanguageModel) -> None:
    samplings = [Sampling(seed=seed, max_new_tokens=25, temperature=1.0) for seed in range(12)]
    alone = [by_byte_pairs.generate("You are", sampling) for sampling in samplings]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda sampling: by_byte_pairs.generate("You are", sampling), samplings))
    assert together == alone and by_byte_pairs.engine().pool.held == 0


def test_leaving_the_pieces_cancels(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    pieces = engine.pieces(engine.submit([1], [Sampling(max_new_tokens=40)], ()))
    next(pieces)
    assert engine.pool.held > 0
    pieces.close()
    assert engine.idle and engine.pool.held == 0


def test_the_queue_is_bounded_and_a_deadline_is_kept(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs, blocks=2, longest_queue=3)
    sampling = Sampling(max_new_tokens=50)
    late = engine.submit([1], [sampling], (), deadline=time.monotonic() - 1)
    kept = engine.submit([2], [sampling], (), deadline=time.monotonic() + 100)
    with pytest.raises(QueueFullError, match="2 texts are waiting"):
        engine.submit([3], [sampling] * 2, ())
    written(engine, kept)
    with pytest.raises(RhapsodeError, match="time for this request is over"):
        list(engine.pieces(late))
    assert late.texts[0].finish_reason is None and engine.idle


def test_what_can_never_fit_is_refused_at_once(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs, blocks=1)
    with pytest.raises(InputError, match=f"longer than the cache of {BLOCK}"):
        engine.submit([1], [Sampling(max_new_tokens=BLOCK + 1)] * 2, ())
    assert engine.idle
    engine.submit([1], [Sampling(max_new_tokens=BLOCK)], ())


def test_a_request_that_fails_takes_none_with_it(by_byte_pairs: LanguageModel) -> None:
    engine, step = new_engine(by_byte_pairs)

    def spoiled(readings: Sequence[Reading]) -> list[np.ndarray]:
        answer = step(readings)
        return [
            logits + (np.nan if 5 in reading.ids else 0.0) for reading, logits in zip(readings, answer, strict=True)
        ]

    engine._step = spoiled  # type: ignore[assignment]
    bad = engine.submit([5], [Sampling(max_new_tokens=4)] * 2, ())
    good = engine.submit([6], [Sampling(temperature=0, max_new_tokens=4, banned_tokens=("a",))], ())
    assert len(written(engine, good)[0][0][0]) == 4
    with pytest.raises(NotFiniteError):
        list(engine.pieces(bad))
    assert engine.idle and engine.pool.held == 0


def test_weights_that_were_changed_forget_what_was_read(by_byte_pairs: LanguageModel) -> None:
    model = LanguageModel(by_byte_pairs.model, by_byte_pairs.tokenizer)
    assert model.engine() is model.engine()
    before = model.engine()
    weight = model.decoder().embedding.weight
    with torch.no_grad():
        weight.add_(0.0)
    assert model.engine() is not before
