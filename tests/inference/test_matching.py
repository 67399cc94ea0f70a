"""Texts are what they must be, whatever the model would rather write; what cannot be held to is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError, RhapsodeError
from rhapsode.inference.constraint import Constraint
from rhapsode.inference.engine import Engine
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.matching import LONGEST, Constraints
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.speculation import DraftModel, PromptLookup, Speculation
from rhapsode.inference.step import TorchStep

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(10))
def test_a_regular_expression_is_matched_to_the_last_character(by_byte_pairs: LanguageModel, seed: int) -> None:
    pattern = "[A-Z][a-zé]{2,6}: (Aye|Nay|日本)[!?]"
    text = by_byte_pairs.generate("", regex=pattern, temperature=1.5, top_p=1.0, seed=seed)
    assert re.fullmatch(pattern, text.text) and text.finish_reason in ("stop", "end of text")


@pytest.mark.parametrize("seed", range(5))
def test_json_of_a_schema(by_byte_pairs: LanguageModel, seed: int) -> None:
    written = by_byte_pairs.generate("", json_schema=json.dumps(SCHEMA), temperature=2.0, top_p=1.0, seed=seed)
    assert written.finish_reason in ("stop", "end of text")
    value = json.loads(written.text)
    assert set(value) == {"name", "age", "tags"}
    assert len(value["name"]) <= 3 and 0 <= value["age"] <= 99
    assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"a", "b", None}
    assert json.dumps(value, ensure_ascii=False) == written.text or "\\" in written.text


@settings(max_examples=40)
@given(choices=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_one_of_some_strings(by_byte_pairs: LanguageModel, choices: list[str], seed: int) -> None:
    constraints = Constraints(by_byte_pairs.tokenizer, sorted(by_byte_pairs.end_ids))
    matcher = constraints.matcher(Constraint("choice", json.dumps(choices)))
    noise, data = np.random.default_rng(seed), b""
    size = by_byte_pairs.tokenizer.vocabulary_size
    while not matcher.complete:
        token = int(noise.choice(np.flatnonzero(matcher.allowed(size))))
        if token in by_byte_pairs.end_ids:
            break
        matcher.push(token)
        data += by_byte_pairs.tokenizer.id_to_bytes(token)
    assert data.decode("utf-8") in choices


def test_a_grammar(by_byte_pairs: LanguageModel) -> None:
    grammar = 'start: item ("," item)*\nitem: /[0-9]/ | "(" start ")"'
    for seed in range(5):
        sampling = Sampling(grammar=grammar, temperature=1.0, seed=seed, max_new_tokens=40)
        text = by_byte_pairs.generate("", sampling)
        depth = np.cumsum([(letter == "(") - (letter == ")") for letter in text.text])
        assert re.fullmatch(r"[0-9(),]+", text.text) and depth.min() >= 0
        if text.finish_reason != "length":
            assert depth[-1] == 0 and not re.search(r"\(\)|,,|\(,|,\)|[0-9]\(|,$", text.text)


@pytest.mark.parametrize("kind", ["prompt", "itself"])
def test_speculation_does_not_change_it(by_byte_pairs: LanguageModel, kind: str) -> None:
    guesses: dict[str, Speculation] = {"prompt": PromptLookup(), "itself": DraftModel(by_byte_pairs.decoder())}
    fields: list[dict[str, Any]] = [
        {"regex": "(ab|ba|[0-9]{3} )+"},
        {"json_schema": json.dumps(SCHEMA)},
        {"choice": ("aaa", "aab")},
    ]
    samplings = [Sampling(seed=seed, max_new_tokens=30, **limit) for seed in range(4) for limit in fields]
    texts = []
    for speculation in (None, guesses[kind]):
        step = TorchStep(by_byte_pairs.decoder(), 60)
        engine = Engine(step, by_byte_pairs.tokenizer, by_byte_pairs.config.context_length, speculation=speculation)
        request = engine.submit([5, 6, 7], samplings, by_byte_pairs.end_ids)
        for _ in engine.pieces(request):
            pass
        texts.append([text.ids for text in request.texts])
    assert texts[0] == texts[1]
    assert request.guessed > 0


def test_without_a_token_that_ends_texts(by_byte_pairs: LanguageModel) -> None:
    constraints = Constraints(by_byte_pairs.tokenizer, [])
    matcher = constraints.matcher(Constraint("regex", "!+"))
    size = by_byte_pairs.tokenizer.vocabulary_size
    (mark,) = by_byte_pairs.tokenizer.encode("!")
    assert np.flatnonzero(matcher.allowed(size)).tolist() == [mark]
    matcher.push(mark)
    assert np.flatnonzero(matcher.allowed(size)).tolist() == [mark] and not matcher.complete
    with_end = Constraints(by_byte_pairs.tokenizer, sorted(by_byte_pairs.end_ids)).matcher(Constraint("regex", "!+"))
    with_end.push(mark)
    assert set(np.flatnonzero(with_end.allowed(size)).tolist()) == {mark, *by_byte_pairs.end_ids}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){40}", "(((a{1,999}){1,999}){1,999}b|c){999}", "(.*a.*b.*c.*d){9}"])
def test_what_is_complicated_is_held_to_or_given_up_soon(by_byte_pairs: LanguageModel, pattern: str) -> None:
    try:
        text = by_byte_pairs.generate("", regex=pattern, temperature=2.0, top_p=1.0, max_new_tokens=60).text
    except RhapsodeError as error:
        assert "cannot be held to" in error.message
    else:
        assert set(text) <= set("abc") or "." in pattern


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"regex": "(a"}, "regex: cannot be held to: .*regex parse error"),
        ({"regex": "(?=a)b"}, "regex: cannot be held to"),
        ({"regex": "a" * (LONGEST + 1)}, "regex: is longer than 100,000 characters"),
        ({"grammar": 'start: "a" b'}, 'grammar: cannot be held to: .*unknown name: "b"'),
        ({"json_schema": "{"}, "json_schema: is not JSON"),
        ({"json_schema": "[1]"}, "is not a schema, which is an object"),
        ({"json_schema": '{"type": "objekt"}'}, "json_schema: cannot be held to: Invalid type: objekt"),
        ({"json_schema": '{"not": {}}'}, 'json_schema: cannot be held to: Unimplemented keys: \\["not"\\]'),
        ({"json_schema": '{"$ref": "http://example.org/x"}'}, "json_schema: cannot be held to"),
        ({"json_schema": '{"allOf":' * 5000 + "{}" + "}" * 5000}, "json_schema: is not JSON|cannot be held to"),
        ({"choice": ("",)}, "choice: needs at least one string, and none that is empty"),
        ({"choice": ("a",), "regex": "a"}, "regex and choice: a text can be held to one of them only"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_held_to_is_refused(by_byte_pairs: LanguageModel, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        next(by_byte_pairs.stream("a", **fields))
    assert by_byte_pairs.engine().idle
