"""A server under load: many clients, of whom some leave midway; each answer beside what the model writes alone.

    python benchmarks/serving.py [--requests 2000] [--connections 64] [--model runs/mytext]

`rhapsode serve` runs in a process of its own and is asked over loopback: completions and chat, streamed and whole, of
texts and of ids, with all ways to draw. Then the same load meets a server that is told to end (SIGTERM) after a third
of it. Ends with 1 if an answer is lost, or another than alone, if the memory grows, or if the server does not end well.
Without --model a small one with random weights is made, tuned for chat by name, so that it is asked for everything.
Where rounding decides between two tokens (ties.py), another text counts as a near tie.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table
from ties import NEAR, gap_after

import rhapsode
from rhapsode.base.machine import prepare, processor, threads
from rhapsode.corpus.examples import example
from rhapsode.inference.chat import ChatTemplate, Turn, is_tuned_for_chat
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.step import CONTEXTS
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import save_model
from rhapsode.model.model import new_model
from rhapsode.serving.answers import FINISH
from rhapsode.tokenizer.train import train_tokenizer

LEAVING = 0.2
"""The share of clients that do not stay for all of their answer."""
LONGEST_PROMPT = 1000
GROWTH = 0.05
"""By no more than this share of its memory after the warm-up may the server grow."""
OUTCOMES = ("complete", "left", "told", "refused", "lost")
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
BETWEEN_LOOKS = 1.0  # seconds
SURELY_ACCEPTED = 2.0  # seconds before SIGTERM: what was sent by then must be finished
SECONDS_TO_END = 120
SECONDS_TO_SETTLE = 5
ENGINE = ("rhapsode_texts_waiting", "rhapsode_texts_running", "rhapsode_cache_used")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 1.3},
    "top-k": {"top_k": 20},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "typical": {"typical_p": 0.9},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "logit bias": {"logit_bias": {"3": 2.0, "40": -100}},
    "stop strings": {"stop": ["e t", "th", "\n", "ou"]},
    "three texts": {"n": 3},
    "JSON schema": {"json_schema": SCHEMA},
    "regex": {"regex": "[A-Z]{3,8}: (Aye|Nay)!"},
    "choice": {"choice": ["yes, my lord", "yes, my lady", "no"]},
}
"""How texts are drawn, as fields of a request; what a JSON schema becomes there is seen to below."""


@dataclass(frozen=True)
class Asked:
    """A request, and what is needed to write its texts without a server."""

    way: str
    path: str
    body: dict[str, Any]
    turns: tuple[Turn, ...]
    """Of a chat; empty for a completion."""
    samplings: list[Sampling]
    leaves: float | None
    """When the client goes: after so many tokens of a stream, or so many hundredths of a second; None if it stays."""


@dataclass
class Heard:
    """What became of a request."""

    asked: Asked
    sent: float
    outcome: str = "lost"
    """complete; left (the client did); told (of an error); refused (no answer was begun, or a 503); or lost."""
    why: str = ""
    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """Of a stream: when each token came."""
    tokens: int = 0


def made(folder: Path) -> Path:
    """A small model with random weights that says it is tuned for chat."""
    text = example("shakespeare").read_text(encoding="utf-8") + "Žluťoučký kůň 🦙🏽 日本語 " * 50
    tokenizer = train_tokenizer([text], "bpe", 512)
    model = new_model(QWEN3.config(tokenizer.vocabulary_size, 64, 4, 4, 2, 16, 192, 512, tied_embeddings=False))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=noise)
    folder.mkdir()
    save_model(folder, model, tokenizer, {"objective": "chat"})
    return folder


def requests(model: LanguageModel, name: str, count: int, seed: int, leaving: float = LEAVING) -> list[Asked]:
    """Requests of all kinds, many of which begin alike."""
    noise, plays = np.random.default_rng(seed), example("shakespeare").read_text(encoding="utf-8")
    chats, context = is_tuned_for_chat(model), model.config.context_length
    ways = list(WAYS)

    def words(most: int) -> str:
        first = int(noise.integers(0, len(plays) - most))
        return plays[first : first + int(noise.integers(1, most))] + str(noise.choice(["", "", "🦙🏽 é", "<|im_end|>"]))

    def ids_of(prompt: str, most: int) -> list[int]:
        return model.tokenizer.encode(prompt)[:most]

    shared = [words(300) for _ in range(4)]
    asked = []
    for number in range(count):
        way = ways[number % len(ways)]
        fields = dict(WAYS[way])
        most = int(noise.integers(1, 48 if noise.random() < 0.9 else 160))
        body: dict[str, Any] = {"model": name, "seed": number, "max_tokens": most, "return_token_ids": True}
        turns: tuple[Turn, ...] = ()
        schema = fields.pop("json_schema", None)
        if schema is not None:
            form = {"name": "answer", "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if chats and noise.random() < 0.25:
            turns = (Turn("system", f"Answer {number % 3} times."), Turn("user", words(60)))
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in turns]
        else:
            begin = shared[number % len(shared)] if noise.random() < 0.5 else ""
            longest = min(LONGEST_PROMPT, context - most)
            ids = ids_of(begin + words(2000 if noise.random() < 0.1 else 80), longest)
            text = model.tokenizer.decode(ids)
            as_text = noise.random() < 0.5 and len(model.encode_prompt(text)) <= longest
            body["prompt"] = text if as_text else ids
        body |= fields
        if noise.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        own = {key: value for key, value in fields.items() if key not in ("n", "stop")}
        settings = {"temperature": 1.0, "top_p": 1.0, **own} | {
            name: tuple(fields.get(name, ())) for name in ("stop", "choice")
        }
        samplings = [
            Sampling(
                **settings,
                seed=number + row,
                max_new_tokens=most,
                json_schema=None if schema is None else json.dumps(schema),
            )
            for row in range(fields.get("n", 1))
        ]
        path = "/v1/chat/completions" if turns else "/v1/completions"
        leaves = float(noise.integers(1, 30)) if noise.random() < leaving else None
        asked.append(Asked(way, path, body, turns, samplings, leaves))
    return asked


class Server:
    """`rhapsode serve` in a process of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address, self._said = f"http://127.0.0.1:{port}", folder / "said.txt"
        words = ["serve", str(model), "--port", str(port), "--device", "cpu", "--log", str(folder / "log.jsonl")]
        with self._said.open("w", encoding="utf-8") as file:
            self.process = psutil.Popen([sys.executable, "-m", "rhapsode", *words], stderr=file)
        while not self.answers():
            if self.process.poll() is not None:
                sys.exit(f"the server did not start:\n{self.said()}")
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)

    def engine(self) -> dict[str, float]:
        """What its /metrics says of the engine, by name."""
        text = httpx.get(f"{self.address}/metrics", timeout=60).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {sample.name: sample.value for sample in samples if sample.name in ENGINE}

    def said(self) -> str:
        """What it has written to standard error, its greeting aside."""
        lines = self._said.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.startswith("Serving "))


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[Server]:
    server = Server(model, folder)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


