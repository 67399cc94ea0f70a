"""What comes over a connection before it is a request, or beside one: each is answered or ended, and others go on."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from rhapsode.serving import guard
from rhapsode.serving.models import Models

from .conftest import QUEUE, Served, running

HEADER, BODY, READ = 1.0, 1.5, 1.5  # seconds, in place of a minute


@pytest.fixture(scope="module")
def port(folders: dict[str, Path]) -> Iterator[int]:
    """A server of little patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "HEADER_SECONDS", HEADER)
        patch.setattr(guard, "BODY_SECONDS", BODY)
        patch.setattr(guard, "READ_SECONDS", READ)
        with running(Models(folders, device="cpu", memory=1 << 30, queue=QUEUE)) as port:
            yield port


def connection(port: int, timeout: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def request(port: int, path: str, body: bytes = b"", *headers: str, method: str = "", version: str = "1.1") -> bytes:
    """A request as it goes over a connection."""
    lines = [f"{method or ('POST' if body else 'GET')} {path} HTTP/{version}", f"Host: 127.0.0.1:{port}", *headers]
    if body:
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def all_of(stream: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    parts = []
    while True:
        try:
            part = stream.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def said(port: int, data: bytes) -> bytes:
    """The answer to what is sent, up to the end of the connection."""
    with connection(port) as stream:
        with suppress(ConnectionError):  # it was ended before all was sent: there may be an answer still
            stream.sendall(data)
        return all_of(stream)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def alive(port: int) -> None:
    body = {"model": "base", "prompt": "a", "max_tokens": 1}
    assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\r\n\r\n\r\n", 400),
        (b"\0" * 1000 + b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/x.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 20_000 + b"\r\n", 431),
        (b"a" * 200_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_http(port: int, data: bytes, code: int) -> None:
    answer = said(port, data)
    if not answer:  # what is still on its way when a connection ends can cost the answer
        assert code == 431
    else:
        assert status(answer) == code, answer
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower() and b"application/json" in head
        assert json.loads(body)["error"]["message"].startswith(("this is no HTTP request: ", "the headers are larger"))
    alive(port)


def test_lengths_that_contradict_each_other(port: int) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    hidden = request(port, "/v1/models")
    for lengths in (
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ):
        answer = said(port, f"{head}{lengths}\r\n\r\n0\r\n\r\n".encode() + hidden)
        assert status(answer) == 400 and b"give one of them" in answer and answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"f" * 30 + b"\r\n", b"5\r\nabcdefgh\r\n", b"1" * 100_000])
def test_chunks_that_are_none(port: int, chunk: bytes) -> None:
    head = request(port, "/v1/completions", b"", "Transfer-Encoding: chunked", method="POST")
    answer = said(port, head + chunk)
    assert not answer or status(answer) in (400, 413, 431)
    alive(port)


def test_after_a_refusal_nonsense_is_no_second_answer(port: int, caplog: pytest.LogCaptureFixture) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connection(port) as stream:
        stream.sendall(head.encode())
        time.sleep(0.2)
        stream.sendall(b"nonsense\r\n\r\n")
        answer = all_of(stream)
    assert status(answer) == 421 and answer.count(b"HTTP/1.1 ") == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "STRANGE", "GET", "POST"]
)
@pytest.mark.parametrize(
    "path",
    ["/health", "/metrics", "/v1/models", "/v1/models/base", "/v1/completions", "/v1/next", "/openapi.json", "/", "*"],
)
def test_methods(port: int, method: str, path: str) -> None:
    answer = said(port, request(port, path, b"", "Connection: close", method=method))
    assert status(answer) in (200, 400, 404, 405), answer
    if method == "HEAD":
        assert answer.endswith(b"\r\n\r\n")


def test_old_and_other_protocols(port: int) -> None:
    assert status(said(port, request(port, "/health", version="1.0"))) == 200
    assert status(said(port, b"GET /v1/models HTTP/1.0\r\n\r\n")) == 421
    body = b'{"model": "base", "prompt": "a", "max_tokens": 1, "stream": true}'
    streamed = said(port, request(port, "/v1/completions", body, version="1.0"))
    assert status(streamed) == 200 and b"chunked" not in streamed and streamed.endswith(b"data: [DONE]\n\n")
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
    answer = said(port, request(port, "/v1/completions", b"", "Connection: Upgrade, close", *upgrade))
    assert status(answer) == 405
    answer = said(port, request(port, "/health", b"", "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c"))
    assert status(answer) == 200


def test_a_client_that_asks_before_it_sends(port: int) -> None:
    body = b'{"model": "base", "prompt": "a", "max_tokens": 1}'
    head, body = request(port, "/v1/completions", body, "Expect: 100-continue", "Connection: close").split(b"\r\n\r\n")
    with connection(port) as stream:
        stream.sendall(head + b"\r\n\r\n")
        assert stream.recv(1000).startswith(b"HTTP/1.1 100 ")
        stream.sendall(body)
        assert status(all_of(stream)) == 200
    wrong = head.replace(b"127.0.0.1", b"evil.example") + b"\r\n\r\n"  # it need not send what will not be read
    with connection(port) as stream:
        stream.sendall(wrong)
        assert stream.recv(1000).startswith(b"HTTP/1.1 421 ")


