"""The page of a demonstration: everything put on it is there, as text, in the page's colours, and nothing is loaded."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from rhapsode.base.drawing import COLOURS, FAINT, INK, LINE, PAPER, SOFT, VARIABLES, drawing, page_style
from rhapsode.base.errors import InputError
from rhapsode.foundations.page import HALF, LAST_FRAME_COUNTS, MOST_FRAMES, SECONDS_PER_FRAME, Page, gallery

VOID = {"meta", "path", "use", "rect", "circle", "input", "image"}
EVIL = '</style><script>alert("x")</script><img src=x onerror=y>'


class Read(HTMLParser):
    """Checks that tags are balanced, and gathers the words, the tags and the attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.open = source, list[str]()
        self.words, self.tags, self.attributes = "", list[str](), list[tuple[str, str]]()
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data + " "


def chart(draw: Callable[[Figure], object] = lambda figure: figure.add_subplot().plot([1, 2, 3])) -> Figure:
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        draw(figure)
    return figure


def step(number: int, figure: Figure) -> None:
    figure.text(0.5, 0.5, f"step {number}")


@pytest.fixture
def full() -> Page:
    """A page with everything there is."""
    page = Page("Memories & valleys", "What is <stored>")
    page.fact("Patterns", "13", "of 100 units").fact("Bits wrong", "0.4 %")
    page.section("Falling").paragraph("No step\n    of it raises the `energy()` at all.")
    page.formula(r"E = -\frac{1}{2} \sum_{ij} w_{ij} s_i s_j", "w: weights")
    page.figure(chart(), "The energy <after> each step.", name="energy")
    page.figure([chart(partial(step, number)) for number in range(4)], "A film.", name="film")
    page.figure(gallery(np.eye(4).reshape(2, 2, 4), 2, titles=("a", "b")), "Pictures.")
    page.table(("name", "count"), [("one", 1), ("two", 2.5)], "Counts")
    return page.next("Go on", "rhapsode foundations rbm")


def read(page: Page, folder: Path) -> Read:
    return Read(page.write(folder / "page.html").read_text(encoding="utf-8"))


def test_everything_put_on_it_is_there(full: Page, tmp_path: Path) -> None:
    page = read(full, tmp_path)
    for expected in (
        "Memories & valleys",
        "What is <stored>",
        "of 100 units",
        "0.4 %",
        "Falling",
        "No step of it raises the ",
        "energy()",
        "w: weights",
        "The energy <after> each step.",
        "A film.",
        "step 3",
        "Counts",
        "2.5",
        "rhapsode foundations rbm",
    ):
        assert expected in page.words, expected
    assert page.tags.count("svg") == 1 + 1 + 4 + 1
    assert page.tags.count("code") == 2
    assert ("aria-label", r"E = -\frac{1}{2} \sum_{ij} w_{ij} s_i s_j") in page.attributes
    order = [page.words.index(word) for word in ("Memories", "Patterns", "Falling", "A film.", "Counts", "Go on")]
    assert order == sorted(order)


def test_it_needs_no_network_and_runs_no_script(full: Page, tmp_path: Path) -> None:
    page = read(full, tmp_path)
    assert not {*page.tags} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in dict(page.attributes)["content"]
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "action", "srcset")
        if name.endswith("href"):
            assert value.startswith(("#", "data:image/png;base64,"))
        if not name.startswith("xmlns") and not value.startswith("data:"):
            assert "//" not in value
    css = page.source.split("<style>", 1)[1].split("</style>", 1)[0]
    assert "url(" not in css
    assert "@import" not in css


@given(text=st.text(max_size=30))
@settings(max_examples=8)
def test_text_is_only_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for words in (EVIL, text):
        page = Page(words, words).fact(words, words, words).section(words).paragraph(words).next(words, words)
        page.table([words], [[words]], words).figure(chart(), words, name="one")
        found = read(page, tmp_path_factory.mktemp("page"))
        assert not {*found.tags} & {"script", "img"}
        (svg,) = page.write_pictures(tmp_path_factory.mktemp("pictures"))
        assert "<script" not in svg.read_text(encoding="utf-8").lower()
    assert found.words.count("Rhapsode") == 3 + 11 * text.count("Rhapsode")


def test_the_same_content_gives_the_same_bytes(full: Page, tmp_path: Path) -> None:
    first = full.write(tmp_path / "first.html").read_bytes()
    assert full.write(tmp_path / "second.html").read_bytes() == first


