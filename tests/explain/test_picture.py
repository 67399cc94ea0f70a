"""The picture: every word readable in its place, valid and the same each time, whatever the words."""

from __future__ import annotations

import io
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
import pytest
from matplotlib.text import Annotation
from PIL import Image

from rhapsode.base.errors import InputError
from rhapsode.explain.embeddings import Projection, WordVectors
from rhapsode.explain.picture import COLOURS, STYLE, figure_of, form_of, picture


def projection_of(words: list[str], seed: int = 0) -> Projection:
    return Projection(words, np.random.default_rng(seed).normal(size=(len(words), 2)), (0.375, 0.25))


def svg_texts(image: bytes) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(image).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("seed", range(5))
def test_no_name_lies_on_another_or_on_a_dot(seed: int) -> None:
    projection = projection_of([f"Word{'s' * (number % 7)}{number}" for number in range(40)], seed)
    with matplotlib.style.context(["default", STYLE]):
        (axes,) = figure_of(projection, {}).axes
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)}
        dots = axes.transData.transform(projection.points)
        frame = axes.get_window_extent()
    assert sorted(boxes) == sorted(projection.words)
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        assert not one.overlaps(other), (first, second)
    for name, box in boxes.items():
        assert not any(box.contains(*dot) for dot in dots), name
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_both_axes_have_the_same_scale_and_say_what_they_show(glove: WordVectors) -> None:
    projection = glove.project(glove.words[20:60])
    with matplotlib.style.context(["default", STYLE]):
        (axes,) = figure_of(projection, {}).axes
        (zero, right), (_, up) = axes.transData.transform([(0, 0), (1, 0)]), axes.transData.transform([(0, 0), (0, 1)])
    assert right[0] - zero[0] == pytest.approx(up[1] - zero[1])
    assert axes.get_xlabel() == f"first principal component, {100 * projection.shares[0]:.1f} % of the variance"
    assert axes.get_ylabel() == f"second principal component, {100 * projection.shares[1]:.1f} % of the variance"


def test_svg_holds_each_word_as_text_and_is_the_same_each_time() -> None:
    words = ["king", "queen", "<script>&", "$x^2$", "日本", "кот", "bell\x07\x1b[31m", "Größe"]
    image, missing = picture(projection_of(words), "svg", {"royal": ["king", "queen"]})
    texts = svg_texts(image)
    for word in ("king", "queen", "<script>&", "$x^2$", "日本", "кот", repr("bell\x07\x1b[31m"), "Größe", "royal"):
        assert word in texts
    assert missing == "日本"
    assert image == picture(projection_of(words), "svg", {"royal": ["king", "queen"]})[0]
    assert image.decode().count(COLOURS[0]) >= 4  # two dots, two names


def test_png_is_a_picture_on_white() -> None:
    data, missing = picture(projection_of(["king", "queen", "man", "日本"]), "png")
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.size == (1200, 960)
    assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert missing == "日本"


def test_a_crowd_is_drawn_soon() -> None:
    projection = projection_of([f"word{number}" for number in range(150)])
    assert len(svg_texts(picture(projection, "svg")[0])) >= 150


def test_the_ending_says_which_kind_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    assert form_of(tmp_path / "a.svg") == "svg"
    assert form_of(tmp_path / "a.PNG") == "png"
    with pytest.raises(InputError, match=r"a\.jpg: ends in neither \.svg nor \.png"):
        form_of(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="its folder does not exist"):
        form_of(tmp_path / "none" / "a.svg")
    (tmp_path / "a.svg").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already exists"):
        form_of(tmp_path / "a.svg")
    assert form_of(tmp_path / "a.svg", replace=True) == "svg"
