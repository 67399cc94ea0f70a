"""More models than there is memory for: loaded when asked for, put away when unused, and the same afterwards."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rhapsode.exchange.opening import outline
from rhapsode.serving import models as serving_models
from rhapsode.serving.models import Models
from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import QUEUE, running

NAMES = ("one", "two", "three")


@pytest.fixture
def paths(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(folders["base"], tmp_path / name)) for name in NAMES}


@pytest.fixture
def address(paths: dict[str, Path]) -> Iterator[str]:
    """A server with memory for two: eight times the weights, of which each cache takes a quarter."""
    memory = 8 * outline(paths["one"]).weights
    with running(Models(paths, device="cpu", memory=memory, queue=QUEUE)) as port:
        yield f"http://127.0.0.1:{port}"


def ask(address: str, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "Speak", "max_tokens": 8, "temperature": 0, **more}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=60)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


def loaded(address: str) -> set[str]:
    return {model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"] if model["loaded"]}


def test_the_longest_unused_goes(address: str) -> None:
    assert loaded(address) == set()
    first = text(ask(address, "one"))
    assert text(ask(address, "two")) == first and loaded(address) == {"one", "two"}
    assert text(ask(address, "one")) == first  # now two is the longest unused
    assert text(ask(address, "three")) == first and loaded(address) == {"one", "three"}
    assert text(ask(address, "two")) == first and loaded(address) == {"two", "three"}
    assert text(ask(address, "one", seed=3, temperature=1)) == text(ask(address, "two", seed=3, temperature=1))


def test_a_model_in_use_stays(address: str, folders: dict[str, Path]) -> None:
    never = {str(id): -100 for id in Tokenizer.load(folders["base"]).special_tokens.values()}
    long = {"prompt": "a", "max_tokens": 500, "n": 16, "stream": True, "logit_bias": never, "temperature": 0.1}
    url = f"{address}/v1/completions"
    with (
        httpx.stream("POST", url, json={"model": "one", **long}, timeout=60) as first,
        httpx.stream("POST", url, json={"model": "two", **long}, timeout=60) as second,
    ):
        lines = [stream.iter_lines() for stream in (first, second)]
        for each in lines:
            next(each)
        refused = ask(address, "three")
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
        assert "there is no room for three while others are in use" in refused.json()["error"]["message"]
        assert loaded(address) == {"one", "two"}
        assert all([line for line in each if line][-1] == "data: [DONE]" for each in lines)
    assert text(ask(address, "three"))


def test_many_first_requests_load_it_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    real = serving_models.load

    def counted(*arguments: Any) -> Any:
        loads.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(serving_models, "load", counted)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(text(ask(address, "one")))) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1 and len(answers) == 32 and len(set(answers)) == 1


@pytest.mark.parametrize("damage", ["removed", "weights", "definition", "empty"])
def test_a_folder_that_is_damaged_later(
    address: str, paths: dict[str, Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One clear error that does not say where the model lies; the others are answered; mended, it is answered too."""
    good = text(ask(address, "one"))
    file = next(paths["two"].glob("*.safetensors"))
    if damage == "weights":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "definition":
        (paths["two"] / "tokenizer.json").write_text("{")
    else:
        shutil.rmtree(paths["two"])
        if damage == "empty":
            paths["two"].mkdir()
    for _ in range(2):
        answer = ask(address, "two")
        error = answer.json()["error"]
        assert answer.status_code == 500 and error["type"] == "server_error"
        assert error["message"] == "two: cannot be opened any more; the server's log says why."
    assert "two cannot be opened any more: " in caplog.text and "Traceback" not in caplog.text
    assert text(ask(address, "one")) == good
    shutil.rmtree(paths["two"], ignore_errors=True)
    shutil.copytree(paths["one"], paths["two"])
    assert text(ask(address, "two")) == good


def test_reloading_leaves_nothing(address: str) -> None:
    process = psutil.Process()
    sizes, threads = [], []
    for number in range(36):
        text(ask(address, NAMES[number % 3]))  # always the one that has just been put away
        sizes.append(process.memory_info().rss)
        # The loop's own pool may still grow up to its bound; nothing else may.
        threads.append(sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate()))
    assert sizes[-1] - sizes[5] < 16 << 20
    assert threads[-1] <= threads[5]


def test_a_model_that_does_not_fit_with_its_cache(paths: dict[str, Path]) -> None:
    weights = outline(paths["one"]).weights
    with running(Models({"one": paths["one"]}, device="cpu", memory=weights + 1000, queue=QUEUE)) as port:
        answer = ask(f"http://127.0.0.1:{port}", "one")
        assert answer.status_code == 500 and "with the cache for one text" in answer.json()["error"]["message"]
    with running(Models({"one": paths["one"]}, device="cpu", memory=weights + (1 << 20), queue=QUEUE)) as port:
        began = time.monotonic()
        assert text(ask(f"http://127.0.0.1:{port}", "one"))  # its cache takes what is left, though less than a quarter
        assert time.monotonic() - began < 30
