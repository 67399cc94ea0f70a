"""`rhapsode chat MODEL --web`, as it is typed; and a server that wants a key."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from rhapsode.cli.main import run

from .conftest import Chat, serving


@pytest.mark.skipif(os.name == "nt", reason="the browser is stood in for by a script")
def test_the_page_is_opened_in_the_browser(
    make_chat: Callable[..., Chat], folders: dict[str, Path], tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > "{opened}"\n')
    script.chmod(0o755)
    command = [sys.executable, "-m", "rhapsode", "chat", str(folders["tuned"]), "--web"]
    environment = {**os.environ, "BROWSER": f"{script} %s"}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"Serving tuned on (http://127\.0\.0\.1:\d+) ", line)
        assert found, line
        address = found[1]
        chat = make_chat(address)
        chat.page.goto(address)
        chat.ready()
        expect(chat.page.locator("h1")).to_have_text("Talk with tuned")
        assert opened.read_text() == address
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) in (0, 130, -signal.SIGINT)
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("flags", [["--system", "Be kind."], ["--temperature", "0.5"], ["--style", "factual"]])
def test_what_the_page_would_ignore_is_refused(
    folders: dict[str, Path], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", str(folders["tuned"]), "--web", *flags]) == 2
    assert "--web: the page has settings of its own" in capsys.readouterr().err


def test_with_a_key_the_browser_asks_once(make_chat: Callable[..., Chat], folders: dict[str, Path]) -> None:
    with serving(folders, keys=("secret",)) as address:
        assert httpx.get(address).status_code == 401
        chat = make_chat(address, http_credentials={"username": "any", "password": "secret"})
        chat.open()
        chat.say("Hello")
        expect(chat.page.locator(".told")).to_be_visible()
        chat.look_into(0)
        expect(chat.page.locator("#glass tr.drawn")).to_have_count(1)
        chat.page.close()  # before the server goes, whom it would go on asking
