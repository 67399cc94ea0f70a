"""Malformed requests by the thousand against `rhapsode serve`: how each is answered, and whether the server stays well.

    python benchmarks/malformed.py [--requests 50000] [--connections 32] [--seed 0]

Mutants of valid bodies for every route (other types, fields gone or unknown, bounds, nesting, odd characters), mutants
of their bytes, of headers, and of HTTP itself; the same seed gives the same requests. Ends with 1 when an answer is
5xx (503 with Retry-After aside), takes longer than 10 seconds or does not come, when the server's memory grows, or
when one of the valid requests among them, one in 1,000, is not answered as the model alone does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.model.decoder import Decoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model
from rhapsode.model.initialization import initialise
from rhapsode.model.model import new_model
from rhapsode.serving.server import listening
from rhapsode.tokenizer.train import train_tokenizer

LONGEST = 10  # seconds for an answer
MOST_GROWTH = 64 << 20  # bytes of memory, from the first tenth of the requests to the last
PATIENCE = 1  # seconds until a client that may not have said all says that it has
EVERY = 1000
VALID = {"model": "base", "prompt": "Once upon", "max_tokens": 8, "temperature": 0}

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": SCHEMA}}
SHAPED = {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.1, "logit_bias": {"3": 2}}
SAMPLED = {"temperature": 0.8, "seed": 3, "n": 2, "stop": ["x"], "stream": True, "return_token_ids": True}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
BODIES: dict[str, dict[str, Any]] = {
    "completions": {**VALID, **SHAPED, **SAMPLED, "logprobs": 2, "echo": True},
    "chat/completions": {
        "model": "tuned", "messages": TALK, "max_tokens": 8, **SHAPED, **SAMPLED, "logprobs": True, "top_logprobs": 2,
        "response_format": FORM, "tools": [TOOL], "tool_choice": "auto", "stream_options": {"include_usage": True},
    },
    "embeddings": {"model": "base", "input": ["a text", "another"], "encoding_format": "base64", "dimensions": 32},
    "tokenize": {"model": "tuned", "messages": TALK},
    "next": {"model": "base", "prompt": "Once", **SHAPED, "temperatures": [0, 0.5, 1], "top": 5, "tokens": [1, 2]},
}  # fmt: skip
PATHS = ("/health", "/metrics", "/v1/models", "/v1/models/base", "/v1/styles", "/openapi.json", "/docs", "/")

ODD_TEXTS = (
    "", " ", "\0", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "\u2028", "\x1b[2J", "e\u0301" * 50, "🦙🏽" * 20,
    "日本語" * 30, "<|im_end|>", "<|endoftext|>",
    "{{ 7 * 7 }}", "{% for x in range(10**9) %}", "../../etc/passwd", "/etc/passwd",
    "file:///etc/passwd", "http://127.0.0.1:1/", "(a{1000}){1000}", "(a+)+$", "((((", "a" * 300, "x" * 20_000,
    "true", "null", "NaN", "0", "-1", "1e400", "__class__", "constructor", "%s%n", "'; drop table",
)  # fmt: skip
ODD_NUMBERS = (
    0, 1, -1, 2, 17, 63, 64, 65, 129, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**400),
    0.0, -0.0, 0.5, 1.0, 1.5, 2.0, -2.5, 99.9, 101.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [[[[]]]], {"a": {"a": {"a": {}}}})


def odd(noise: random.Random) -> Any:
    """A value that few would send."""
    kind = noise.randrange(8)
    if kind < 2:
        return noise.choice(ODD_TEXTS)
    if kind < 4:
        return noise.choice(ODD_NUMBERS)
    if kind < 6:
        return noise.choice(ODD_VALUES)
    if kind == 6:
        one = odd(noise)
        return [one] * min(noise.choice((1, 2, 20, 300, 5000)), 1 + 1_000_000 // len(as_json(one)))
    value: Any = odd(noise)
    for _ in range(noise.choice((1, 5, 50, 190, 1000))):
        value = {"a": value} if noise.random() < 0.5 else [value]
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a body with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def mutated(body: dict[str, Any], noise: random.Random) -> dict[str, Any]:
    """A body of which some things are otherwise."""
    body = json.loads(json.dumps(body))
    for key in [key for key in body if key not in ("model", "prompt", "messages", "input")]:
        if noise.random() < 0.6:  # few fields, so that some of the others are reached
            del body[key]
    all_places = places(body)
    for _ in range(noise.choice((1, 1, 1, 2, 3))):
        container, key = noise.choice(all_places)
        kind = noise.randrange(5)
        there = key in (container if isinstance(container, dict) else range(len(container)))
        if kind < 3 and there:
            container[key] = odd(noise)
        elif kind == 3 and there:
            del container[key]
        elif isinstance(container, dict):
            container[str(noise.choice(ODD_TEXTS))] = odd(noise)
    return body


def as_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode("ascii")
    except RecursionError:
        return b'{"model":' + b"[" * 2000 + b"]" * 2000 + b"}"


def mutated_bytes(data: bytes, noise: random.Random) -> bytes:
    """Some bytes changed, lost, repeated or put in."""
    some = bytearray(data)
    for _ in range(noise.choice((1, 1, 2, 5, 30))):
        place = noise.randrange(len(some) + 1)
        kind = noise.randrange(5)
        if kind == 0:
            some[place : place + 1] = bytes([noise.randrange(256)])
        elif kind == 1:
            del some[place : place + noise.choice((1, 1, 10, 1000))]
        elif kind == 2:
            some[place:place] = noise.choice(
                (b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"\\ud800", b"{", b"]", b"1e999")
            )
        elif kind == 3:
            some[place:place] = some[place : place + 50]
        else:
            some[place:place] = noise.randbytes(noise.choice((1, 4, 100)))
    return bytes(some)


@dataclass
class Asked:
    """What is sent over one connection; `complete`: the server may wait for nothing more of it."""

    kind: str
    data: bytes
    complete: bool = True


def http(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def malformed(noise: random.Random, host: str) -> Asked:
    """One request."""
    route = noise.choice(list(BODIES))
    kind = noise.choices(("fields", "bytes", "headers", "HTTP"), (12, 4, 2, 2))[0]
    body = as_json(mutated(BODIES[route], noise) if kind == "fields" else BODIES[route])
    if kind == "bytes":
        body = mutated_bytes(body, noise)
    headers = [("Host", host), ("Content-Type", "application/json"), ("Connection", "close")]
    headers.append(("Content-Length", str(len(body))))
    method, path = "POST", f"/v1/{route}"
    if kind in ("fields", "bytes"):
        return Asked(kind, http(method, path, headers, body))
    if kind == "headers":
        odd_header = noise.choice((
            ("Host", "evil.example"), ("Host", ""), ("Origin", "http://evil.example"), ("Origin", "null"),
            ("Authorization", "Basic !!!"), ("Authorization", "Bearer " + "x" * 5000), ("Authorization", "\xff"),
            ("Content-Type", "text/plain"), ("Content-Type", ";;;"), ("Content-Type", "application/json; charset=x"),
            ("Content-Length", "0"), ("Content-Length", "-1"), ("Content-Length", "9" * 30), ("Content-Length", "1e3"),
            ("Content-Encoding", "gzip"), ("Transfer-Encoding", "gzip"), ("Transfer-Encoding", "chunked"),
            ("Expect", "200-ok"), ("Upgrade", "websocket"), ("X", "y" * 70_000), ("X-\0", "y"), ("X", "a\r\nY: b"),
            ("Range", "bytes=0-1"), ("Cookie", "a" * 8000), ("X-Forwarded-For", "\x1b[2J"),
        ))  # fmt: skip
        headers = [each for each in headers if each[0] != odd_header[0] or noise.random() < 0.2] + [odd_header]
        if noise.random() < 0.4:
            method = noise.choice(
                ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "GE T", "get", "")
            )
        if noise.random() < 0.4:
            path = noise.choice(
                (*PATHS, "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/" + "a" * 5000, "//x", "*", "x")
            )
        return Asked(kind, http(method, path, headers, body), complete=False)
    return Asked(kind, mutated_bytes(http(method, path, headers, body), noise), complete=False)


@dataclass
class Counts:
    """What came of the requests."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, int, bytes] = (0.0, 0, b"")
    slowest_refusal: float = 0.0

    def fault(self, what: str, asked: Asked) -> None:
        self.faults.append(f"{what}: {asked.data[:300]!r}{'...' if len(asked.data) > 300 else ''}")


