"""The real client library against a real server, each answer against the model asked without one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rhapsode.inference.chat import ChatTemplate, Turn
from rhapsode.inference.sampling import Sampling
from rhapsode.serving.answers import FINISH
from rhapsode.serving.app import Access, application
from rhapsode.serving.limits import Limits
from rhapsode.serving.models import Models
from rhapsode.tokenizer.tokenizer import TURN_END

from .conftest import CONTEXT, Served

TALK: list[Any] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße! <|im_end|>"}]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)


def sampling(**fields: Any) -> Sampling:
    """As the dialect has it where nothing else is said."""
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, **fields})


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["base", "tuned"]


def test_a_conversation(client: openai.OpenAI, served: Served) -> None:
    ids = ChatTemplate(served.tuned).ids([Turn(turn["role"], turn["content"]) for turn in TALK])
    alone = list(served.tuned.stream_ids(ids, [sampling(seed=5, max_new_tokens=30, stop_tokens=(TURN_END,))]))
    expected, reason = "".join(piece.text for piece in alone), FINISH[alone[-1].finish_reason or ""]
    asked: dict[str, Any] = {"model": "tuned", "messages": TALK, "seed": 5, "max_completion_tokens": 30}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == reason
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(alone))
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == expected
    assert parts[-2].choices[0].finish_reason == reason
    assert parts[-1].usage is not None and parts[-1].usage.completion_tokens == len(alone)


def test_how_likely_each_token_was(client: openai.OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(
        model="tuned", messages=TALK, seed=1, max_tokens=12, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs
    assert content is not None and content.content is not None and answer.usage is not None
    assert len(content.content) == answer.usage.completion_tokens
    data = b"".join(bytes(token.bytes or []) for token in content.content)
    assert data.decode("utf-8", "replace") == answer.choices[0].message.content
    for token in content.content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True) and token.logprob <= values[0] + 1e-9


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"age": {"enum": [1, 2]}}, "required": ["age"]}
    schema["additionalProperties"] = False
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="tuned", messages=TALK, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") in ({"age": 1}, {"age": 2})
    assert answer.choices[0].finish_reason == "stop"


def test_several_completions_of_a_text_and_of_ids(client: openai.OpenAI, served: Served) -> None:
    ids = served.base.encode_prompt("Before we")
    alone = served.base.generate_several("Before we", [sampling(seed=seed, max_new_tokens=20) for seed in (7, 8)])
    for prompt in ("Before we", ids):
        answer = client.completions.create(model="base", prompt=prompt, n=2, seed=7, max_tokens=20, logprobs=2)
        assert [choice.text for choice in answer.choices] == [text.text for text in alone]
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.tokens is not None and len(logprobs.tokens) == 20
        for token, offset in zip(logprobs.tokens, logprobs.text_offset or [], strict=True):
            assert answer.choices[0].text.startswith(token, offset) or token.startswith("bytes:\\x")


@settings(max_examples=25)
@given(
    stops=st.lists(st.text("aeiou st", min_size=1, max_size=3), max_size=3), seed=st.integers(0, 99), hot=st.booleans()
)
def test_a_stream_says_what_the_whole_says(client: openai.OpenAI, stops: list[str], seed: int, hot: bool) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": "Speak", "max_tokens": 40, "seed": seed, "stop": stops or None}
    asked["temperature"] = 1.5 if hot else 0.3
    whole = client.completions.create(**asked).choices[0]
    parts = [part.choices[0] for part in client.completions.create(**asked, stream=True)]
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1].finish_reason == whole.finish_reason
    assert not any(stop in whole.text for stop in stops)


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"extra_body": {"best_off": 3}}, "best_off", "best_off"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"n": 1000}, "n", "less than or equal to 16"),
        ({"max_tokens": CONTEXT + 1}, "max_tokens", f"more than the model's context of {CONTEXT}"),
        ({"prompt": [1, 10**6]}, "prompt", "there is no token 1000000"),
        ({"prompt": "e" * 100_000}, None, f"the model's context has {CONTEXT}"),
        ({"prompt": []}, "prompt", "prompt"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "not the id of a token"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"extra_body": {"seed": "1"}}, "seed", "integer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, fields: dict[str, Any], place: str | None, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "base", "prompt": "a", **fields})
    body: Any = caught.value.body
    assert words in body["message"] and (place is None or str(body["param"]).startswith(place))


def test_what_a_model_cannot_do(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'tunde'\\. Did you mean 'tuned'"):
        client.completions.create(model="tunde", prompt="a")
    with pytest.raises(openai.BadRequestError, match="base: is not tuned for chat"):
        client.chat.completions.create(model="base", messages=TALK)
    with pytest.raises(openai.BadRequestError, match="top_logprobs: needs logprobs"):
        client.chat.completions.create(model="tuned", messages=TALK, top_logprobs=2)
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="cannot be held to"):
        client.chat.completions.create(model="tuned", messages=TALK, response_format=form)


def test_other_forms_of_text(client: openai.OpenAI, served: Served) -> None:
    def ask(**fields: Any) -> Any:
        asked: dict[str, Any] = {"model": "base", "prompt": "a", "seed": 2, "max_tokens": 60, "extra_body": fields}
        return client.completions.create(**asked).choices[0]

    assert ask(choice=["yes, my lord", "no"]).text in ("yes, my lord", "no")
    assert re.fullmatch("[A-Z]{3,8}: (Aye|Nay)!", ask(regex="[A-Z]{3,8}: (Aye|Nay)!").text)
    assert ask(grammar='start: "x" "y"').text == "xy"
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [True, None]}}}
    assert json.loads(ask(response_format=form).text) in (True, None)
    first = ask(return_token_ids=True).token_ids
    assert ask(return_token_ids=True, stop_token_ids=first[5:6]).token_ids == first[: first.index(first[5]) + 1]
    for fields, words in (
        ({"regex": "a", "choice": ["b"]}, "regex and choice: a text can be held to one of them only"),
        ({"regex": "("}, "regex: cannot be held to"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids: there is no token 1000000"),
        ({"choice": []}, "choice: List should have at least 1 item"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask(**fields)


def test_an_answer_that_takes_too_long_is_given_up(served: Served) -> None:
    models = Models({"base": Path(served.base.where)}, device="cpu", memory=1 << 30, queue=20)
    with TestClient(application(models, Access(limits=Limits(seconds=0.05)))) as http:
        never = {str(id): -100 for id in served.base.end_ids}
        asked = {"model": "base", "prompt": "a", "max_tokens": 500, "n": 16, "logit_bias": never}
        answer = http.post("/v1/completions", json=asked)
        assert answer.status_code == 504 and "the time for this request is over" in answer.text
        lines = [line for line in http.post("/v1/completions", json=asked | {"stream": True}).iter_lines() if line]
        assert "the time for this request is over" in lines[-1] and "[DONE]" not in lines
