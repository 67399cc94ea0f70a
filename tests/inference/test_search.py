"""Searches in the engine find what there is to find, whatever is written beside them, and leave nothing behind."""

from __future__ import annotations

import itertools
import math
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError, NotFiniteError, RhapsodeError
from rhapsode.inference import engine as module
from rhapsode.inference.beam_search import beam_search
from rhapsode.inference.beams import BeamSearch, Hypothesis
from rhapsode.inference.engine import Engine, QueueFullError, Request
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.search import Search
from rhapsode.inference.speculation import PromptLookup
from rhapsode.inference.step import TorchStep
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3

from .conftest import CONTEXT, random_decoder
from .test_engine import mixed, new_engine, written


def hypotheses(engine: Engine, *requests: Request) -> list[list[Hypothesis]]:
    for request in requests:
        engine.finish(request)
    assert engine.idle and engine.pool.held == 0
    return [request.hypotheses for request in requests]


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [(each.ids, each.ended) for each in found] == [(each.ids, each.ended) for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)


def read_alone(model: LanguageModel, prompt: list[int], ids: list[int]) -> float:
    """The sum of ln p of `ids` after the prompt, in one reading of all of it."""
    log_p = model.logits(torch.tensor([prompt + ids]))[0, :, : model.tokenizer.vocabulary_size].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
    return float(log_p[places, torch.tensor(ids)].sum())


TINY = 5
"""Tokens in the vocabulary of the models whose every text is looked at."""


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return random_decoder(QWEN3.config(TINY, 16, 2, 2, 1, 8, 24, 40, tied_embeddings=False), 3)


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("prompt", [[3], [1, 4, 2] * 11])
def test_beams_for_every_text_find_the_best_ones_of_all(
    tiny: Decoder, prompt: list[int], length_penalty: float
) -> None:
    """`prompt` with all that follows it lies in one block, or begins in one and goes on in the next."""
    end, longest, every = 2, 4, dict[tuple[int, ...], float]()
    for length in range(1, longest + 1):
        for text in itertools.product(range(TINY), repeat=length):
            if end not in text[:-1] and (text[-1] == end or length == longest):
                with torch.no_grad():
                    log_p = tiny(torch.tensor([[*prompt, *text]]))[0].double().log_softmax(-1)
                every[text] = sum(float(log_p[len(prompt) - 1 + place, id]) for place, id in enumerate(text))
    assert sum(map(math.exp, every.values())) == pytest.approx(1.0, abs=1e-5)
    best = sorted(every, key=lambda text: -every[text] / len(text) ** length_penalty)
    (found,) = beam_search(
        tiny, [prompt], BeamSearch(beams=1000, max_new_tokens=longest, length_penalty=length_penalty), {end}
    )
    assert sorted(tuple(each.ids) for each in found) == sorted(every)
    assert [tuple(each.ids) for each in found[:50]] == best[:50]
    for each in found:
        assert each.score == pytest.approx(every[tuple(each.ids)] / len(each.ids) ** length_penalty, abs=1e-5)
        assert each.ended == (each.ids[-1] == end)


