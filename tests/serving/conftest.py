"""Two tiny models at random behind a real server: one that continues text, one that is tuned for chat."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import save_model
from rhapsode.serving.app import Access, application
from rhapsode.serving.models import Models
from rhapsode.serving.records import Log
from rhapsode.serving.server import listening, server_for
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS
from rhapsode.tokenizer.train import train_tokenizer

from ..inference.conftest import random_decoder

CONTEXT = 512
QUEUE = 200


@dataclass(frozen=True)
class Served:
    """A server, and the models as they are without it."""

    address: str
    base: LanguageModel
    tuned: LanguageModel


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def folders(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by name, "base" and "tuned"."""
    text = shakespeare.read_text(encoding="utf-8")[:20_000] + "Žluťoučký kůň 🦙🏽 日本語 " * 20
    tokenizer = train_tokenizer([text], "bpe", 400)
    config = QWEN3.config(tokenizer.vocabulary_size, 32, 2, 4, 2, 8, 64, CONTEXT, tied_embeddings=False)
    model = random_decoder(config)
    for name in SPECIAL_TOKENS:
        model.head.weight.data[tokenizer.special_tokens[name]] = 0.0
    made = {}
    for name, objective in (("base", "next token"), ("tuned", "chat")):
        made[name] = tmp_path_factory.mktemp("served") / name
        made[name].mkdir()
        save_model(made[name], model, tokenizer, {"objective": objective})
    return made


@contextmanager
def running(models: Models, access: Access | None = None, log: Log | None = None) -> Iterator[int]:
    """A server in a thread of its own, as its port. Without `access`, anybody may ask who knows its name."""
    socket = listening("127.0.0.1", 0)
    port: int = socket.getsockname()[1]
    access = access or Access(frozenset({f"127.0.0.1:{port}"}))
    server = server_for(application(models, access, log))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served(folders: dict[str, Path]) -> Iterator[Served]:
    """A server of both models."""
    with running(Models(folders, device="cpu", memory=1 << 30, queue=QUEUE)) as port:
        yield Served(f"http://127.0.0.1:{port}", load(folders["base"], "cpu"), load(folders["tuned"], "cpu"))
