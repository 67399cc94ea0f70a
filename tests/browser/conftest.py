"""The page in a real Chromium, before a real server of two tiny models at random: one chats, one continues text.

RHAPSODE_CHROMIUM names the browser where it is not found by itself. Screenshots go to tests/browser/artefacts, or to
RHAPSODE_ARTEFACTS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.step import Reading, Step
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import save_model
from rhapsode.serving import models as serving_models
from rhapsode.serving.app import Access, application
from rhapsode.serving.models import Models
from rhapsode.serving.server import listening, server_for
from rhapsode.tokenizer.train import train_tokenizer

from ..inference.conftest import random_decoder

CONTEXT = 4096
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SHORT = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 5}
expect.set_options(timeout=40_000)  # milliseconds


@pytest.fixture(scope="session")
def folders(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by name. Many of the tokens are parts of characters."""
    text = shakespeare.read_text(encoding="utf-8")[:20_000] + "Žluťoučký kůň 🦙🏽 日本語 " * 20
    tokenizer = train_tokenizer([text], "bpe", 400)
    config = QWEN3.config(tokenizer.vocabulary_size, 32, 2, 4, 2, 8, 64, CONTEXT, tied_embeddings=False)
    made = {}
    for name, objective in (("tuned", "chat"), ("base", "next token")):
        made[name] = tmp_path_factory.mktemp("page") / name
        made[name].mkdir()
        save_model(made[name], random_decoder(config), tokenizer, {"objective": objective})
    return made


class Slow:
    """A step that takes a while: so small a model would have answered before anybody can stop it."""

    def __init__(self, step: Step) -> None:
        self.step, self.blocks, self.copy = step, step.blocks, step.copy

    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        time.sleep(0.003)
        return self.step(readings)


def slow(path: Path, device: str) -> LanguageModel:
    """A model that writes a few hundred tokens a second."""
    model = load(path, device)
    step = model.step
    model.step = lambda blocks=None: Slow(step(blocks))  # type: ignore[method-assign]
    return model


@contextmanager
def serving(folders: Mapping[str, Path], *, port: int = 0, **access: Any) -> Iterator[str]:
    """The address of a server of these models, which ends with the block; port 0 takes any that is free."""
    socket = listening("127.0.0.1", port)
    port = socket.getsockname()[1]
    models = Models(folders, device="cpu", memory=1 << 30, queue=100)
    server = server_for(application(models, Access(frozenset({f"127.0.0.1:{port}"}), **access)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        with patch.object(serving_models, "load", slow):
            yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def address(folders: dict[str, Path]) -> Iterator[str]:
    with serving(folders) as address:
        yield address


# Not for the whole session: while Playwright runs, so does an event loop in this thread; other tests want their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("RHAPSODE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium is installed; RHAPSODE_CHROMIUM may name one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Chat:
    """The page as somebody uses it.

    Attributes:
        allowed: what the console may say in this test; anything else fails it, as everything does that the
            content-security policy forbids.
    """

    page: Page
    address: str
    said: list[str] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def open(self, model: str = "tuned", **settings: Any) -> Chat:
        """Load the page with these settings of an earlier visit."""
        kept = json.dumps({**SHORT, "model": model, **settings})
        self.page.goto(f"{self.address}/docs")
        self.page.evaluate("(kept) => localStorage.setItem('rhapsode.settings', kept)", kept)
        self.page.goto(self.address)
        self.ready()
        return self

    def ready(self) -> None:
        expect(self.page.locator("#kind")).to_have_text(re.compile("^(answers|continues text)$"))

    def say(self, text: str) -> None:
        """Send a text, and wait until the answer is written."""
        self.page.locator("#input").fill(text)
        self.page.locator("#input").press("Enter")
        self.written()

    def written(self) -> None:
        """Wait until nothing is being written."""
        expect(self.page.locator("#stop")).to_be_hidden()
        expect(self.page.locator(".writing")).to_have_count(0)

    def tokens(self, answer: int = -1) -> Locator:
        """The tokens of an answer; the last unless given."""
        return self.page.locator("[data-tokens]").nth(answer).locator(".token")

    def text(self, answer: int = -1) -> str:
        """What an answer says."""
        return self.page.locator("[data-tokens]").nth(answer).text_content() or ""

    def asked(self, path: str) -> list[Any]:
        """The bodies of the requests to a route, so far."""
        return [body for each, body in self.requests if each == path]

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers without the page."""
        answer = httpx.post(f"{self.address}{path}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def look_into(self, k: int, answer: int = -1) -> Any:
        """Open the glass box on a token; returns what the page asked for."""
        before = len(self.asked("/v1/next"))
        self.tokens(answer).nth(k).click()
        expect(self.page.locator("#glass")).to_have_attribute("aria-busy", "false")
        assert len(self.asked("/v1/next")) == before + 1
        return self.asked("/v1/next")[-1]


@pytest.fixture
def make_chat(browser: Browser, address: str) -> Iterator[Callable[..., Chat]]:
    """A new browser profile with the page, not yet loaded; all are looked through when the test is over."""
    made: list[tuple[Chat, BrowserContext]] = []

    def make(at: str = address, **options: Any) -> Chat:
        options = {"viewport": WIDE, "reduced_motion": "reduce", **options}
        context = browser.new_context(**options)
        chat = Chat(context.new_page(), at)

        def console(message: Any) -> None:
            if message.type in ("error", "warning"):
                chat.said.append(message.text)

        def request(request: Any) -> None:
            assert request.url.startswith((f"{at}/", "blob:", "data:")), request.url
            data = request.post_data
            chat.requests.append((request.url.removeprefix(at), json.loads(data) if data else None))

        chat.page.on("console", console)
        chat.page.on("pageerror", lambda error: chat.said.append(str(error)))
        chat.page.on("dialog", lambda dialog: chat.said.append(f"dialog: {dialog.message}"))
        chat.page.on("request", request)
        made.append((chat, context))
        return chat

    yield make
    for chat, context in made:
        context.close()
        unexpected = [text for text in chat.said if not any(re.search(each, text) for each in chat.allowed)]
        assert unexpected == []


@pytest.fixture
def chat(make_chat: Callable[..., Chat]) -> Chat:
    """The page on a wide screen, not yet loaded."""
    return make_chat()


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("RHAPSODE_ARTEFACTS") or Path(__file__).parent / "artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def running(address: str) -> int:
    """Texts that the server is writing."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("rhapsode_texts_running{"))


def expect_none_running(page: Page, address: str) -> None:
    for _ in range(100):
        if running(address) == 0:
            return
        page.wait_for_timeout(50)
    raise AssertionError("the server goes on writing")