async def ask(client: httpx.AsyncClient, asked: Asked) -> Heard:
    """Send one request, and read its answer as far as the client stays."""
    count = len(asked.samplings)
    heard = Heard(
        asked, time.perf_counter(), texts=[""] * count, ids=[[] for _ in range(count)], reasons=[None] * count
    )
    streamed = "stream" in asked.body
    seconds = None if streamed or asked.leaves is None else asked.leaves / 100
    begun = False
    try:
        async with asyncio.timeout(seconds), client.stream("POST", asked.path, json=asked.body) as answer:
            begun = True
            if answer.status_code != 200:
                told = json.loads(await answer.aread())["error"]["message"]
                heard.outcome, heard.why = "refused" if answer.status_code == 503 else "told", told
            elif streamed:
                await read_events(answer, heard)
            else:
                whole = json.loads(await answer.aread())
                for choice in whole["choices"]:
                    heard.texts[choice["index"]] = choice["message"]["content"] if asked.turns else choice["text"]
                    heard.ids[choice["index"]] = choice["token_ids"]
                    heard.reasons[choice["index"]] = choice["finish_reason"]
                heard.tokens = whole["usage"]["completion_tokens"]
                heard.outcome = "complete"
    except TimeoutError:
        heard.outcome = "left"
    except httpx.TransportError as error:
        heard.outcome, heard.why = "lost" if begun else "refused", repr(error)
    return heard