def test_requests_one_after_another_at_once(port: int) -> None:
    body = b'{"model": "base", "prompt": "a", "max_tokens": 3, "temperature": 0}'
    first, second = request(port, "/v1/completions", body), request(port, "/v1/nothing")
    answer = said(port, first + second + first + request(port, "/health", b"", "Connection: close"))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [
        b"200",
        b"404",
        b"200",
        b"200",
    ]


@pytest.mark.parametrize(
    ("beginning", "drop", "seconds"),
    [
        (b"", b"", HEADER),
        (b"G", b"", HEADER),
        (b"GET /health HTTP/1.1\r\n", b"X: a\r\n", HEADER),
        (b"POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Length: 4000\r\n\r\n", b" ", BODY),
        (b"POST /v1/completions HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", BODY),
        (b"POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 4000\r\n\r\n", b" ", 2 * HEADER),
    ],
    ids=["nothing", "a letter", "headers", "body", "chunks", "after a refusal"],
)
def test_a_slow_client(port: int, beginning: bytes, drop: bytes, seconds: float) -> None:
    """However it drips, its connection ends when its time is over."""
    began = time.monotonic()
    with connection(port, timeout=0.1) as stream:
        stream.sendall(beginning.replace(b"{}", f"127.0.0.1:{port}".encode()))
        answer = b""
        while time.monotonic() - began < seconds + 15:
            try:
                stream.sendall(drop)
                part = stream.recv(1000)
                if not part:
                    break
                answer += part
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("the connection was kept")
    assert time.monotonic() - began >= seconds - 0.1
    if seconds == BODY:
        assert status(answer) == 408 and b"the body took longer than 1.5 seconds" in answer
    alive(port)


def test_a_client_that_never_reads(port: int) -> None:
    """It loses its connection and its texts; those of others are written meanwhile, and memory stays as it was."""
    body = {
        "model": "base",
        "prompt": "a",
        "max_tokens": 500,
        "n": 4,
        "stream": True,
        "logprobs": 20,
        "temperature": 2,
    }
    metrics = f"http://127.0.0.1:{port}/metrics"
    alive(port)
    before = psutil.Process().memory_info().rss
    with ExitStack() as stack:
        for _ in range(3):
            stream = stack.enter_context(socket.socket())
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stream.connect(("127.0.0.1", port))
            stream.sendall(request(port, "/v1/completions", json.dumps(body).encode()))
        time.sleep(0.5)
        began = time.monotonic()
        alive(port)
        assert time.monotonic() - began < 10
        assert psutil.Process().memory_info().rss - before < 200 << 20
        while 'rhapsode_texts_running{model="base"} 0.0' not in httpx.get(metrics, timeout=20).text:
            assert time.monotonic() - began < 60
            time.sleep(0.2)


def test_a_client_that_has_said_all(port: int) -> None:
    """Half a connection is as good as none: it is ended, not kept."""
    body = b'{"model": "base", "prompt": "a", "max_tokens": 400, "n": 16}'
    with connection(port) as stream:
        stream.sendall(request(port, "/v1/completions", body))
        stream.shutdown(socket.SHUT_WR)
        all_of(stream)
    with connection(port) as stream:
        stream.sendall(b"POST /v1/completions HTTP/1.1\r\n")
        stream.shutdown(socket.SHUT_WR)
        all_of(stream)
    alive(port)


def test_idle_connections_hold_up_nobody(served: Served) -> None:
    port = int(served.address.rpartition(":")[2])
    with ExitStack() as stack:
        for number in range(500):
            stream = stack.enter_context(connection(port))
            if number % 2:
                stream.sendall(b"GET /health HTTP/1.1\r\nX-")
        began = time.monotonic()
        for _ in range(5):
            alive(port)
        assert time.monotonic() - began < 10


def test_more_connections_than_there_may_be(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_CONNECTIONS", 10)
    with running(Models(folders, device="cpu", memory=1 << 30, queue=QUEUE)) as port:
        with ExitStack() as stack:
            streams = [stack.enter_context(connection(port)) for _ in range(15)]
            answers = []
            for stream in streams:
                stream.sendall(request(port, "/v1/models"))
                answers.append(stream.recv(10_000) if len(answers) < 10 else all_of(stream))
            assert [status(answer) for answer in answers] == [200] * 10 + [503] * 5
            assert all(b"retry-after: 5\r\n" in answer and b"too many connections" in answer for answer in answers[10:])
            more = [stack.enter_context(connection(port)) for _ in range(30)]
            assert sum(all_of(stream) == b"" for stream in more[15:]) == 15
        time.sleep(0.2)
        alive(port)


def test_refusals_are_cheap(served: Served) -> None:
    """Thirty-two clients that send nonsense do not keep a thirty-third from its answer."""
    port = int(served.address.rpartition(":")[2])
    stop = threading.Event()

    def nonsense() -> None:
        while not stop.is_set():
            said(port, b"nonsense\r\n\r\n")

    threads = [threading.Thread(target=nonsense) for _ in range(32)]
    for thread in threads:
        thread.start()
    try:
        began = time.monotonic()
        alive(port)
        assert time.monotonic() - began < 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()
