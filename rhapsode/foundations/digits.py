"""Pictures of digits, drawn on the spot: matplotlib's own fonts, shifted, turned, stretched, slanted and made noisy.

x, y = make_digits(5000, size=8, seed=1)                    # (5000, 64) from 0 to 1, and (5000,) labels
x, y = make_digits(1000, size=16, seed=2, fonts=UNSEEN)     # in fonts that the others were not drawn in
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from rhapsode.base.errors import InputError, shown
from rhapsode.base.random import generator
from rhapsode.foundations.estimator import Array, check_number

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
"""The fonts that digits are drawn in: four families, upright and slanted, thin and bold."""

UNSEEN = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
"""Another family, Computer Modern: whether a network has learned digits or fonts shows on these."""

TURN, STRETCH, SLANT, SHIFT = np.deg2rad(12), 0.12, 0.15, 0.12
"""The greatest angle, change of size, slant, and shift as a share of half the picture's width."""

DRAWN, TALL = 64, 48  # pixels of the picture of a font's digit that the others are made of, and of the digit in it
SAMPLES = 32  # points across a picture, at least, that its pixels are means of
AT_ONCE = 256  # pictures


def make_digits(
    count: int, *, size: int = 8, seed: int = 0, fonts: Sequence[str] = FONTS, noise: float = 0.08
) -> tuple[Array, Array]:
    """`count` pictures of digits, white on black, and which digits they are.

    Args:
        size: pixels across and down a picture, 4 to 64.
        seed: the same seed gives the same pictures.
        fonts: of `FONTS` and `UNSEEN`.
        noise: standard deviation of what is added to each pixel, before it is cut to 0..1; at most 10.

    Returns:
        Pictures (count, size * size) float32 from 0 to 1, row by row, and labels (count,) from 0 to 9, none rarer.

    Raises:
        InputError: an argument is out of range, or a font is none of those.
    """
    count = check_number("count", count, least=1, whole=True)
    size = check_number("size", size, least=4, most=DRAWN, whole=True)
    noise = check_number("noise", noise, least=0, most=10)
    if not isinstance(fonts, list | tuple):
        raise InputError(f"is {shown(fonts)} and no list", where="fonts", todo="Give a list of FONTS and UNSEEN.")
    if not fonts or not all(font in (*FONTS, *UNSEEN) for font in fonts):
        named = ", ".join(map(str, fonts)) or "none"
        raise InputError(f"are {named}", where="fonts", todo="Choose some of FONTS and UNSEEN.")
    random = generator(check_number("seed", seed, whole=True), "digits")
    labels, font = random.integers(10, size=count), random.integers(len(fonts), size=count)
    drawn = np.stack([_drawn(name) for name in fonts])  # (fonts, 10, DRAWN, DRAWN)
    places = _places(random, count)
    pictures = np.empty((count, size * size), dtype=np.float32)
    across = size * -(-SAMPLES // size)
    ticks = (np.arange(across) + 0.5) * 2 / across - 1
    points = np.stack([*np.meshgrid(ticks, ticks), np.ones((across, across))]).reshape(3, -1)  # x, y, 1
    for start in range(0, count, AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        x, y = (places[rows] @ points).swapaxes(0, 1)  # each (pictures, across * across)
        fine = _between(drawn[font[rows], labels[rows]], x, y).reshape(len(x), size, across // size, size, -1)
        pictures[rows] = fine.mean(axis=(2, 4)).reshape(len(x), -1)
    pictures += noise * random.standard_normal(pictures.shape, dtype=np.float32)
    return np.clip(pictures, 0, 1), labels


def _places(random: np.random.Generator, count: int) -> Array:
    """Where in the drawn digit the points of each picture lie: a matrix (count, 2, 3) that takes (x, y, 1) there."""
    turn = random.uniform(-TURN, TURN, count)
    cos, sin, slant = np.cos(turn), np.sin(turn), random.uniform(-SLANT, SLANT, count)
    wide, high = 1 / random.uniform(1 - STRETCH, 1 + STRETCH, (2, count))
    right, down = random.uniform(-SHIFT, SHIFT, (2, count))
    x = wide * np.stack([cos + slant * sin, slant * cos - sin, right])  # (3, count)
    y = high * np.stack([sin, cos, down])
    return np.stack([x, y]).transpose(2, 0, 1)


def _between(images: Array, x: Array, y: Array) -> Array:
    """The values of `images` (n, DRAWN, DRAWN) at points (n, points) of -1..1, made of the four pixels around each."""
    column, row = ((np.clip(axis, -1, 1) + 1) * (DRAWN - 1) / 2 for axis in (x, y))
    left, top = (np.minimum(axis.astype(np.int64), DRAWN - 2) for axis in (column, row))
    right, below = column - left, row - top  # the shares of the neighbours to the right and below
    n = np.arange(len(images))[:, None]
    upper = images[n, top, left] * (1 - right) + images[n, top, left + 1] * right
    lower = images[n, top + 1, left] * (1 - right) + images[n, top + 1, left + 1] * right
    result: Array = upper * (1 - below) + lower * below
    return result


@cache
def _drawn(font: str) -> Array:
    """The ten digits of a font, each (DRAWN, DRAWN) from 0 to 1 and in the middle."""
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    face = FontProperties(fname=Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"))
    size = TALL * 72 / DRAWN / TextPath((0, 0), "0", size=1, prop=face).get_extents().height  # points
    images = []
    with matplotlib.style.context("default"):
        for digit in range(10):
            figure = Figure(figsize=(1, 1), dpi=DRAWN)
            canvas = FigureCanvasAgg(figure)
            figure.text(0.5, 0.5, str(digit), fontproperties=face, size=size, ha="center", va="center_baseline")
            canvas.draw()  # type: ignore[no-untyped-call]
            ink = np.asarray(canvas.buffer_rgba())[:, :, 0]  # type: ignore[no-untyped-call]
            images.append(1 - ink / np.float32(255))
    return np.stack(images)
