"""The pages of the foundations in a real Chromium: films play, stop and can be stepped through, without any script."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from playwright.sync_api import Browser, BrowserContext, expect
from playwright.sync_api import Page as Tab

from rhapsode.base.drawing import drawing
from rhapsode.foundations.page import HALF, Page

from .conftest import PHONE, WIDE

FRAMES = 4


def frame(number: int) -> Figure:
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        figure.add_subplot(title=f"step {number}").plot(range(number + 2))
    return figure


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = Page("Memories", "How they are found").paragraph("A word, and words after it. " * 20)
    page.formula(r"E = -\frac{1}{2} \sum_{ij} w_{ij} s_i s_j \qquad " * 3, "E: the energy; w: the weights")
    page.figure(frame(7), "One picture.", name="picture")
    page.figure([frame(number) for number in range(FRAMES)], "A film.", name="film")
    page.table(("name", "much"), [("a", 1)])
    folder = tmp_path_factory.mktemp("foundations")
    page.write_pictures(folder)
    return page.write(folder / "page.html")


@pytest.fixture(params=["no-preference", "reduce"])
def opened(browser: Browser, page: Path, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """The page, for somebody who likes things that move and for somebody who does not."""
    context: BrowserContext = browser.new_context(viewport=WIDE, reduced_motion=request.param)
    said: list[str] = []
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert said == []


def seen(tab: Tab) -> list[int]:
    """The frames that can be seen now."""
    script = "frames => frames.flatMap((f, n) => getComputedStyle(f).visibility === 'visible' ? [n] : [])"
    return list(tab.locator(".frames > div").evaluate_all(script))


def test_a_film_plays_or_shows_its_end(opened: Tab) -> None:
    moves = opened.evaluate("matchMedia('(prefers-reduced-motion: no-preference)').matches")
    shown = []
    for _ in range(40):
        (now,) = seen(opened)
        shown.append(now)
        opened.wait_for_timeout(60)
    assert set(shown) == (set(range(FRAMES)) if moves else {FRAMES - 1})


def test_a_film_in_a_file_of_its_own_shows_one_frame_at_a_time(opened: Tab, page: Path) -> None:
    moves = opened.evaluate("matchMedia('(prefers-reduced-motion: no-preference)').matches")
    opened.goto((page.parent / "film.svg").as_uri())
    script = "frames => frames.flatMap((f, n) => getComputedStyle(f).visibility === 'visible' ? [n] : [])"
    shown = []
    for _ in range(40):
        (now,) = opened.locator(".frames > g").evaluate_all(script)
        shown.append(now)
        opened.wait_for_timeout(60)
    assert set(shown) == (set(range(FRAMES)) if moves else {FRAMES - 1})


def test_a_film_can_be_stepped_through(opened: Tab) -> None:
    for number in (2, 0, 3):
        opened.get_by_label(f"frame {number + 1}").click()
        assert seen(opened) == [number]
        opened.wait_for_timeout(900)
        assert seen(opened) == [number], "stopped"
    opened.keyboard.press("ArrowLeft")
    assert seen(opened) == [2]


def test_each_frame_of_a_film_is_drawn(opened: Tab) -> None:
    """Lines are clipped by what stands in their own drawing: that of a hidden one would hide them."""
    for number in range(FRAMES):
        opened.get_by_label(f"frame {number + 1}").click()
        pixels = imread(io.BytesIO(opened.locator(".frames").screenshot()))[:, :, :3]
        line = np.abs(pixels - np.array([0x1F, 0x6F, 0x78]) / 255).max(axis=2) < 0.02
        assert line.sum() > 100


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_follows_light_and_dark(
    browser: Browser, page: Path, artefacts: Path, size: dict[str, int], scheme: str
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink = tab.locator("svg text").first.evaluate("element => getComputedStyle(element).fill")
    assert ink == {"light": "rgb(107, 104, 98)", "dark": "rgb(161, 156, 146)"}[scheme]
    tab.screenshot(path=artefacts / f"foundations-{size['width']}-{scheme}.png", full_page=True)
    for name in ("picture", "film"):
        tab.goto((page.parent / f"{name}.svg").as_uri())
        expect(tab.locator("svg").first).to_be_visible()
    script = "frames => frames.map(frame => getComputedStyle(frame).visibility)"
    assert tab.locator(".frames > g").evaluate_all(script) == ["hidden"] * (FRAMES - 1) + ["visible"]
    context.close()
