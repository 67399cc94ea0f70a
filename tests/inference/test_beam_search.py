"""Greedy and beam search of every family against `transformers.generate`, and against every text there is."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.inference.beam_search import beam_search
from rhapsode.inference.beams import BeamSearch
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder_decoder import EncoderDecoder

from ..model.families import DECODERS, ENCODER_DECODERS, Case
from ..model.test_families import ours_of, reference

NEW_TOKENS = 100
CONTEXT = 128
VOCABULARY = 40
ROUNDING = 1e-5
"""Of a sum of a hundred numbers that are differences of greater ones, in fp32, relative to it."""
FIRST_ID = 4
"""Of the tokens in the texts; those before have a meaning in some families."""

EXAMPLES = settings(deadline=None, max_examples=max(3, settings().max_examples // 30), phases=[Phase.generate])
"""Three; thirty with `--hypothesis-profile thorough`. Making a failing example smaller would take minutes."""

SEARCHES = st.builds(
    BeamSearch,
    beams=st.integers(2, 5),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    early_stopping=st.sampled_from([False, True, "never"]),
    max_new_tokens=st.just(NEW_TOKENS),
)


def enlarged(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    """The values with room for the text."""
    context = "n_positions" if case.family == "gpt2" else "max_position_embeddings"
    return values | {"vocab_size": VOCABULARY} | ({} if case.family == "t5" else {context: CONTEXT})


def texts_of(lengths: list[int], seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_ID, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]


def theirs_of(model: Any, texts: list[list[int]], search: BeamSearch, end: int | None, **options: Any) -> Any:
    """For each text, transformers' hypotheses, the best first, and their scores."""
    decoder_only = not model.config.is_encoder_decoder
    time = max(map(len, texts))
    ids = torch.zeros(len(texts), time, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(time - len(text), None) if decoder_only else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    model.generation_config.eos_token_id = end
    # With a window of one token, transformers' cache forgets nothing, and its text is not that without a cache; with
    # more layers in T5's decoder than in its encoder, it has not enough of them.
    towers = (getattr(model.config, "num_layers", None), getattr(model.config, "num_decoder_layers", None))
    cached = getattr(model.config, "sliding_window", None) != 1 and (towers[1] or 0) <= (towers[0] or 0)
    options |= {} if search.beams == 1 else {"length_penalty": search.length_penalty}
    options |= {} if search.beams == 1 else {"early_stopping": search.early_stopping}
    answer = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=search.max_new_tokens,
        num_beams=search.beams,
        num_return_sequences=search.beams,
        do_sample=False,
        pad_token_id=0,
        use_cache=cached,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    skipped = time if decoder_only else 1
    written = [text[skipped:] for text in answer.sequences.tolist()]
    ended = [text[: text.index(end) + 1] if end in text else text for text in written]
    scores = answer.sequences_scores.tolist() if search.beams > 1 else [None] * len(ended)
    pairs = list(zip(ended, scores, strict=True))
    return [pairs[start : start + search.beams] for start in range(0, len(pairs), search.beams)]


def same(ours: Any, theirs: Any) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        assert [hypothesis.ids for hypothesis in found] == [ids for ids, _ in expected]
        for hypothesis, (_, score) in zip(found, expected, strict=True):
            assert score is None or hypothesis.score == pytest.approx(score, abs=1e-4, rel=1e-4)


@torch.no_grad()
def log_probability(model: Any, text: list[int], new: list[int]) -> float:
    """The sum of ln p that transformers' model gives to `new` after (or for) `text`, in fp64 and without a cache."""
    double = copy.deepcopy(model).double()
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id]
        logits = double(torch.tensor([text]), decoder_input_ids=torch.tensor([start + new[:-1]])).logits
    else:
        logits = double(torch.tensor([text + new[:-1]])).logits
    log_p = logits[0, -len(new) :].log_softmax(dim=-1)  # (new, vocabulary)
    return float(log_p.gather(1, torch.tensor(new)[:, None]).sum())


def same_but_for_ties(ours: Any, theirs: Any, model: Any, texts: list[list[int]], search: BeamSearch) -> None:
    """Texts that repeat themselves are as likely with a repetition moved: there, rounding alone ranks them."""
    for text, found, expected in zip(texts, ours, theirs, strict=True):
        for hypothesis, (ids, score) in zip(found, expected, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-4, rel=1e-4)
            if hypothesis.ids != ids:
                totals = [log_probability(model, text, new) for new in (hypothesis.ids, ids)]
                worths = [
                    total / len(new) ** search.length_penalty
                    for total, new in zip(totals, (hypothesis.ids, ids), strict=True)
                ]
                assert worths[0] == pytest.approx(worths[1], rel=ROUNDING)


