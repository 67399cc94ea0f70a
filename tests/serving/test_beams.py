"""The most likely texts from the server are those that the model finds by itself, whole or streamed, for a chat too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from rhapsode.inference.beams import BeamSearch
from rhapsode.inference.chat import ChatTemplate, Turn
from rhapsode.inference.sampling import Sampling

from .conftest import Served
from .test_routes import post, stream

PROMPT = "Before we proceed"
TALK = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)


def test_completions_are_the_most_likely_ones(client: openai.OpenAI, served: Served) -> None:
    expected = served.base.search(PROMPT, beams=4, max_new_tokens=12)
    asked: dict[str, Any] = {"model": "base", "prompt": [PROMPT, "Speak"], "max_tokens": 12, "n": 3}
    answer = client.completions.create(**asked, seed=5, extra_body={"beams": 4, "return_token_ids": True})
    assert [choice.text for choice in answer.choices[:3]] == [each.text for each in expected[:3]]
    other = served.base.search("Speak", beams=4, max_new_tokens=12)
    assert [choice.text for choice in answer.choices[3:]] == [each.text for each in other[:3]]
    assert [choice.model_dump()["token_ids"] for choice in answer.choices[:3]] == [each.ids for each in expected[:3]]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(len(each.ids) for each in (*expected[:3], *other[:3]))
    shorter = served.base.search(PROMPT, beams=4, max_new_tokens=12, length_penalty=-2.0)
    answer = client.completions.create(
        model="base", prompt=PROMPT, max_tokens=12, echo=True, extra_body={"beams": 4, "length_penalty": -2}
    )
    assert [choice.text for choice in answer.choices] == [PROMPT + shorter[0].text]


def test_a_stream_gives_each_text_in_one_piece(served: Served) -> None:
    expected = served.base.search(PROMPT, beams=3, max_new_tokens=9)
    asked: dict[str, Any] = {"model": "base", "prompt": PROMPT, "max_tokens": 9, "beams": 3, "n": 2}
    events = stream(served, "/v1/completions", **asked, stream_options={"include_usage": True})
    choices = [event["choices"][0] for event in events[:-1]]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (number, each.text) for number, each in enumerate(expected[:2])
    ]
    assert events[-1]["usage"]["completion_tokens"] == sum(len(each.ids) for each in expected[:2])


def test_a_chat_is_searched_and_held_to_a_form(client: openai.OpenAI, served: Served) -> None:
    prompt = ChatTemplate(served.tuned).ids([Turn("user", "Who?")])
    search, engine = BeamSearch(5, max_new_tokens=20), served.tuned.engine()
    expected = list(engine.pieces(engine.search(prompt, search, served.tuned.end_ids)))
    asked: dict[str, Any] = {"model": "tuned", "messages": TALK, "max_tokens": 20, "extra_body": {"beams": 5}}
    answer = client.chat.completions.create(**asked, n=5)
    assert [choice.message.content for choice in answer.choices] == [piece.text for piece in expected]
    schema = {"enum": ["yes", "no"]}
    held = client.chat.completions.create(
        **asked, response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    )
    assert held.choices[0].message.content in ('"yes"', '"no"')
    assert held.choices[0].finish_reason == "stop"


def test_searches_beside_drawn_texts(client: openai.OpenAI, served: Served) -> None:
    searched = served.base.search(PROMPT, beams=4, max_new_tokens=30)[0].text
    samplings = [Sampling(temperature=1.0, top_p=1.0, seed=seed, max_new_tokens=30) for seed in range(12)]
    drawn = [served.base.generate(PROMPT, sampling).text for sampling in samplings]

    def ask(number: int) -> str:
        fields: dict[str, Any] = {"extra_body": {"beams": 4}} if number >= len(drawn) else {"seed": number}
        return client.completions.create(model="base", prompt=PROMPT, max_tokens=30, **fields).choices[0].text

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(len(drawn) + 4))) == drawn + [searched] * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.5}, "temperature: is for texts that are drawn"),
        ({"top_p": 0.9}, "top_p: is for texts that are drawn"),
        ({"logit_bias": {"3": 1}}, "logit_bias: is for texts that are drawn"),
        ({"style": "code"}, "style: is for texts that are drawn"),
        ({"n": 5}, "n: 4 beams find no 5 texts"),
        ({"beams": 1, "length_penalty": 1.0}, "length_penalty: is for searches"),
        ({"beams": 17}, "beams"),
        ({"beams": 0}, "beams"),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_what_contradicts_a_search_is_refused(served: Served, route: str, fields: dict[str, Any], message: str) -> None:
    asked = {"model": "base", "prompt": "a"} if route == "completions" else {"model": "tuned", "messages": TALK}
    answer = httpx.post(f"{served.address}/v1/{route}", json={**asked, "beams": 4, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message)
    plain = {name: value for name, value in asked.items() if name != "beams"}
    assert post(served, f"/v1/{route}", **plain, max_tokens=1, temperature=1.0, beams=4, seed=3)["choices"]


@pytest.mark.parametrize("fields", [{"logprobs": 1}, {"logprobs": 0}, {"echo": True, "logprobs": 1}])
def test_a_search_tells_no_likelihoods(served: Served, fields: dict[str, Any]) -> None:
    asked = {"model": "base", "prompt": "a", "beams": 2}
    answer = httpx.post(f"{served.address}/v1/completions", json={**asked, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "logprobs"


def test_fewer_texts_than_were_asked_for(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tuned", "messages": TALK, "n": 3, "beams": 3, "regex": "ab", "max_tokens": 5}
    whole = post(served, "/v1/chat/completions", **asked)["choices"]
    events = stream(served, "/v1/chat/completions", **asked)
    opened = {event["choices"][0]["index"] for event in events}
    ended = {event["choices"][0]["index"] for event in events if event["choices"][0]["finish_reason"]}
    assert 1 <= len(whole) < 3 and opened == ended == set(range(len(whole)))
    assert all(choice["message"]["content"] == "ab" for choice in whole)
