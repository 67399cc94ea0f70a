"""What must not reach a route does not; clients that leave or crowd harm nobody; what was accepted is finished."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from rhapsode.cli.main import run
from rhapsode.inference.chat import ChatTemplate, Turn
from rhapsode.inference.sampling import Sampling
from rhapsode.serving.app import Access, application
from rhapsode.serving.guard import LARGEST_BODY
from rhapsode.serving.models import Models
from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import QUEUE, Served, free_port


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", ""])
def test_only_its_own_name_is_answered(served: Served, host: str) -> None:
    answer = httpx.get(f"{served.address}/v1/models", headers={"Host": host})
    assert answer.status_code in (400, 421)


def test_pages_of_other_sites_are_not_answered(served: Served) -> None:
    for origin, status in (("http://evil.example", 403), ("null", 403), (served.address, 200)):
        assert httpx.get(f"{served.address}/v1/models", headers={"Origin": origin}).status_code == status


def test_bodies_are_bounded(served: Served) -> None:
    address = f"{served.address}/v1/completions"
    assert httpx.post(address, content=b" " * (LARGEST_BODY + 1)).status_code == 413

    def endless() -> Any:
        for _ in range(LARGEST_BODY // 65536 + 2):
            yield b" " * 65536

    assert httpx.post(address, content=endless()).status_code == 413
    deep = b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    headers = {"content-type": "application/json"}
    assert httpx.post(address, content=deep, headers=headers).status_code == 400
    for broken in (b"{", b"\xff\xfe", b"", b"[]", b"3"):
        assert httpx.post(address, content=broken, headers=headers).status_code == 400


def test_the_key(served: Served) -> None:
    models = Models({"base": Path(served.base.where)}, device="cpu", memory=1 << 30, queue=QUEUE)
    app = application(models, Access(keys=("other", "secret é")))
    with TestClient(app) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/docs", "/openapi.json", "/nothing"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"Authorization": b"Basic secret \xc3\xa9"}).status_code == 401


PERSON = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 120}, "kind": {"enum": ["a", "b"]}}}
WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"top_k": 30, "repetition_penalty": 1.2},
    {"top_p": 0.9, "presence_penalty": 0.5},
    {"min_p": 0.05, "frequency_penalty": 0.3},
    {"typical_p": 0.9, "logit_bias": {"3": 2.0, "40": -100}},
    {"temperature": 1.5, "stop": ["e t", "th", "ou", "\n"]},
    {"n": 3, "stop": "a"},
    {"json_schema": PERSON},
)


def test_many_clients_some_of_whom_leave(served: Served) -> None:
    """Each answer is that of the request alone; who leaves takes nobody along, and nothing is left to be written."""
    noise = np.random.default_rng(0)
    requests = []
    for seed in range(160):
        fields = dict(WAYS[seed % len(WAYS)])
        prompt = noise.integers(0, 300, int(noise.integers(1, 80))).tolist()
        requests.append((prompt, seed, int(noise.integers(1, 50)), fields, bool(noise.random() < 0.2)))
    template = ChatTemplate(served.tuned)
    talks = [Turn("user", f"Who are you? {number}") for number in range(4)]

    async def ask(client: httpx.AsyncClient, gate: asyncio.Semaphore, request: Any) -> list[str] | None:
        prompt, seed, most, fields, leaves = request
        body = {"seed": seed, "max_tokens": most, **fields}
        schema = body.pop("json_schema", None)
        if schema is None:
            path, body = "/v1/completions", {"model": "base", "prompt": prompt, **body}
        else:
            form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
            turns = [{"role": "user", "content": talks[seed % len(talks)].content}]
            path, body = "/v1/chat/completions", {"model": "tuned", "messages": turns, "response_format": form, **body}
        async with gate:
            if not leaves:
                answer = await client.post(path, json=body)
                assert answer.status_code == 200, answer.text
                choices = answer.json()["choices"]
                return [choice["text"] if schema is None else choice["message"]["content"] for choice in choices]
            async with client.stream("POST", path, json={**body, "stream": True}) as stream:
                async for _ in stream.aiter_lines():
                    return None
        return None

    async def everybody() -> list[list[str] | None]:
        gate = asyncio.Semaphore(64)
        async with httpx.AsyncClient(base_url=served.address, timeout=120) as client:
            return await asyncio.gather(*(ask(client, gate, request) for request in requests))

    answers = asyncio.run(everybody())
    ids = [template.ids([turn]) for turn in talks]
    for (prompt, seed, most, fields, leaves), answer in zip(requests, answers, strict=True):
        if leaves:
            continue
        own = {"temperature": 1.0, "top_p": 1.0, **fields, "max_new_tokens": most}
        count, stop, schema = own.pop("n", 1), own.pop("stop", ()), own.pop("json_schema", None)
        own |= {"stop": (stop,) if isinstance(stop, str) else tuple(stop)}
        own |= {"json_schema": None if schema is None else json.dumps(schema)}
        samplings = [Sampling(**own, seed=seed + row) for row in range(count)]
        model, begin = (served.base, prompt) if schema is None else (served.tuned, ids[seed % len(ids)])
        alone = ["".join(piece.text for piece in model.stream_ids(begin, [sampling])) for sampling in samplings]
        assert answer == alone


def test_a_crowd_is_told_to_come_back(served: Served) -> None:
    body = {"model": "base", "prompt": "a", "max_tokens": 400, "n": 16, "temperature": 5.0}

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.address, timeout=5) as client:
            asked = (client.post("/v1/completions", json=body) for _ in range(2 * QUEUE // 16 + 30))
            return [
                each
                for each in await asyncio.gather(*asked, return_exceptions=True)
                if isinstance(each, httpx.Response)
            ]

    refused = [answer for answer in asyncio.run(crowd()) if answer.status_code == 503]
    assert refused and all(answer.headers["Retry-After"] == "5" for answer in refused)
    began = time.monotonic()  # all of them have gone: there is nothing left to do but this
    answer = httpx.post(f"{served.address}/v1/completions", json={**body, "n": 1, "max_tokens": 2}, timeout=60)
    assert answer.status_code == 200 and time.monotonic() - began < 20


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to wait for")
def test_sigterm_lets_what_was_accepted_end(folders: dict[str, Path]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "rhapsode", "serve", str(folders["base"]), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                assert httpx.get(f"{address}/health").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.1)
        never = {str(id): -100 for id in Tokenizer.load(folders["base"]).special_tokens.values()}
        body = {"model": "base", "prompt": "a", "max_tokens": 400, "stream": True, "logit_bias": never}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: {")
            server.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]" and len(events) == 400  # the first was read before
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no model to serve"),
        (["base", "--host", "0.0.0.0"], "others could use 0.0.0.0 without a key"),
        (["base", "--api-key", "nothing"], "nothing: cannot be read"),
        (["base", "base"], "two models have the name 'base'"),
    ],
)
def test_what_is_not_started(
    folders: dict[str, Path],
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folders["base"].parent)
    monkeypatch.delenv("RHAPSODE_API_KEY", raising=False)
    assert run(["serve", *words, "--port", str(free_port())]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