async def read_events(answer: httpx.Response, heard: Heard) -> None:
    asked = heard.asked
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            heard.outcome = "complete"
            return
        if not line:
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            heard.outcome, heard.why = "told", event["error"]["message"]
            return
        for choice in event["choices"]:
            if "role" in choice.get("delta", {}):  # a chat's first event, before any token
                continue
            heard.arrivals.append(time.perf_counter())
            heard.tokens += 1
            heard.texts[choice["index"]] += choice["delta"].get("content", "") if asked.turns else choice["text"]
            heard.ids[choice["index"]] += choice["token_ids"]
            heard.reasons[choice["index"]] = choice["finish_reason"]
        if asked.leaves is not None and heard.tokens >= asked.leaves:
            heard.outcome = "left"
            return


async def load(
    server: Server, asked: Sequence[Asked], connections: int, heard: list[Heard], each: Callable[[], None]
) -> None:
    """Ask for everything, each connection one request after another.

    Args:
        heard: is filled with what became of the requests, in the order in which they ended.
        each: called after each of them.
    """
    left = iter(asked)

    async def connection() -> None:
        async with httpx.AsyncClient(base_url=server.address, timeout=600) as client:
            for one in left:
                heard.append(await ask(client, one))
                each()

    await asyncio.gather(*(connection() for _ in range(connections)))


@dataclass
class Load:
    """What a load came to."""

    heard: list[Heard] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Requests that had ended, and the server's resident bytes, at each look."""
    engine: list[dict[str, float]] = field(default_factory=list)
    """What it says of its engine, at each look."""
    seconds: float = 0.0
    signalled: float | None = None
    """When the server was told to end."""


def under_load(server: Server, asked: Sequence[Asked], connections: int, end_after: int | None = None) -> Load:
    """Put a load on a server, looking at its memory; after `end_after` requests it is told to end."""
    found, began = Load(), time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("requests", total=len(asked))

        def each() -> None:
            progress.advance(task)
            if len(found.heard) == end_after:
                found.signalled = time.perf_counter()
                server.process.send_signal(signal.SIGTERM)

        async def looks() -> None:
            while True:
                found.memory.append((len(found.heard), server.memory()))
                found.engine.append(await asyncio.to_thread(server.engine))
                await asyncio.sleep(BETWEEN_LOOKS)

        async def both() -> None:
            looking = None if end_after else asyncio.create_task(looks())
            await load(server, asked, connections, found.heard, each)
            if looking is not None:
                looking.cancel()
                found.memory.append((len(found.heard), server.memory()))

        asyncio.run(both())
    found.seconds = time.perf_counter() - began
    return found


def settled(server: Server) -> dict[str, float]:
    """What its engine holds when the last client has gone and it had the time to notice."""
    end = time.perf_counter() + SECONDS_TO_SETTLE
    while any((engine := server.engine()).values()) and time.perf_counter() < end:
        time.sleep(0.1)
    return engine


def warm_up(server: Server, model: LanguageModel, name: str, connections: int, count: int) -> None:
    """Have the server take the memory it may take: texts as long as its cache, then some of the load's kind."""
    noise, context = np.random.default_rng(1), model.config.context_length
    size = model.tokenizer.vocabulary_size
    body = {"model": name, "max_tokens": 1, "return_token_ids": True}
    full = [
        Asked("", "/v1/completions", {**body, "prompt": ids}, (), [Sampling()], None)
        for ids in noise.integers(0, size, (CONTEXTS, context)).tolist()
    ]
    for asked in (full, requests(model, name, count, seed=1, leaving=0.0)):
        for heard in under_load(server, asked, connections).heard:
            if heard.outcome != "complete":
                sys.exit(f"the warm-up failed: {heard.outcome}, {heard.why}")


