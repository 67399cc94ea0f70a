"""Tools through the real client: a model at random is held to call them in the form of a template by others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from rhapsode.serving.app import Access, application
from rhapsode.serving.models import Models

TEMPLATES = {
    "hermes": "llama_cpp/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "qwen": "llama_cpp/Qwen-Qwen2.5-7B-Instruct.jinja",
}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Praha", "Brno"]}, "days": {"enum": [1, 2, 3]}},
}
CITY |= {"required": ["city", "days"], "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "What it is like.", "parameters": CITY}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}}},
]
TALK: list[Any] = [{"role": "user", "content": "Is it raining in <|im_end|>?"}]


@pytest.fixture(scope="module", params=TEMPLATES)
def client(
    request: pytest.FixtureRequest,
    folders: dict[str, Path],
    shared_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("tools") / "caller"
    shutil.copytree(folders["tuned"], folder)
    template = (shared_data / "chat_templates" / TEMPLATES[request.param]).read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    record = json.loads((folder / "rhapsode.json").read_text(encoding="utf-8"))
    (folder / "rhapsode.json").write_text(json.dumps({**record, "tokenizer": None}), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 2048  # their instructions are long
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    paths = {"caller": folder, "plain": folders["tuned"]}
    with TestClient(application(Models(paths, device="cpu", memory=1 << 30, queue=10), Access())) as http:
        yield openai.OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=http)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "caller", "messages": TALK, "tools": TOOLS, "seed": 1, "max_tokens": 200, **fields}
    return client.chat.completions.create(**asked)


def check(call: Any) -> None:
    """A call of one of the tools, with arguments that its schema allows."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert set(arguments) == {"city", "days"} and arguments["city"] in ("Praha", "Brno") and arguments["days"] <= 3
    else:
        assert call.function.name == "time" and isinstance(arguments, dict)


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_tool_must_be_called(client: openai.OpenAI, choice: str) -> None:
    named: Any = {"type": "function", "function": {"name": choice}}
    for seed in range(5):
        asked: dict[str, Any] = {"seed": seed, "parallel_tool_calls": False}
        asked["tool_choice"] = "required" if choice == "required" else named
        whole = ask(client, **asked).choices[0]
        (call,) = whole.message.tool_calls
        check(call)
        assert whole.finish_reason == "tool_calls" and whole.message.content is None
        assert choice in ("required", call.function.name)
        parts = [part.choices[0] for part in ask(client, **asked, stream=True)]
        (streamed,) = [call for part in parts for call in part.delta.tool_calls or ()]
        assert (streamed.index, streamed.function) == (0, whole_of(streamed.function, call.function))
        assert parts[-1].finish_reason == "tool_calls" and not any(part.delta.content for part in parts)


def whole_of(streamed: Any, whole: Any) -> Any:
    """What a stream says of a function that a whole answer has called."""
    return type(streamed)(name=whole.name, arguments=whole.arguments)


def test_a_result_is_sent_back(client: openai.OpenAI) -> None:
    first = ask(client, tool_choice={"type": "function", "function": {"name": "time"}}).choices[0].message
    back = [*TALK, first.model_dump(), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "noon"}]
    answer = ask(client, messages=back, max_tokens=5)
    assert answer.usage.prompt_tokens > ask(client, max_tokens=5).usage.prompt_tokens
    assert ask(client, messages=back, tool_choice="none", max_tokens=5).choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "plain"}, "writes no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "wether"}}}, "Did you mean 'weather'"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice: there are no tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "cannot be the name of a tool"),
        ({"tools": TOOLS * 2}, "is there twice"),
        ({"response_format": {"type": "json_object"}}, "json_schema: cannot be held to while tools may be called"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"not": {}}}}]},
            "tool x: its parameters cannot be held to",
        ),
        ({"messages": [{"role": "tool", "content": "noon"}]}, "tool_call_id belongs to the role tool"),
        ({"messages": [{"role": "user"}]}, "no content is for the role user"),
        ({"messages": [{"role": "assistant"}]}, "there is neither content nor tool_calls"),
    ],
)
def test_what_is_refused(client: openai.OpenAI, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, **fields)


def test_a_search_calls_the_tool_it_must(client: openai.OpenAI) -> None:
    cities = {"type": "object", "properties": {"city": {"enum": ["Praha", "Brno"]}}, "required": ["city"]}
    tool = {"name": "weather", "parameters": {**cities, "additionalProperties": False}}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    asked: dict[str, Any] = {"tools": [{"type": "function", "function": tool}], "tool_choice": named, "n": 2}
    choices = ask(client, **asked, parallel_tool_calls=False, extra_body={"beams": 4}).choices
    assert [choice.finish_reason for choice in choices] == ["tool_calls", "tool_calls"]
    calls = [call.function for choice in choices for call in choice.message.tool_calls]
    assert {call.name for call in calls} == {"weather"}
    assert {json.loads(call.arguments)["city"] for call in calls} <= {"Praha", "Brno"} and len(calls) == 2