def test_drawings_take_the_colours_of_the_page(tmp_path: Path) -> None:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot(title="title")
        for number, _ in enumerate(COLOURS):
            axes.plot([1, 2], [number, number], label=str(number))
        for number, colour in enumerate((INK, SOFT, LINE, PAPER, FAINT)):
            axes.text(1, number, "text", color=colour)
        axes.legend()

    page = read(Page("a", "b").figure(chart(draw), "c"), tmp_path)
    (svg,) = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b(?!\))", re.sub(r"(href=\"|url\()#\w+", "", svg))
    for variable in VARIABLES.values():
        assert f"var({variable})" in svg
        assert len(re.findall(rf"{variable}: #[0-9a-f]{{6,8}};", page_style())) == 2, "one for light, one for dark"


def test_no_two_elements_share_an_id(full: Page, tmp_path: Path) -> None:
    """What one drawing refers to must not be found in another, which may be hidden."""
    full.figure([chart(), chart()], "The same twice.")
    ids = [value for name, value in read(full, tmp_path).attributes if name == "id"]
    assert len(ids) >= 6
    assert len(ids) == len(set(ids))


def test_a_film_shows_one_frame_at_a_time(full: Page, tmp_path: Path) -> None:
    """What the style sheet makes of four frames, read as a browser reads it: test_foundations.py asks a real one."""
    source = read(full, tmp_path).source
    share = {
        name: float(until)
        for name, until in re.findall(r"@keyframes (\S+) \{ 0% \{ visibility: visible; \} ([\d.]+)%", source)
    }
    (name,) = (name for name in share if not name.endswith("-last"))
    seconds = float(re.search(rf"animation: {name} ([\d.]+)s step-end infinite", source)[1])  # type: ignore[index]
    delays = dict(
        re.findall(rf"\.{name}:checked ~ .frames > :nth-child\((\d)\) \{{ animation-delay: ([\d.]+)s", source)
    )
    begins = [0.0, *(float(delays[str(number)]) for number in (2, 3, 4))]
    ends = [begin + share[name] / 100 * seconds for begin in begins]
    ends[-1] = begins[-1] + share[f"{name}-last"] / 100 * seconds
    assert begins == pytest.approx([number * SECONDS_PER_FRAME for number in range(4)])
    assert ends == pytest.approx([*begins[1:], seconds], abs=1e-3)
    assert seconds == pytest.approx((3 + LAST_FRAME_COUNTS) * SECONDS_PER_FRAME)


def test_pictures_are_files_of_their_own(full: Page, tmp_path: Path) -> None:
    paths = full.write_pictures(tmp_path, prefix="hopfield-")
    assert [path.name for path in paths] == ["hopfield-energy.svg", "hopfield-film.svg"]
    for path, frames, title in zip(paths, (1, 4), ("The energy <after> each step.", "A film."), strict=True):
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].text == title
        assert len(root.findall("{*}g/{*}g/{*}svg")) == frames
        assert ("@keyframes" in text) == (frames > 1)
        assert "prefers-color-scheme: dark" in text
        assert ":checked" not in text


def test_a_gallery_keeps_every_pixel(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).random((5, 3, 4))
    pictures[0, 0, 0], pictures[1, 1, 1] = -1, 2  # beyond the bounds: black and white
    page = read(Page("a", "b").figure(gallery(pictures, 2, low=0, high=1), "c"), tmp_path)
    found = re.findall(r'href="data:image/png;base64,\s*([^"]+)"', page.source)
    assert len(found) == 5
    for data, picture in zip(found, pictures, strict=True):
        drawn = imread(io.BytesIO(base64.b64decode(data)))
        assert drawn.shape == (3, 4, 4)
        np.testing.assert_allclose(drawn[:, :, 0], np.clip(picture, 0, 1), atol=2 / 255)  # of 256 levels, in 8 bits


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    page = Page("a", "b")
    with pytest.raises(ValueError, match="1 to 100 frames, not 0"):
        page.figure([], "c")
    with pytest.raises(ValueError, match=f"not {MOST_FRAMES + 1}"):
        page.figure([chart()] * (MOST_FRAMES + 1), "c")
    with pytest.raises(ValueError, match="differ in size"):
        page.figure([chart(), Figure(figsize=(1, 1))], "c")
    page.figure(chart(), "c", name="one")
    with pytest.raises(ValueError, match="there is a picture 'one' already"):
        page.figure(chart(), "c", name="one")
    with pytest.raises(InputError, match="its folder does not exist"):
        page.write(tmp_path / "none" / "page.html")
    with pytest.raises(InputError, match="its folder does not exist"):
        page.write_pictures(tmp_path / "none")
