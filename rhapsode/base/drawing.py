"""Drawings for pages: matplotlib's figures as SVG whose colours are the page's, so that they follow light and dark.

    with drawing():
        figure = Figure(layout="constrained")
        figure.add_subplot().plot(steps, loss)
    svg = as_svg(figure)

A page that holds them takes its looks from `page.css` beside this file (`page_style`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib draws in these stand-ins; the page's own variables take their place in the finished SVG.
INK, SOFT, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
FIRST, SECOND, THIRD, FOURTH, FIFTH, FAINT = "#050505", "#060606", "#070707", "#080808", "#090909", "#0a0a0a"
COLOURS = (FIRST, SECOND, THIRD, FOURTH, FIFTH)
"""The colours of lines and dots, in the order in which they are taken."""

VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    PAPER: "--paper",
    FIRST: "--first",
    SECOND: "--second",
    THIRD: "--third",
    FOURTH: "--fourth",
    FIFTH: "--fifth",
    FAINT: "--faint",
}

STYLE = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "image.cmap": "gray",
    "image.composite_image": False,
    "image.interpolation": "none",  # one pixel for each number, enlarged by whoever reads the page
    "legend.frameon": False,
    "legend.labelcolor": SOFT,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": SOFT,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, matplotlib draws in the page's colours and type. What is drawn outside it keeps its own."""
    import matplotlib.style
    from cycler import cycler

    with matplotlib.style.context(["default", STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}]):
        yield


def as_svg(figure: Figure, name: str = "") -> str:
    """The <svg> element alone, in the page's colours and type, without any size but its proportions.

    Args:
        name: of the drawing. Ids within it are made of what they stand for and of this name. Two drawings of one name
            may share an id where they share the thing, which is hidden in both where one of them is hidden.
    """
    import matplotlib

    file = io.StringIO()
    with drawing(), matplotlib.rc_context({"svg.hashsalt": f"rhapsode {name}"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true"', svg, count=1)
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)


def colours() -> str:
    """The style sheet that gives the page's variables their values, by light and by dark."""
    return _sheet("colours.css")


def page_style() -> str:
    """The style sheet of every page that Rhapsode writes, colours included."""
    return colours() + _sheet("page.css")


def _sheet(name: str) -> str:
    return (resources.files("rhapsode.base") / name).read_text(encoding="utf-8")