@settings(max_examples=max(5, settings().max_examples // 10), deadline=None, phases=[Phase.generate])
@given(
    prompt=st.lists(st.integers(0, TINY - 1), min_size=1, max_size=2 * BLOCK + 2),
    beams=st.integers(1, 6),
    most=st.integers(1, 2 * BLOCK),
    length_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
    early_stopping=st.sampled_from([False, True, "never"]),
    seed=st.integers(0, 10**6),
)
def test_the_least_cache_is_enough_and_scores_are_those_of_reading_alone(
    prompt: list[int], beams: int, most: int, length_penalty: float, early_stopping: Any, seed: int
) -> None:
    model = random_decoder(QWEN3.config(TINY, 16, 2, 2, 1, 8, 24, 4 * BLOCK, tied_embeddings=False), seed)
    search = BeamSearch(beams, length_penalty, early_stopping, max_new_tokens=most)
    needed = Search(prompt, search, {2}, 4 * BLOCK, TINY).blocks
    step = TorchStep(model, needed)
    step._cache.keys.fill_(math.nan)  # what was never written or copied must not be read
    step._cache.values.fill_(math.nan)
    engine = Engine(step, None, 4 * BLOCK)
    request = engine.search(prompt, search, {2}, vocabulary_size=TINY)
    (found,) = hypotheses(engine, request)
    assert 1 <= len(found) <= beams and len({tuple(each.ids) for each in found}) == len(found)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    for each in found:
        with torch.no_grad():
            log_p = model(torch.tensor([[*prompt, *each.ids]]))[0].log_softmax(-1)
        total = sum(float(log_p[len(prompt) - 1 + place, id]) for place, id in enumerate(each.ids))
        assert each.score == pytest.approx(total / len(each.ids) ** length_penalty, abs=2e-4, rel=1e-4)
    with pytest.raises(InputError, match=f"{beams} beams of {len(prompt) + most} tokens are more than the cache"):
        Engine(TorchStep(model, needed - 1), None, 4 * BLOCK).search(prompt, search, {2}, vocabulary_size=TINY)


PROMPT = "Before we proceed any further, hear me speak. "
SEARCH = BeamSearch(beams=4, max_new_tokens=25)


@pytest.mark.parametrize("blocks", [8, 300])
@pytest.mark.parametrize("speculates", [False, True])
def test_a_search_alone_and_among_31_drawn_texts(
    by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch, blocks: int, speculates: bool
) -> None:
    prompt = by_byte_pairs.tokenizer.encode(PROMPT * 2)[:37]
    engine, _ = new_engine(by_byte_pairs)
    (alone,) = hypotheses(engine, engine.search(prompt, SEARCH, by_byte_pairs.end_ids))
    assert len(alone) == 4
    for each in alone:
        assert each.score * len(each.ids) == pytest.approx(read_alone(by_byte_pairs, prompt, each.ids), abs=1e-4)
    drawn = mixed(by_byte_pairs, 31)
    engine, _ = new_engine(by_byte_pairs)
    expected = written(engine, *[engine.submit(*request, by_byte_pairs.end_ids) for request in drawn])
    monkeypatch.setattr(module, "PROMPT_TOKENS", 100)  # prompts are read in pieces
    engine, step = new_engine(by_byte_pairs, blocks, speculation=PromptLookup() if speculates else None)
    beside = [engine.submit(*request, by_byte_pairs.end_ids) for request in drawn[:16]]
    searches = [engine.search(prompt, SEARCH, by_byte_pairs.end_ids) for _ in range(2)]
    beside += [engine.submit(*request, by_byte_pairs.end_ids) for request in drawn[16:]]
    assert written(engine, *beside) == expected
    for found in hypotheses(engine, *searches):
        assert_same(found, alone)
    if blocks == 300:
        assert max(map(len, step.asked)) > 31
    assert searches[1].cached == BLOCK  # what they have in common is read once


def test_pieces_are_whole_texts_the_best_first(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    prompt = by_byte_pairs.tokenizer.encode(PROMPT)
    request = engine.search(prompt, SEARCH, by_byte_pairs.end_ids, count=2)
    pieces = list(engine.pieces(request))
    assert [(piece.row, list(piece.ids)) for piece in pieces] == [
        (row, each.ids) for row, each in enumerate(request.hypotheses)
    ]
    for piece, each in zip(pieces, request.hypotheses, strict=True):
        shown = [id for id in each.ids if id not in by_byte_pairs.end_ids]
        assert piece.text == by_byte_pairs.tokenizer.decode(shown)
        assert piece.finish_reason == ("end of text" if each.ended else "length")
    (everything,) = hypotheses(engine, engine.search(prompt, SEARCH, by_byte_pairs.end_ids))
    assert request.hypotheses == everything[:2]


def test_full_context_ends_a_search(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    request = engine.search([5] * (CONTEXT - 3), BeamSearch(beams=3), ())
    pieces = list(engine.pieces(request))
    assert {(len(piece.ids), piece.finish_reason) for piece in pieces} == {(4, "context")}


def test_stop_strings_end_texts(by_characters: LanguageModel) -> None:
    """A search with a stop string finds what one without finds, cut where the string is; for it no token ends."""
    engine, _ = new_engine(by_characters)
    prompt, vocabulary = by_characters.tokenizer.encode("ROMEO"), by_characters.tokenizer.vocabulary_size
    search = BeamSearch(beams=5, max_new_tokens=12)
    (plain,) = hypotheses(engine, engine.search(prompt, search, ()))
    stop = plain[0].ids[4]
    name = by_characters.token_text(stop)
    as_token = hypotheses(engine, engine.search(prompt, search, {stop}))
    request = engine.search(prompt, search, (), sampling=Sampling(stop=(name,)))
    pieces = list(engine.pieces(request))
    assert_same(request.hypotheses, as_token[0])
    assert any(each.ended for each in request.hypotheses)
    for piece, each in zip(pieces, request.hypotheses, strict=True):
        assert piece.text == by_characters.tokenizer.decode(each.ids).partition(name)[0]
        assert piece.finish_reason == ("stop" if each.ended else "length")
    # Nearly every token completes one of so many strings: those that do not must still go on.
    names = {id: by_characters.token_text(id) for id in range(vocabulary)}
    ends = {id for id, name in names.items() if len(name) == 1 and name not in "abc"}
    expected = hypotheses(engine, engine.search(prompt, search, ends))
    found = hypotheses(
        engine, engine.search(prompt, search, (), sampling=Sampling(stop=tuple(names[id] for id in ends)))
    )
    assert_same(found[0], expected[0])


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(ab|b[cd]{1,2}|dog)"),
        ("choice", '["yes", "no", "never"]'),
        ("json_schema", '{"enum": [true, false, null]}'),
    ],
)
def test_texts_that_are_held_to_a_form_are_the_most_likely_of_that_form(
    by_characters: LanguageModel, kind: Any, source: str
) -> None:
    engine, _ = new_engine(by_characters)
    prompt = by_characters.tokenizer.encode("Is it")
    every = {
        "regex": [*("ab", "bc", "bd", "dog"), *(f"b{first}{second}" for first in "cd" for second in "cd")],
        "choice": ["yes", "no", "never"],
        "json_schema": ["true", "false", "null"],
    }[kind]
    held = Sampling(choice=tuple(every)) if kind == "choice" else Sampling(**{kind: source})
    request = engine.search(prompt, BeamSearch(beams=20, length_penalty=0.0), (), sampling=held)
    pieces = list(engine.pieces(request))
    # No token ends a text here, so that those which may go on, as "bc", are not found before they cannot.
    ended = [text for text in every if not any(other != text and other.startswith(text) for other in every)]
    found = {piece.text: each for piece, each in zip(pieces, request.hypotheses, strict=True)}
    assert set(ended) <= set(found) <= set(every)
    for text, each in found.items():
        assert each.ended
        ids = by_characters.tokenizer.encode(text)
        assert each.ids == ids and each.score == pytest.approx(read_alone(by_characters, prompt, ids), abs=1e-4)
    assert [piece.finish_reason for piece in pieces] == ["stop"] * len(pieces)


def test_a_form_and_a_stop_string_hold_together(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    request = engine.search(
        by_byte_pairs.tokenizer.encode(PROMPT),
        BeamSearch(beams=4, max_new_tokens=12),
        by_byte_pairs.end_ids,
        sampling=Sampling(regex="[a-z]+", stop=("t",)),
    )
    for piece in engine.pieces(request):
        assert re.fullmatch("[a-su-z]*", piece.text)


def test_who_goes_away_leaves_nothing_behind(by_byte_pairs: LanguageModel) -> None:
    prompt = by_byte_pairs.tokenizer.encode(PROMPT)
    for steps in range(8):
        engine, _ = new_engine(by_byte_pairs)
        drawn = engine.submit(prompt, [Sampling(max_new_tokens=20)], ())
        goes, stays = (engine.search(prompt, SEARCH, ()) for _ in range(2))
        for _ in range(steps):
            engine.step()
        engine.cancel(goes)
        engine.cancel(goes)
        assert goes.hypotheses == [] and len(written(engine, drawn)[0][0][0]) == 20
        (found,) = hypotheses(engine, stays)
        assert len(found) == 4


def test_a_deadline_and_the_queue_hold_for_searches(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs, longest_queue=1)
    late = engine.search([1], SEARCH, (), deadline=time.monotonic() + 0.05)
    engine.step()
    engine.step()
    assert engine.running > 1
    time.sleep(0.06)
    with pytest.raises(RhapsodeError, match="time for this request is over"):
        engine.finish(late)
    assert engine.idle and engine.pool.held == 0
    engine.search([1], SEARCH, ())
    with pytest.raises(QueueFullError, match="1 texts are waiting"):
        engine.search([2], SEARCH, ())


def test_a_search_that_fails_takes_none_with_it(by_byte_pairs: LanguageModel) -> None:
    engine, step = new_engine(by_byte_pairs)
    plain = step.step

    def spoiled(readings: Any) -> list[np.ndarray]:
        answer = plain(readings)
        return [
            logits + (np.nan if reading.past > 2 and len(readings) > 4 else 0.0)
            for reading, logits in zip(readings, answer, strict=True)
        ]

    step.step = spoiled  # type: ignore[assignment]
    step.step.copy = plain.copy  # type: ignore[attr-defined]
    bad = engine.search([5], BeamSearch(beams=5, max_new_tokens=9), ())
    with pytest.raises(NotFiniteError):
        engine.finish(bad)
    assert engine.idle and engine.pool.held == 0
    good = engine.submit([6], [Sampling(temperature=0, max_new_tokens=4)], ())
    assert len(written(engine, good)[0][0][0]) == 4


def test_what_cannot_be_searched_is_refused(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    with pytest.raises(InputError, match="count: 4 beams find no 5 texts"):
        engine.search([1], SEARCH, (), count=5)
    with pytest.raises(InputError, match="min_new_tokens: cannot be kept"):
        engine.search([1], BeamSearch(beams=2, min_new_tokens=3), (), sampling=Sampling(stop=("x",)))
    with pytest.raises(InputError, match="regex: cannot be held to"):
        engine.search([1], SEARCH, (), sampling=Sampling(regex="(a"))
    drawn: dict[str, Any] = {"temperature": 0.7, "top_k": 3, "logit_bias": {"3": 1.0}, "max_new_tokens": 5}
    for name, value in drawn.items():
        with pytest.raises(InputError, match=f"{name}: is for texts that are drawn"):
            engine.search([1], SEARCH, (), sampling=Sampling(**{name: value}))
    with pytest.raises(InputError, match="the prompt has 65 tokens"):
        engine.search([1] * 65, SEARCH, ())
    with pytest.raises(InputError, match="there is no token 100000"):
        engine.search([1], BeamSearch(forbidden_ids=(100000,)), ())
    assert engine.idle


def test_a_text_that_nothing_may_follow_ends_there(by_byte_pairs: LanguageModel) -> None:
    engine, _ = new_engine(by_byte_pairs)
    every = tuple(range(by_byte_pairs.tokenizer.vocabulary_size))
    request = engine.search([4], BeamSearch(beams=2, forbidden_ids=every), ())
    assert list(engine.pieces(request)) == [] and request.hypotheses == [Hypothesis([], 0.0, False)]
    assert engine.idle and engine.pool.held == 0


def test_stop_tokens_end_texts_and_banned_ones_are_never_written(by_byte_pairs: LanguageModel) -> None:
    (name,) = (name for name, id in by_byte_pairs.tokenizer.special_tokens.items() if id in by_byte_pairs.end_ids)
    search = BeamSearch(beams=20, max_new_tokens=6, length_penalty=-2.0)
    ended = by_byte_pairs.search(PROMPT, search)
    banned = by_byte_pairs.search(PROMPT, search, sampling=Sampling(banned_tokens=(name,)))
    assert {each.finish_reason for each in banned} == {"length"}
    engine, _ = new_engine(by_byte_pairs)
    request = engine.search(
        by_byte_pairs.encode_prompt(PROMPT), search, (), sampling=Sampling(stop_tokens=(name,), seed=9)
    )
    pieces = list(engine.pieces(request))
    assert [list(piece.ids) for piece in pieces] == [each.ids for each in ended]
    renamed = {"end of text": "stop", "length": "length"}
    assert [piece.finish_reason for piece in pieces] == [renamed[each.finish_reason] for each in ended]
    assert "end of text" in [each.finish_reason for each in ended]
