"""Who is answered: keys, hosts, sites, rates and queues; and what is written down of it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import httpx
import pytest

from rhapsode.serving.app import Access
from rhapsode.serving.limits import Limits
from rhapsode.serving.models import Models
from rhapsode.serving.records import Log
from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import QUEUE, running

KEYS = ("first-key", "secret é")
SITE = "https://example.org"


def models(folders: dict[str, Path]) -> Models:
    return Models(folders, device="cpu", memory=1 << 30, queue=QUEUE)


@pytest.fixture(scope="module")
def address(folders: dict[str, Path]) -> Iterator[str]:
    """A server that asks for keys, and lets the pages of one site in."""
    with running(models(folders), Access(origins=frozenset({SITE}), keys=KEYS)) as port:
        yield f"http://127.0.0.1:{port}"


def basic(key: str) -> bytes:
    return b"Basic " + base64.b64encode(b"name:" + key.encode())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["bearer", "Bearer", "basic"])
def test_the_right_key(address: str, key: str, scheme: str) -> None:
    value = basic(key) if scheme == "basic" else f"{scheme} {key}".encode()
    assert httpx.get(f"{address}/v1/models", headers={"Authorization": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"Bearer", b"Bearer wrong", b"first-key", b"Basic", b"Basic !!!", b"Basic \xff\xfe",
        b"Basic " + base64.b64encode(b"first-key"), b"Basic " + base64.b64encode(b"first-key:"),
        basic("wrong"), basic(""),        b"Digest first-key", b"Bearer first-ke", b"Bearer first-key first-key",
        b"Bearer \xff", b"Bearer " + b"x" * 60_000,
        b"Basic " + b"A" * 60_000,
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/openapi.json", "/docs", "/nothing"])
def test_the_wrong_key(address: str, value: bytes | None, path: str) -> None:
    headers = {} if value is None else {"Authorization": value}
    answer = httpx.post(f"{address}{path}", headers=headers, json={"model": "base", "prompt": "a"})
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert "first" not in answer.text and "secret" not in answer.text


def test_pages_of_a_named_site_may_ask(address: str) -> None:
    ask = {"Origin": SITE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization"}
    before = httpx.options(f"{address}/v1/completions", headers=ask)
    assert before.status_code == 200 and before.headers["Access-Control-Allow-Origin"] == SITE
    headers = {"Origin": SITE, "Authorization": "Bearer first-key"}
    answer = httpx.get(f"{address}/v1/models", headers=headers)
    assert answer.status_code == 200 and answer.headers["Access-Control-Allow-Origin"] == SITE
    assert "Access-Control-Allow-Credentials" not in answer.headers
    wrong = httpx.get(f"{address}/v1/models", headers={"Origin": SITE})  # the page can read why
    assert wrong.status_code == 401 and wrong.headers["Access-Control-Allow-Origin"] == SITE


@pytest.mark.parametrize(
    "origin",
    ["https://example.org.evil.example", "http://example.org", "https://example.org:1", "null", "", "https://"],
)
def test_pages_of_other_sites_may_not(address: str, origin: str) -> None:
    headers = {"Origin": origin, "Authorization": "Bearer first-key"}
    answer = httpx.get(f"{address}/v1/models", headers=headers)
    assert answer.status_code == 403 and "Access-Control-Allow-Origin" not in answer.headers
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    before = httpx.options(f"{address}/v1/completions", headers=ask)
    assert before.status_code in (400, 401, 403) and "Access-Control-Allow-Origin" not in before.headers


def test_unless_named_no_site_is_let_in(folders: dict[str, Path]) -> None:
    with running(models(folders)) as port:
        for origin in (SITE, f"http://127.0.0.1:{port}"):
            ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            for answer in (
                httpx.options(f"http://127.0.0.1:{port}/v1/completions", headers=ask),
                httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Origin": origin}),
            ):
                assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{}.evil.example", "0:{}", "[::1]:{}"],
)
def test_a_name_that_is_not_the_servers(folders: dict[str, Path], host: str) -> None:
    with running(models(folders)) as port:
        address = f"http://127.0.0.1:{port}"
        headers = {"Host": host.replace("{}", str(port)), "X-Forwarded-Host": f"127.0.0.1:{port}"}
        for answer in (
            httpx.get(f"{address}/v1/models", headers=headers),
            httpx.get(f"{address}/health", headers=headers | {"Origin": f"http://{headers['Host']}"}),
            httpx.post(f"{address}/v1/completions", headers=headers, json={"model": "base", "prompt": "a"}),
        ):
            assert answer.status_code == 421 and "does not answer to that name" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../base",
        "..%2fbase",
        "%2e%2e%2fbase",
        "/etc/passwd",
        "base%00",
        "%00",
        "base/",
        "BASE",
        "base%20",
        "%ff",
        "b" * 60_000,
    ],
)
def test_no_name_of_a_model_is_a_path(address: str, name: str) -> None:
    headers = {"Authorization": "Bearer first-key"}
    answer = httpx.get(
        httpx.URL(f"{address}/v1/models/x").copy_with(raw_path=f"/v1/models/{name}".encode()), headers=headers
    )
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    for path in ("completions", "chat/completions", "embeddings", "tokenize", "next"):
        more = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
        more = {"input": "a"} if path == "embeddings" else more
        answer = httpx.post(f"{address}/v1/{path}", headers=headers, json={"model": name, **more})
        assert answer.status_code == 404 and "there is no model" in answer.json()["error"]["message"]


def test_a_key_that_asks_too_often(folders: dict[str, Path]) -> None:
    """The others go on; and after the seconds it is told, it is answered again."""
    access = Access(keys=KEYS, limits=Limits(per_minute=30))
    with running(models(folders), access) as port:
        address = f"http://127.0.0.1:{port}/v1/models"
        codes = [httpx.get(address, headers={"Authorization": "Bearer first-key"}).status_code for _ in range(32)]
        assert codes[:30] == [200] * 30 and 429 in codes[30:]
        while (refused := httpx.get(address, headers={"Authorization": "Bearer first-key"})).status_code == 200:
            pass
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(address, headers={"Authorization": basic("secret é")}).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        seconds = int(refused.headers["Retry-After"])
        assert 1 <= seconds <= 60
        time.sleep(seconds)
        assert httpx.get(address, headers={"Authorization": "Bearer first-key"}).status_code == 200


def test_a_key_with_too_many_texts(folders: dict[str, Path]) -> None:
    access = Access(keys=KEYS, limits=Limits(texts=16))
    with running(models(folders), access) as port:
        address = f"http://127.0.0.1:{port}/v1/completions"
        first = {"Authorization": "Bearer first-key"}
        never = {str(id): -100 for id in Tokenizer.load(folders["base"]).special_tokens.values()}
        body = {"model": "base", "prompt": "a", "max_tokens": 450, "n": 16, "stream": True, "logit_bias": never}
        with httpx.stream("POST", address, json=body, headers=first, timeout=60) as stream:
            lines = stream.iter_lines()  # kept: the stream ends with it
            next(lines)
            more = {"model": "base", "prompt": "a", "max_tokens": 1}
            for path, another in (
                ("completions", more),
                ("next", {"model": "base", "prompt": "a"}),
                ("embeddings", {"model": "base", "input": "a"}),
            ):
                refused = httpx.post(f"http://127.0.0.1:{port}/v1/{path}", json=another, headers=first, timeout=60)
                assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0, (path, refused.text)
                assert "of 16 at most" in refused.json()["error"]["message"]
            other = httpx.post(address, json=more, headers={"Authorization": basic("secret é")}, timeout=60)
            assert other.status_code == 200
        for _ in range(100):  # it has left: its texts are no longer written
            again = httpx.post(address, json=more, headers=first, timeout=60)
            if again.status_code == 200:
                break
            time.sleep(0.05)
        assert again.status_code == 200


@pytest.mark.parametrize("texts", [False, True])
def test_one_line_for_each_request(folders: dict[str, Path], tmp_path: Path, texts: bool) -> None:
    """Nothing that was said stands in it unless asked, no key ever; and nothing breaks the line."""
    path = tmp_path / "log"
    said, errors = "Prospero's secret", io.StringIO()
    with redirect_stderr(errors), running(models(folders), Access(keys=KEYS), Log(path, texts=texts)) as port:
        address = f"http://127.0.0.1:{port}"
        key = {"Authorization": "Bearer first-key"}
        answers = [
            httpx.get(f"{address}/health"),
            httpx.post(
                f"{address}/v1/completions", json={"model": "base", "prompt": said, "max_tokens": 5}, headers=key
            ),
            httpx.post(
                f"{address}/v1/chat/completions",
                json={"model": "tuned", "messages": [{"role": "user", "content": said}], "max_tokens": 5},
                headers=key,
            ),
            httpx.post(f"{address}/v1/embeddings", json={"model": "base", "input": said}, headers=key),
            httpx.post(f"{address}/v1/completions", json={"model": "base", "prompt": said, said: 1}, headers=key),
            httpx.post(f"{address}/v1/completions", content=said.encode(), headers=key),
            httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer wrong-key"}),
        ]
        for odd in (
            "%0a%7b%22forged%22%3a1%7d",
            "%1b%5b2J",
            "%c2%85%e2%80%a8%c2%9b2J",
            "%ff%00",
            "%e2%80%ae",
            "a" * 5000,
        ):
            answers.append(httpx.get(f"{address}/{odd}", headers=key))
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["status"] for line in lines] == [answer.status_code for answer in answers]
    assert [line["id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    assert text.isascii() and not any(character < " " for character in text.replace("\n", ""))
    assert all(len(line["path"]) <= 200 for line in lines)
    for secret in (*KEYS, "wrong-key", "Authorization"):
        assert secret not in text
    assert (said in text) == texts
    written: Any = answers[1].json()["choices"][0]["text"]
    assert lines[1].get("answers") == ([written] if texts else None)
    assert errors.getvalue() == ""


def test_a_fault_of_the_server_is_told_once(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a private matter")

    monkeypatch.setattr("rhapsode.serving.looks.tokens", broken)
    path = tmp_path / "log"
    with running(models(folders), log=Log(path)) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/tokenize", json={"model": "base", "prompt": "a"})
    error, line = answer.json()["error"], json.loads(path.read_text())
    assert answer.status_code == line["status"] == 500 and error["type"] == "server_error"
    assert line["id"] in error["message"] and "private" not in answer.text
    assert [line["id"] in record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [True]


def test_a_crowd_of_different_keys_is_not_confused(folders: dict[str, Path]) -> None:
    keys = tuple(f"key {number}" for number in range(50))
    with running(models(folders), Access(keys=keys, limits=Limits(per_minute=2))) as port:
        codes: dict[str, list[int]] = {key: [] for key in keys}

        def ask(key: str) -> None:
            for _ in range(3):
                answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {key}"})
                codes[key].append(answer.status_code)

        threads = [threading.Thread(target=ask, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(found[:2] == [200, 200] and found[2] in (200, 429) for found in codes.values())
    assert sum(found[2] == 429 for found in codes.values()) > 40