async def answer_to(port: int, data: bytes, *, complete: bool) -> bytes:
    """All that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        answer = asyncio.ensure_future(reader.read(-1))
        if not complete and not (await asyncio.wait((answer,), timeout=PATIENCE))[0]:
            writer.write_eof()  # whatever is still waited for does not come
        return await answer
    except ConnectionError:
        return b""
    finally:
        writer.close()


def written(body: bytes) -> int:
    """Tokens in an answer; 0 where nothing was written."""
    if b"data: {" in body[:100]:
        return body.count(b"data: {")
    try:
        return int(json.loads(body)["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0


async def ask(port: int, asked: Asked, counts: Counts) -> None:
    """Send one request and judge its answer."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(3 * LONGEST):
            answer = await answer_to(port, asked.data, complete=asked.complete)
    except (TimeoutError, OSError) as error:
        counts.fault(f"no answer ({type(error).__name__})", asked)
        return
    seconds = time.monotonic() - began
    head, _, body = answer.partition(b"\r\n\r\n")
    tokens = written(body)
    counts.slowest = max(counts.slowest, (seconds, tokens, asked.data[:300]))
    if not tokens:
        counts.slowest_refusal = max(counts.slowest_refusal, seconds)
    if seconds > LONGEST:
        counts.fault(f"an answer of {tokens} tokens after {seconds:.1f} seconds", asked)
    status = head.split(b" ", 2)[1].decode() if head.startswith(b"HTTP/1.1 ") else "none"
    counts.answers[asked.kind, status] += 1
    if status == "none" and asked.complete:
        counts.fault("the connection was ended without an answer", asked)
    later = status == "503" and b"\r\nretry-after:" in head.lower()
    unknown = status == "501" and asked.kind in ("headers", "HTTP")  # a coding of HTTP that nobody has to know
    if status[0] == "5" and not later and not unknown:
        counts.fault(f"{status} {body[:200]!r}", asked)


