"""The page with a model that learned a little, on two screens, in light and dark: screenshots, and what they must show.

export RHAPSODE_PICTURES=docs/pictures RHAPSODE_PICTURES_MODEL=runs/demo/model
python -m pytest -m slow tests/browser/test_pictures.py

also writes those of the guide, with a model that learned more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import PHONE, WIDE, Chat, serving

pytestmark = pytest.mark.slow  # it trains for 18 seconds

SEED = 7
DRAWN = {"max_tokens": 80, "temperature": 0.8, "top_p": 0.95, "top_k": 0}


@pytest.fixture(scope="module")
def trained(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a model of Shakespeare's plays, as it is and as if it were tuned for chat."""
    folder = tmp_path_factory.mktemp("trained")
    model = os.environ.get("RHAPSODE_PICTURES_MODEL")
    if model is None:
        model = str(folder / "run" / "model")
        command = [sys.executable, "-m", "rhapsode", "train", str(shakespeare), "--minutes", "0.3", "--context-length"]
        command += ["256", "--out", str(folder / "run")]
        subprocess.run(command, check=True, capture_output=True, timeout=280)
    models = {}
    for name, objective in (("shakespeare", "next token"), ("bard", "chat")):
        models[name] = folder / name
        shutil.copytree(model, models[name])
        told = json.loads((models[name] / "rhapsode.json").read_text(encoding="utf-8"))
        (models[name] / "rhapsode.json").write_text(json.dumps(told | {"objective": objective}), encoding="utf-8")
    with serving(models) as address:
        yield address


# What is read, and on what it stands: the colours of both, as the browser computes them.
CONTRAST = """element => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = colours => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = colours => rgb(colours).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const [one, other] = [light(grounds), light([...grounds, getComputedStyle(element).color])].sort((a, b) => b - a);
    return (one + 0.05) / (other + 0.05);
}"""
READ = (
    *(".text", ".note", ".quiet", "#meter-text", "#kind", ".conversation", ".figure", "#glass h2", ".others", "mark"),
    *(f".tokens .p{shade}" for shade in range(5)),
    *(".told", ".drawn .alternative"),
)


def expect_readable(page: Page) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    for selector in READ:
        for element in page.locator(selector).all()[:3]:
            assert element.evaluate(CONTRAST) >= 4.5, selector


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", ["wide", "phone"])
def test_screens(make_chat: Callable[..., Chat], trained: str, artefacts: Path, screen: str, scheme: str) -> None:
    size = WIDE if screen == "wide" else PHONE
    chat = make_chat(trained, viewport=size, color_scheme=scheme).open("bard", seed=SEED, **DRAWN)
    page = chat.page

    def picture(name: str) -> None:
        page.mouse.move(size["width"] // 2, 20)
        path = artefacts / f"{screen}-{scheme}-{name}.png"
        page.screenshot(path=path)
        kept = os.environ.get("RHAPSODE_PICTURES")
        if kept and path.stem in ("wide-light-glass-box", "wide-dark-text"):
            Path(kept).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, Path(kept) / path.name)

    picture("empty")
    chat.say("What is honour, my lord?")
    picture("chat")
    likely = page.locator(".token.p3")  # the model had something to weigh
    chat.look_into(int(likely.nth(1).get_attribute("data-k") or 0) if likely.count() > 1 else 6)
    expect(page.locator("#glass tr.drawn")).to_have_count(1)
    picture("glass-box")
    page.keyboard.press("Escape")
    page.locator("#settings-open").click()
    picture("settings")
    page.locator("#settings-close").click()
    page.locator("#colour").click()
    page.locator("#model").select_option("shakespeare")
    chat.ready()
    chat.say("ROMEO:\nGood morrow, ")
    chat.say("\n\nJULIET:\nMy lord,")
    page.locator("[data-act=regenerate]").click()
    chat.written()
    picture("text")
    chat.look_into(3)
    expect_readable(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
