"""Words on a plane: a dot for each and its name beside it, as SVG or PNG.

rhapsode embeddings picture runs/mytext king queen man woman --out words.svg
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import InputError
from rhapsode.explain.embeddings import Projection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]
Form = Literal["svg", "png"]

INK, SOFT, THREAD, LINE = "#1b1f24", "#5f6873", "#aab2bb", "#e4e7eb"
# Okabe and Ito's colours, which the colour-blind can tell apart, darkened where they are too light for white.
COLOURS = ("#0072b2", "#d55e00", "#008f68", "#b5578d", "#8a6d00", "#3a98cc")

STYLE = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rhapsode",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "xtick.labelsize": 8,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "ytick.labelsize": 8,
}
SIZE = (7.5, 6.0)  # inches
DOTS_PER_INCH = 160
PIXELS = DOTS_PER_INCH / 72  # of a point

# Where a name may stand: so many points from its dot, and in which direction. The first place that is free is taken.
DISTANCES = (5.0, 10.0, 17.0, 26.0, 37.0, 50.0, 65.0, 82.0)
DIRECTIONS = np.deg2rad([0, 180, 90, 270, 45, 315, 135, 225, *np.arange(22.5, 360, 45)])
PLAIN_DISTANCE = 5.0  # so near, nobody asks whose name it is; from further away a line tells
DOT = 3.0  # points from its middle to its edge
AIR = 1.0  # points that stay free around a name


def form_of(path: Path, *, replace: bool = False) -> Form:
    """The kind of picture that `path` asks for by its ending.

    Raises:
        InputError: it is neither .svg nor .png, its folder does not exist, or it exists and `replace` is false.
    """
    form = path.suffix.lower()
    if form not in (".svg", ".png"):
        raise InputError("ends in neither .svg nor .png", where=str(path), todo="Choose one of them.")
    if not path.parent.is_dir():
        raise InputError("its folder does not exist", where=str(path), todo="Make it, or choose another.")
    if path.exists() and not replace:
        raise InputError("already exists", where=str(path), todo="Choose another name, or pass --force to replace it.")
    return "svg" if form == ".svg" else "png"


def picture(projection: Projection, form: Form, groups: Mapping[str, Sequence[str]] | None = None) -> tuple[bytes, str]:
    """The file of a picture, and the characters that no font here has: a PNG shows boxes for them.

    Args:
        groups: as in `figure_of`.
    """
    import matplotlib.style

    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure_of(projection, groups or {}).savefig(file, format=form, metadata=metadata)
        return file.getvalue(), _without_glyph(projection.words)


def figure_of(projection: Projection, groups: Mapping[str, Sequence[str]]) -> Figure:
    """The drawing. Both axes have the same scale, so that distances on the page are those of the plane.

    Args:
        groups: words that share a colour, by the name that the legend gives them; other words are grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)  # measures text
    axes = figure.add_subplot()
    colour_of: dict[str, str] = {}
    for number, (name, words) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        colour_of |= dict.fromkeys(words, colour)
        axes.scatter([], [], s=(2 * DOT) ** 2, color=colour, label=_printable(name))
    colours = [colour_of.get(word, SOFT if groups else COLOURS[0]) for word in projection.words]
    axes.scatter(projection.points[:, 0], projection.points[:, 1], s=(2 * DOT) ** 2, c=colours, linewidths=0, zorder=2)
    axes.grid()
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(0.12)
    axes.set_aspect("equal", adjustable="datalim")
    first, second = (f"{100 * share:.1f} % of the variance" for share in projection.shares)
    axes.set_xlabel(f"first principal component, {first}")
    axes.set_ylabel(f"second principal component, {second}")
    if groups:
        figure.legend(loc="outside upper center", ncols=min(len(groups), len(COLOURS)), handletextpad=0.1)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is measured from here on stays where it is
    _place_names(axes, projection, [colour_of.get(word, INK) for word in projection.words])
    return figure


def _place_names(axes: Axes, projection: Projection, colours: Sequence[str]) -> None:
    """Write each word where it covers no other name and no dot, or where it covers least.

    Words are taken from the outside in: the outer ones have room, and leave theirs to those in the crowd.
    """
    axes.autoscale(False)
    dots = axes.transData.transform(projection.points)  # (words, 2) pixels
    taken = np.hstack([dots - DOT * PIXELS, dots + DOT * PIXELS])  # (boxes, 4): left, bottom, right, top
    frame = np.array(axes.get_window_extent().extents)
    for index in np.argsort(-np.linalg.norm(dots - dots.mean(axis=0), axis=1), kind="stable"):
        text = axes.annotate(
            _printable(projection.words[index]),
            projection.points[index],
            xytext=(0, 0),
            textcoords="offset points",
            color=colours[index],
            zorder=3,
        )
        extent = text.get_window_extent()
        box, side, offset = _best(_places(dots[index], np.array([extent.width, extent.height])), taken, frame)
        text.set(ha=("center", "left", "right")[side[0]], va=("center", "bottom", "top")[side[1]])
        text.xyann = tuple(offset)
        if np.hypot(*offset) > 1.01 * PLAIN_DISTANCE:
            ends = axes.transData.inverted().transform([dots[index], dots[index] + offset * PIXELS])
            axes.plot(*ends.T, color=THREAD, linewidth=0.7, zorder=1)
        taken = np.vstack([taken, box])


Place = tuple[Numbers, tuple[int, int], Numbers]
"""The box of a name (4,) in pixels, the side of the dot it is on, and how far from the dot (2,) in points."""


def _places(dot: Numbers, size: Numbers) -> Iterator[Place]:
    """Where a name of so many pixels may stand, the best first."""
    for distance in DISTANCES:
        for angle in DIRECTIONS:
            way = np.array([np.cos(angle), np.sin(angle)])
            side = np.rint(way)
            corner = dot + distance * way * PIXELS + (side - 1) / 2 * size
            box = np.concatenate([corner - AIR * PIXELS, corner + size + AIR * PIXELS])
            yield box, (int(side[0]), int(side[1])), distance * way


def _best(places: Iterator[Place], taken: Numbers, frame: Numbers) -> Place:
    """The first place that is free, else the one that covers least."""
    best, least = None, np.inf
    for place in places:
        box = place[0]
        outside = _common_area(box, box[None]) - _common_area(box, frame[None])
        covered = _common_area(box, taken).sum() + outside.sum()
        if covered < least:
            best, least = place, covered
        if covered < 1e-6:
            break
    assert best is not None
    return best


def _common_area(box: Numbers, others: Numbers) -> Numbers:
    """The area (others,) that a box (4,) has in common with each of others (others, 4)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    area: Numbers = np.clip(width, 0, None) * np.clip(height, 0, None)
    return area


def _printable(text: str) -> str:
    """Text that can be seen, and that an XML file may hold."""
    return text if text.isprintable() else repr(text)


def _without_glyph(words: Sequence[str]) -> str:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(sorted({sign for word in words for sign in _printable(word) if ord(sign) not in known}))