@pytest.mark.parametrize("case", (*DECODERS, *ENCODER_DECODERS), ids=str)
@EXAMPLES
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    search=SEARCHES,
    place=st.integers(2, 60),
    seed=st.integers(0, 10**6),
)
def test_equals_transformers_for_100_tokens(
    case: Case, data: st.DataObject, lengths: list[int], search: BeamSearch, place: int, seed: int
) -> None:
    """The end of text is a token that the greedy text of the first prompt really holds, at about `place`."""
    theirs = reference(case, enlarged(case, data.draw(case.draw())), seed)
    ours = ours_of(theirs)
    assert isinstance(ours, Decoder | EncoderDecoder)
    texts = texts_of(lengths, seed)
    greedy = BeamSearch(max_new_tokens=NEW_TOKENS)
    endless = beam_search(ours, texts, greedy, ())
    same(endless, theirs_of(theirs, texts, greedy, None))
    assert all(len(found.ids) == NEW_TOKENS and not found.ended for (found,) in endless)
    end = endless[0][0].ids[place]
    ended = beam_search(ours, texts, greedy, {end})
    assert ended[0][0].ended and ended[0][0].ids == endless[0][0].ids[: endless[0][0].ids.index(end) + 1]
    theirs_found = theirs_of(theirs, texts, search, end)
    same_but_for_ties(beam_search(ours, texts, search, {end}), theirs_found, theirs, texts, search)


@pytest.fixture(scope="module")
def pair() -> tuple[EncoderDecoder, Any]:
    """A Marian model, ours and theirs."""
    values = {"vocab_size": VOCABULARY, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2}
    values |= {"max_position_embeddings": CONTEXT, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    values |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "scale_embedding": True}
    values |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": None}
    marian = next(case for case in ENCODER_DECODERS if case.family == "marian")
    theirs = reference(marian, values | {"decoder_start_token_id": 1}, 7)
    ours = ours_of(theirs)
    assert isinstance(ours, EncoderDecoder)
    return ours, theirs


RULES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"min_new_tokens": 9}, {"min_new_tokens": 9}),
    ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
    ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    ({"forced_first_id": 17}, {"forced_bos_token_id": 17}),
    ({"forced_last_ids": (5,)}, {"forced_eos_token_id": 5}),
    ({"forbidden_ids": tuple(range(4, 30))}, {"bad_words_ids": [[id] for id in range(4, 30)]}),
    ({"forbidden_ids": (22, 25, 29)}, {"suppress_tokens": [22, 25, 29]}),
    (
        {"forbidden_ids": tuple(range(4, 30)), "renormalise": True},
        {"bad_words_ids": [[id] for id in range(4, 30)], "renormalize_logits": True},
    ),
]


