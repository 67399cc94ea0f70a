"""Bodies that are wrong: each is refused with what is wrong, at once, and the server goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import Served

LONGEST = 4  # seconds that a refusal may take on a busy machine
ROUTES = ("completions", "chat/completions", "embeddings", "tokenize", "next")


def post(served: Served, route: str, content: Any, kind: str = "application/json") -> httpx.Response:
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    address = f"{served.address}/v1/{route}"
    return httpx.post(address, content=content, headers={"Content-Type": kind}, timeout=60)


def refused(answer: httpx.Response, words: str, place: str | None = None) -> None:
    """A 400 in the dialect's form, which says so much, of this field."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert words in error["message"] and len(error["message"]) < 1000
    assert error["param"] == place


def alive(served: Served) -> None:
    body = {"model": "base", "prompt": "a", "max_tokens": 2, "temperature": 0}
    answer = post(served, "completions", body)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == served.base.generate("a", max_new_tokens=2, temperature=0.0).text


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "must be a JSON object"),
        (b"{", "is not JSON in UTF-8: EOF while parsing"),
        (b"[]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"model": "base"}{}', "trailing characters"),
        (b'{"model": "\xff"}', "is not JSON in UTF-8"),
        (b'{"model": "\xed\xa0\x80"}', "is not JSON in UTF-8"),
        ('{"model": "base"}'.encode("utf-16"), "is not JSON in UTF-8"),
        ('{"model": "base"}'.encode("utf-32"), "is not JSON in UTF-8"),
        (b'{"model": "base"}\0', "trailing characters"),
        (b'{"model": "ba\0se"}', "control character"),
        (b'{"model": "\\ud800"}', "is not JSON in UTF-8"),
        (b'{"model": "base", "user": "\\udfff"}', "is not JSON in UTF-8"),
        (b'{"model": "base", "\\ud800": 1}', "is not JSON in UTF-8"),
        (b'{"model": "base", "model": "tuned"}', "has 'model' twice"),
        (b'{"model": "base", "x": {"a": 1, "b": 2, "a": 1}}', "has 'a' twice"),
        (b'{"temperature": NaN}', "is not JSON in UTF-8"),
        (b'{"temperature": -Infinity}', "is not JSON in UTF-8"),
        (b'{"max_tokens": 1' + b"0" * 5000 + b"}", "number out of range"),
        (b'{"model":' + b"[" * 90_000 + b"]" * 90_000 + b"}", "recursion limit"),
        (b'{"model":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "more than 100,000 lists and objects"),
        (b'{"model":' * 90_000 + b"1" + b"}" * 90_000, "recursion limit"),
        (b'{"model": "' + b'\\"' * 2_000_000, "EOF while parsing"),
        (b'{"model": "' + b"[" * 2_000_000, "EOF while parsing"),
        (b'{"model": "base",' + b",".join(b'"x%d": 1' % x for x in range(200_000)) + b"}", "more than 10,000 names"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_json(served: Served, route: str, body: bytes, words: str) -> None:
    began = time.monotonic()
    refused(post(served, route, body), words)
    assert time.monotonic() - began < LONGEST


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "a/b; c=x", "multipart/form-data"]
)
def test_other_kinds_of_content(served: Served, kind: str) -> None:
    refused(post(served, "completions", {"model": "base", "prompt": "a"}, kind), "sent as application/json")


def test_brackets_in_a_text_are_no_lists(served: Served) -> None:
    text = '[{"\\' * 60_000
    assert post(served, "tokenize", {"model": "base", "prompt": text}).json()["count"] > 60_000


def test_a_byte_order_mark_is_no_content(served: Served) -> None:
    body = b'\xef\xbb\xbf{"model": "base", "prompt": "a", "max_tokens": 1}'
    assert post(served, "completions", body).status_code == 200


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("completions", "prompt"),
        ("completions", "stop"),
        ("embeddings", "input"),
        ("next", "prompt"),
        ("next", "temperatures"),
        ("next", "tokens"),
        ("chat/completions", "messages"),
        ("chat/completions", "tools"),
    ],
)
@pytest.mark.parametrize("element", ["null", "[]", "{}", '"a"', "1.5", "-1", "[null]"])
def test_a_million_elements(served: Served, route: str, field: str, element: str) -> None:
    """Of a million mistakes one is told, and nobody waits for the others to be found."""
    body = {"model": "tuned", "messages": [{"role": "user", "content": "a"}]} if "chat" in route else {"model": "base"}
    text = json.dumps(body | {"prompt": "a"} if route in ("completions", "next") else body)
    text = json.dumps({name: value for name, value in json.loads(text).items() if name != field})
    elements = ",".join([element] * (4_000_000 // (len(element) + 1)))
    began = time.monotonic()
    answer = post(served, route, f'{text[:-1]},"{field}":[{elements}]}}'.encode())
    assert answer.status_code == 400 and len(answer.content) < 1000, answer.text[:300]
    error = answer.json()["error"]
    if element[0] in "[{":
        assert "more than 100,000 lists and objects" in error["message"]
    else:
        assert error["param"].startswith(field)
    assert time.monotonic() - began < LONGEST


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1e400}, "max_tokens"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty"),
        ({"logit_bias": {"1": 10**400}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"999999999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {str(id): 1 for id in range(5000)}}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 201}, "stop"),
        ({"prompt": [2**31]}, "prompt.0"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [[1], ["a"]]}, "prompt.1.0"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"x" * 1_000_000: 1}, "x" * 200),
        ({"__class__": 1}, "__class__"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bounds_of_fields(served: Served, fields: dict[str, Any], place: str) -> None:
    text = json.dumps({"model": "base", "prompt": "a", **fields}).replace("Infinity", "1e400")
    answer = post(served, "completions", text.encode())
    assert answer.status_code == 400 and len(answer.content) < 1000, answer.text[:300]
    assert str(answer.json()["error"]["param"]).startswith(place)
    alive(served)


@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("completions", {"prompt": "a text", "max_tokens": 1}),
        ("next", {"prompt": "a text"}),
        ("tokenize", {"prompt": "a text"}),
        ("embeddings", {"input": "a text"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a text"}], "max_tokens": 1}),
    ],
)
def test_no_text_is_encoded_in_the_loop(
    served: Served, route: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one takes seconds, in which nobody else would be answered."""
    threads: list[str] = []
    encode = Tokenizer.encode_batch

    def seen(tokenizer: Tokenizer, texts: Sequence[str]) -> Any:
        threads.append(threading.current_thread().name)
        return encode(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", seen)
    assert post(served, route, {"model": "tuned", **more}).status_code == 200
    assert threads and all(name.startswith("asyncio_") for name in threads)