@dataclass
class Alone:
    """The texts of a request, each written with nothing beside it."""

    prompt: list[int]
    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def written_alone(model: LanguageModel, asked: Sequence[Asked]) -> dict[int, Alone]:
    """The texts of each request, by its seed."""
    template = cache(lambda turns: ChatTemplate(model).ids(turns))
    found: dict[int, Alone] = {}
    for one in track(asked, "the same alone", transient=True):
        prompt = template(one.turns) if one.turns else one.body["prompt"]
        alone = Alone(model.encode_prompt(prompt) if isinstance(prompt, str) else prompt)
        for sampling in one.samplings:
            pieces = list(model.stream_ids(alone.prompt, [sampling]))
            alone.texts.append("".join(piece.text for piece in pieces))
            alone.ids.append([piece.token for piece in pieces])
            assert pieces[-1].finish_reason is not None
            alone.reasons.append(FINISH[pieces[-1].finish_reason])
        found[one.body["seed"]] = alone
    return found


def beside(model: LanguageModel, heard: Heard, alone: Alone) -> str:
    """What a client got, beside what is written alone: "same", as far as it got it, "near tie" or "otherwise"."""
    rows = []
    for row, (ids, whole) in enumerate(zip(heard.ids, alone.ids, strict=True)):
        parted = next((place for place, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), None)
        if parted is not None:
            distance = gap_after(model, alone.prompt, ids[:parted], heard.asked.samplings[row], ids[parted])
            rows.append("near tie" if distance <= NEAR else "otherwise")
            continue
        same = ids == whole[: len(ids)] and alone.texts[row].startswith(heard.texts[row])
        if heard.outcome == "complete":
            same = (ids, heard.texts[row], heard.reasons[row]) == (whole, alone.texts[row], alone.reasons[row])
        rows.append("same" if same else "otherwise")
    return next((told for told in ("otherwise", "near tie") if told in rows), "same")


def table_of_outcomes(loads: dict[str, Load]) -> Table:
    table = Table(title="what became of the requests")
    for heading in ("", *OUTCOMES):
        table.add_column(heading, justify="right")
    for name, found in loads.items():
        counts = Counter(one.outcome for one in found.heard)
        table.add_row(name, *(f"{counts[outcome]:,}" for outcome in OUTCOMES))
    return table


def table_of_answers(model: LanguageModel, heard: Sequence[Heard], alone: dict[int, Alone]) -> tuple[Table, int]:
    """The answers beside those alone, and how many are otherwise."""
    table = Table(title="the answers, beside each alone")
    for heading in ("", "whole", "in part", "same", "near tie", "otherwise"):
        table.add_column(heading, justify="right")
    counts: dict[str, Counter[str]] = {way: Counter() for way in (*WAYS, "all")}
    for one in heard:
        told = beside(model, one, alone[one.asked.body["seed"]])
        size = "whole" if one.outcome == "complete" else "in part" if any(one.ids) else "nothing"
        for way in (one.asked.way, "all") if size != "nothing" else ():
            counts[way].update((told, size))
    for way, count in counts.items():
        cells = [count[name] for name in ("whole", "in part", "same", "near tie", "otherwise")]
        table.add_row(way, *(f"{cell:,}" for cell in cells), end_section=way == list(WAYS)[-1])
    return table, counts["all"]["otherwise"]


def table_of_times(found: Load) -> Table:
    streams = [one for one in found.heard if one.arrivals]
    first = [1e3 * (one.arrivals[0] - one.sent) for one in streams]
    # Of streams of one text: in others, tokens of several come at once.
    single = [one for one in streams if len(one.asked.samplings) == 1 and len(one.arrivals) > 1]
    between = [1e3 * (one.arrivals[-1] - one.arrivals[0]) / (len(one.arrivals) - 1) for one in single]
    tokens = sum(one.tokens for one in found.heard)
    table = Table(title=f"{len(found.heard) / found.seconds:,.1f} requests/s, {tokens / found.seconds:,.0f} tokens/s")
    for heading in ("", "streams", "p50", "p90", "p99", "most"):
        table.add_column(heading, justify="right")
    for name, values in (("time to first token", first), ("time per token", between)):
        cells = [*np.percentile(values, (50, 90, 99)).tolist(), max(values)]
        table.add_row(name, f"{len(values):,}", *(f"{cell:,.1f} ms" for cell in cells))
    return table