@pytest.mark.parametrize(("fields", "options"), RULES, ids="-".join)
@pytest.mark.parametrize("beams", [1, 4])
def test_rules_equal_those_of_transformers(
    pair: tuple[EncoderDecoder, Any], beams: int, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    ours, theirs = pair
    texts = texts_of([3, 9, 5], seed=1)
    plainly = BeamSearch(beams=beams, max_new_tokens=12, length_penalty=0.0)
    search = dataclasses.replace(plainly, **fields)
    end = (29 if beams == 1 else 22) if "min_new_tokens" in fields else 5  # this model likes to write 29 and 22
    plain = beam_search(ours, texts, plainly, {end})
    found = beam_search(ours, texts, search, {end})
    same(found, theirs_of(theirs, texts, search, end, **options))
    assert found != plain  # the rule does something here


def every_text(model: EncoderDecoder, source: list[int], end: int, longest: int) -> dict[tuple[int, ...], float]:
    """ln p of every text of at most `longest` tokens, read whole and without a cache."""
    start, size = model.config.start_id, model.config.vocabulary_size
    assert start is not None
    texts = []
    for length in range(1, longest + 1):
        for text in itertools.product(range(size), repeat=length):
            if end not in text[:-1] and (text[-1] == end or length == longest):
                texts.append(text)
    found = {}
    with torch.no_grad():
        memory = model.encode(torch.tensor([source]))
        for _, some in itertools.groupby(texts, key=len):
            rows = torch.tensor(list(some))  # (texts, time)
            ids = torch.cat((torch.full((len(rows), 1), start), rows[:, :-1]), dim=1)
            log_p = model(ids, memory.expand(len(rows), -1, -1)).double().log_softmax(-1)
            sums = log_p.gather(2, rows[:, :, None])[:, :, 0].sum(1)
            found |= dict(zip(map(tuple, rows.tolist()), sums.tolist(), strict=True))
    assert sum(math.exp(value) for value in found.values()) == pytest.approx(1.0)
    return found


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
def test_beams_for_every_text_find_the_best_ones_of_all(length_penalty: float) -> None:
    marian = next(case for case in ENCODER_DECODERS if case.family == "marian")
    values = {"vocab_size": 6, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1}
    values |= {"decoder_attention_heads": 1, "encoder_ffn_dim": 9, "decoder_ffn_dim": 9, "pad_token_id": 1}
    values |= {"decoder_start_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}
    model = ours_of(reference(marian, values | {"max_position_embeddings": 12}, 3))
    assert isinstance(model, EncoderDecoder)
    source = [4, 5, 3]
    every = every_text(model, source, 2, 4)
    search = BeamSearch(beams=1000, max_new_tokens=4, length_penalty=length_penalty)
    (found,) = beam_search(model, [source], search, {2})
    best = sorted(every, key=lambda text: -every[text] / len(text) ** length_penalty)[:50]
    assert [tuple(hypothesis.ids) for hypothesis in found[:50]] == best
    for hypothesis in found[:50]:
        worth = every[tuple(hypothesis.ids)] / len(hypothesis.ids) ** length_penalty
        assert hypothesis.score == pytest.approx(worth, abs=1e-5)
        assert hypothesis.ended == (hypothesis.ids[-1] == 2)


def test_a_text_is_found_alike_alone_and_among_others(pair: tuple[EncoderDecoder, Any]) -> None:
    ours, _ = pair
    texts = texts_of([1, 20, 7, 7], seed=5)
    search = BeamSearch(beams=3, max_new_tokens=30)
    together = beam_search(ours, texts, search, {5, 6})
    for text, found in zip(texts, together, strict=True):
        (alone,) = beam_search(ours, [text], search, {5, 6})
        assert [hypothesis.ids for hypothesis in alone] == [hypothesis.ids for hypothesis in found]


def test_the_context_bounds_what_is_written(pair: tuple[EncoderDecoder, Any]) -> None:
    ours, _ = pair
    ((found,),) = beam_search(ours, [[4]], BeamSearch(), ())
    assert len(found.ids) == CONTEXT and not found.ended  # the last token need not be read
    ((end,),) = beam_search(ours, [[4]], BeamSearch(max_new_tokens=1, forbidden_ids=tuple(range(4, 40))), {2})
    assert len(end.ids) == 1


def test_a_text_that_nothing_may_follow_ends_there(pair: tuple[EncoderDecoder, Any]) -> None:
    ours, _ = pair
    every = tuple(range(VOCABULARY))
    ((found,),) = beam_search(ours, [[4]], BeamSearch(forbidden_ids=every), ())
    assert (found.ids, found.ended) == ([], False)


def test_what_cannot_be_searched_is_refused(pair: tuple[EncoderDecoder, Any]) -> None:
    ours, _ = pair
    with pytest.raises(InputError, match="a text of 0 tokens is not between 1 and the context of 128"):
        beam_search(ours, [[4], []], BeamSearch(), ())
    with pytest.raises(InputError, match="a text of 129 tokens is not between"):
        beam_search(ours, [[4] * 129], BeamSearch(), ())
    with pytest.raises(InputError, match="beam search: there is no token 40"):
        beam_search(ours, [[4]], BeamSearch(forbidden_ids=(40,)), ())
    for fields in ({"beams": 0}, {"length_penalty": math.inf}, {"early_stopping": "now"}, {"forbidden_ids": (-1,)}):
        with pytest.raises(InputError, match=f"{next(iter(fields))}: value"):
            BeamSearch(**fields)


def test_a_model_of_no_numbers_is_refused(pair: tuple[EncoderDecoder, Any]) -> None:
    config = pair[0].config
    broken = EncoderDecoder(config)
    with torch.no_grad():
        broken.embedding.weight.fill_(math.nan)
    with pytest.raises(NotFiniteError, match="not numbers"):
        beam_search(broken, [[4]], BeamSearch(), ())


def test_greedy_search_tells_tokens_apart_after_a_long_text(
    pair: tuple[EncoderDecoder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of log probabilities round at some 3e-5 by then."""
    ours, _ = pair
    logits = torch.zeros(VOCABULARY).index_fill(0, torch.tensor([23]), 2e-6)
    monkeypatch.setattr(ours.head, "forward", lambda hidden: logits.expand(len(hidden), -1))
    ((found,),) = beam_search(ours, [[4]], BeamSearch(max_new_tokens=NEW_TOKENS), ())
    assert found.ids == [23] * NEW_TOKENS