async def valid(port: int, expected: str, counts: Counts) -> None:
    """A request as it should be."""
    body = json.dumps(VALID).encode()
    headers = [("Host", f"127.0.0.1:{port}"), ("Content-Type", "application/json"), ("Connection", "close")]
    asked = Asked("valid", http("POST", "/v1/completions", [*headers, ("Content-Length", str(len(body)))], body))
    answer = await answer_to(port, asked.data, complete=True)
    try:
        text = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
    except (ValueError, LookupError, TypeError):
        text = None
    counts.answers["valid", "right" if text == expected else "wrong"] += 1
    if text != expected:
        counts.fault(f"{answer[-300:]!r} instead of {expected!r}", asked)


async def crowd(
    port: int, requests: int, connections: int, seed: int, expected: str, memory: Callable[[], int]
) -> Counts:
    """Send all, so many at a time; the memory is looked at after a tenth, and at the end."""
    counts, numbers, sizes = Counts(), iter(range(requests)), []

    async def client() -> None:
        for number in numbers:
            if number % EVERY == 0:
                await valid(port, expected, counts)
            if number == requests // 10:
                sizes.append(memory())
            await ask(port, malformed(random.Random(f"{seed} {number}"), f"127.0.0.1:{port}"), counts)

    await asyncio.gather(*(client() for _ in range(connections)))
    await valid(port, expected, counts)
    sizes.append(memory())
    print(f"memory of the server: {sizes[0] / 1e6:.0f} MB after a tenth of them, {sizes[-1] / 1e6:.0f} MB after all")
    if sizes[-1] - sizes[0] > MOST_GROWTH:
        counts.faults.append(f"the server's memory grew by {(sizes[-1] - sizes[0]) / 1e6:.0f} MB")
    return counts


def models(folder: Path) -> LanguageModel:
    """Writes two tiny models, one of them said to be tuned for chat; returns the other one."""
    tokenizer = train_tokenizer(["Once upon a time there was a text. 日本語 🦙 " * 50], "bpe", 300)
    model = new_model(
        FAMILIES["qwen3"].config(tokenizer.vocabulary_size, 32, 2, 4, 2, 8, 64, 128, tied_embeddings=False)
    )
    assert isinstance(model, Decoder)
    initialise(model, 0)
    for name, objective in (("base", "next token"), ("tuned", "chat")):
        (folder / name).mkdir()
        save_model(folder / name, model, tokenizer, {"objective": objective})
    return load(folder / "base", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as told:
        folder = Path(name)
        expected = models(folder).generate(VALID["prompt"], max_new_tokens=VALID["max_tokens"], temperature=0.0).text
        with listening("127.0.0.1", 0) as socket:
            port = socket.getsockname()[1]
        command = [sys.executable, "-m", "rhapsode", "serve", str(folder / "base"), str(folder / "tuned")]
        command += ["--port", str(port), "--memory", "1", "--log", str(folder / "log")]
        server = subprocess.Popen(command, stderr=told)
        try:
            until(port, server)
            began = time.monotonic()
            memory = psutil.Process(server.pid).memory_info
            counts = asyncio.run(crowd(port, a.requests, a.connections, a.seed, expected, lambda: memory().rss))
            seconds = time.monotonic() - began
            if server.poll() is not None:
                counts.faults.append(f"the server ended with {server.returncode}")
        finally:
            server.terminate()
            server.wait()
        told.seek(0)
        noise = [line for line in told if line.startswith("Traceback")]
    statuses = sorted({status for _, status in counts.answers})
    table = Table(title=f"{a.requests:,} malformed requests, seed {a.seed}: answers")
    for heading in ("", *statuses):
        table.add_column(heading, justify="right")
    for kind in ("fields", "bytes", "headers", "HTTP", "valid"):
        table.add_row(kind, *(f"{counts.answers[kind, status]:,}" for status in statuses))
    Console(width=120).print(table)
    print(f"{seconds:.0f} seconds; {len(noise)} tracebacks of the server")
    seconds, tokens, data = counts.slowest
    print(f"the slowest answer, of {tokens} tokens, came after {seconds:.1f} seconds, to {data!r}")
    print(f"the slowest without a token came after {counts.slowest_refusal:.1f} seconds")
    for fault in counts.faults[:20]:
        print(f"FAULT {fault}")
    print(f"{len(counts.faults)} faults")
    sys.exit(1 if counts.faults or noise else 0)


def until(port: int, server: subprocess.Popen[Any]) -> None:
    """Wait until the server answers."""
    while server.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit(f"the server ended with {server.returncode}")


if __name__ == "__main__":
    main()