def table_of_memory(found: Load) -> tuple[Table, float]:
    """The server's memory in the course of the load, and by what share it grew."""
    table = Table(title="memory of the server")
    for heading in ("requests", "", "resident", "since the warm-up"):
        table.add_column(heading, justify="right")
    first = found.memory[0][1]
    table.add_row("0", "0 %", f"{first / 1e6:,.1f} MB", "")
    size = first
    for share in SHARES:
        count, size = next(look for look in found.memory if look[0] >= share * len(found.heard))
        table.add_row(f"{count:,}", f"{share:.0%}", f"{size / 1e6:,.1f} MB", f"{(size - first) / 1e6:+,.1f} MB")
    return table, size / first - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--model", type=Path, help="a run or model folder")
    a = parser.parse_args()
    prepare("cpu")
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rhapsode-serving-") as temporary:
        folder = a.model or made(Path(temporary) / "made")
        model = rhapsode.load(folder, "cpu")
        with serving(folder, Path(temporary)) as server:
            name = httpx.get(f"{server.address}/v1/models").json()["data"][0]["id"]
            asked = requests(model, name, a.requests, seed=0)
            warm_up(server, model, name, a.connections, max(1, a.requests // 10))
            whole = under_load(server, asked, a.connections)
            after = settled(server)
            faults += [f"the server said: {server.said()}"] if server.said() else []
        with serving(folder, Path(temporary)) as server:
            ended = under_load(server, asked, a.connections, end_after=a.requests // 3)
            try:
                code: int | str = server.process.wait(timeout=SECONDS_TO_END)
            except psutil.TimeoutExpired:
                code = "none"
            assert ended.signalled is not None
            seconds = time.perf_counter() - ended.signalled
            faults += [f"the server that ended said: {server.said()}"] if server.said() else []
        alone = written_alone(model, asked)
    loads = {"the load": whole, f"SIGTERM after {a.requests // 3:,}": ended}
    answers, wrong = table_of_answers(model, [*whole.heard, *ended.heard], alone)
    memory, growth = table_of_memory(whole)
    print(f"{processor()}, {threads()} threads; {model.config.parameters / 1e6:.2f} million parameters")
    print(f"{a.requests:,} requests from {a.connections} connections")
    for table in (table_of_outcomes(loads), answers, table_of_times(whole), memory):
        Console().print(table)
    for measure in ENGINE:
        most = max(look[measure] for look in whole.engine)
        print(f"{measure}: {most:g} at most, {after[measure]:g} after the load")
    before = [one for one in ended.heard if one.sent < ended.signalled - SURELY_ACCEPTED]
    since = Counter(one.outcome for one in ended.heard if one.sent > ended.signalled)
    print(f"sent after SIGTERM: {', '.join(f'{count:,} {outcome}' for outcome, count in since.items())}")
    print(f"the process ended {seconds:.1f} s after SIGTERM, exit code {code}")
    failed = [one.why for one in whole.heard if one.outcome not in ("complete", "left")]
    failed += [one.why for one in before if one.outcome not in ("complete", "left")]
    if failed:
        faults.append(f"{len(failed)} requests failed, as by: {failed[0]}")
    if any(one.outcome == "lost" for one in ended.heard):
        faults.append("answers were begun before SIGTERM, and neither finished nor told of")
    if len(whole.heard) + len(ended.heard) != 2 * a.requests:
        faults.append("there are requests of which nothing was heard")
    if wrong:
        faults.append(f"{wrong} answers are not what is written alone")
    if growth > GROWTH:
        faults.append(f"the memory grew by {growth:.1%}")
    if any(after.values()):
        faults.append("after the load there are texts left to be written")
    if code != 0:
        faults.append(f"the exit code after SIGTERM is {code}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
