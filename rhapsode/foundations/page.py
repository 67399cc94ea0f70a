"""The page that a demonstration leaves: text, formulas, figures, films, tables; one file without scripts or network.

    page = Page("Hopfield networks", "A memory that settles into the valleys of an energy")
    page.fact("Patterns stored", "13", "of 100 units")
    page.section("Falling down").paragraph("No step of an asynchronous run raises the energy.")
    with drawing():
        figure = Figure(figsize=HALF, layout="constrained")
        figure.add_subplot().plot(energies)
    page.figure(figure, "Energy after each update.", name="energy")
    page.write(Path("hopfield.html"))

Each method returns the page, so that calls can be chained. `rhapsode foundations NAME` writes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from rhapsode import __version__
from rhapsode.base.drawing import as_svg, colours, drawing, page_style
from rhapsode.base.errors import InputError
from rhapsode.base.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

HALF, WHOLE = (4.6, 2.9), (9.6, 3.2)
"""Sizes of figures in inches: half as wide as the page, and as wide. A figure is shown as wide as its inches say."""

REMS_PER_INCH = 6.7  # 9.6 inches fill the page, whose text has 65 rem; two of 4.6 stand beside each other
SECONDS_PER_FRAME = 0.35
LAST_FRAME_COUNTS = 6  # the end of a film stays for so many frames before it begins anew
MOST_FRAMES = 100
FORMULA_SIZE = 17.0  # units of the drawing for one em of the text around it


class Page:
    """A page that grows from top to bottom.

    Args:
        title: its name.
        subtitle: what it is about, in a sentence.
    """

    def __init__(self, title: str, subtitle: str) -> None:
        self.title, self.subtitle = title, subtitle
        self.facts: list[tuple[str, str, str]] = []
        self._blocks: list[dict[str, Any]] = []
        self._next: list[tuple[str, str]] = []
        self._pictures: dict[str, str] = {}

    def fact(self, name: str, value: str, note: str = "") -> Self:
        """A number that counts: it stands at the top of the page, and the command prints it."""
        self.facts.append((name, value, note))
        return self

    def section(self, title: str) -> Self:
        """What follows is about `title`."""
        return self._add("section", title=title)

    def paragraph(self, text: str) -> Self:
        """A paragraph of plain text; line ends in it are spaces. Words between ` are set as code."""
        parts = re.split(r"`([^`]+)`", " ".join(text.split()))
        return self._add("paragraph", parts=[(bool(number % 2), part) for number, part in enumerate(parts) if part])

    def formula(self, tex: str, meaning: str = "") -> Self:
        r"""A formula on a line of its own, in the TeX that matplotlib knows, as r"E = -\frac{1}{2} s^T W s".

        Args:
            meaning: what its letters stand for, in words.
        """
        return self._add("formula", svg=_formula(tex), tex=tex, meaning=meaning)

    def figure(self, figure: Figure | Sequence[Figure], caption: str, *, name: str | None = None) -> Self:
        """A figure, or a film of several of one size, which can be stopped and stepped through.

        Draw inside `with drawing():`, with `HALF` or `WHOLE` as the size and layout="constrained", and leave the
        colours to it or take those of `rhapsode.base.drawing`: then the figure follows light and dark. Neighbouring
        figures of half the width stand beside each other. Of dots by the thousand, draw a part: each one is in the
        file, and what is rasterized has lost the page's colours.

        Args:
            caption: what there is to see, in a sentence or two.
            name: the picture's name for `write_pictures`; without one it is on the page only.

        Raises:
            ValueError: there is no frame, too many, frames differ in size, or the name is taken.
        """
        frames = [figure] if not isinstance(figure, Sequence) else list(figure)
        if not 0 < len(frames) <= MOST_FRAMES:
            raise ValueError(f"a film has 1 to {MOST_FRAMES} frames, not {len(frames)}")
        if len({tuple(frame.get_size_inches()) for frame in frames}) > 1:
            raise ValueError("the frames of a film differ in size")
        if name in self._pictures:
            raise ValueError(f"there is a picture {name!r} already")
        number = sum(block["kind"] == "figure" for block in self._blocks)
        drawn = [as_svg(frame, f"{number}.{place}") for place, frame in enumerate(frames)]
        width = float(frames[0].get_size_inches()[0]) * REMS_PER_INCH
        if name is not None:
            self._pictures[name] = _alone(drawn, caption)
        return self._add("figure", frames=drawn, caption=caption, film=f"film-{number}", width=f"{width:.1f}rem")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Self:
        """A table; every value is shown as `str` gives it, and all but the first of a row as a number."""
        return self._add("table", head=list(head), rows=[[*map(str, row)] for row in rows], caption=caption)

    def next(self, purpose: str, command: str) -> Self:
        """A command that the reader may want to type now; they stand at the end of the page."""
        self._next.append((purpose, command))
        return self

    def write(self, path: Path) -> Path:
        """Write the page and return its path. Whatever there was is replaced.

        Raises:
            InputError: the folder of `path` does not exist.
        """
        import jinja2
        from markupsafe import Markup

        _require_folder(path)
        package = resources.files("rhapsode.foundations")
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        # Our own drawings and style sheets: the only things on the page that are not escaped.
        environment.filters["drawn"] = Markup
        blocks = [(kind, list(group)) for kind, group in groupby(self._blocks, key=lambda block: block["kind"])]
        films = [block for block in self._blocks if block["kind"] == "figure" and len(block["frames"]) > 1]
        own_style = (package / "page.css").read_text(encoding="utf-8")
        page = environment.from_string((package / "page.html").read_text(encoding="utf-8")).render(
            style="".join([page_style(), own_style, _film_style(films), _chosen(films)]),
            title=self.title,
            subtitle=self.subtitle,
            facts=self.facts,
            blocks=blocks,
            next=self._next,
            version=__version__,
        )
        write_atomically(path, page.encode("utf-8", errors="replace"))
        return path

    def write_pictures(self, folder: Path, prefix: str = "") -> list[Path]:
        """Write every figure that has a name as an SVG file of its own, `prefix` before its name; films go on moving.

        Raises:
            InputError: `folder` does not exist.
        """
        paths = {folder / f"{prefix}{name}.svg": svg for name, svg in self._pictures.items()}
        for path, svg in paths.items():
            _require_folder(path)
            write_atomically(path, svg)
        return list(paths)

    def _add(self, kind: str, **content: Any) -> Self:
        self._blocks.append({"kind": kind, **content})
        return self


def gallery(
    pictures: npt.ArrayLike,
    columns: int,
    *,
    titles: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    width: float = HALF[0],
) -> Figure:
    """Pictures side by side, black at `low` and white at `high`: filters, digits, patterns.

    Args:
        pictures: (pictures, height, width), in reading order.
        columns: so many in a row.
        titles: what stands above the first pictures.
        low, high: without them, the least and the greatest of all numbers.
        width: of the figure, in inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    images = np.asarray(pictures, dtype=np.float64)
    rows = -(-len(images) // columns)
    low = float(images.min()) if low is None else low
    high = float(images.max()) if high is None else high
    cell = width / columns
    height = cell * images.shape[1] / images.shape[2] + (0.22 if titles else 0)
    with drawing():
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        figure = Figure(figsize=(width, rows * height), layout=layout)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, image in zip(grid, images, strict=False):
            axes.imshow(image, vmin=low, vmax=high)
        for axes, title in zip(grid, titles, strict=False):
            axes.set_title(title, fontsize=8.5, pad=3)
    return figure


def _formula(tex: str) -> str:
    """A formula as an <svg> of outlines, as high as its letters are in the text around it."""
    from matplotlib import rc_context
    from matplotlib.textpath import TextPath

    with rc_context({"mathtext.fontset": "stix"}):
        outline: Outline = TextPath((0, 0), f"${tex}$", size=FORMULA_SIZE)
    box = outline.get_extents()
    x, y, width, height = box.x0 - 1, -box.y1 - 1, box.width + 2, box.height + 2
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # matplotlib's codes of a path, as SVG spells them
    steps = [
        letters[int(code)] + ("" if code == 79 else " ".join(f"{number:.2f}" for number in points * _flips(points)))
        for points, code in outline.iter_segments(simplify=False)
    ]
    style = f"width: {width / FORMULA_SIZE:.2f}em"
    view = f"{x:.2f} {y:.2f} {width:.2f} {height:.2f}"
    return f'<svg aria-hidden="true" viewBox="{view}" style="{style}"><path d="{"".join(steps)}"/></svg>'


def _flips(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Signs for x, y, x, y, ...: matplotlib counts upwards, SVG downwards."""
    return np.tile([1.0, -1.0], len(points) // 2)


def _alone(frames: Sequence[str], caption: str) -> str:
    """A drawing, or a film, as an SVG file that needs no page around it."""
    from markupsafe import escape

    view = re.search(r'viewBox="([^"]+)"', frames[0])
    assert view is not None
    _, _, width, height = view[1].split()
    film: Mapping[str, Any] = {"film": "film", "frames": frames}
    type_ = "svg { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }\n"
    moving = _film_style([film]).replace(".film:checked ~ ", "") if len(frames) > 1 else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view[1]}">\n'
        f"<title>{escape(caption)}</title>\n<style>\n{colours()}{type_}{moving}</style>\n"
        f'<rect width="{width}" height="{height}" fill="var(--paper)"/>\n'
        f'<g class="film frames">\n{"".join(f"<g>{frame}</g>" for frame in frames)}</g>\n</svg>\n'
    )


def _film_style(films: Sequence[Mapping[str, Any]]) -> str:
    """The style sheet that shows the frames of films one after another.

    It can do that without any script: each frame is seen for its share of the film, in its turn.
    """
    if not films:
        return ""
    rules: list[str] = []
    for film in films:
        name, count = film["film"], len(film["frames"])
        total = count - 1 + LAST_FRAME_COUNTS
        seconds = f"{total * SECONDS_PER_FRAME:.2f}s"
        for kind, share in (("", 1 / total), ("-last", LAST_FRAME_COUNTS / total)):
            steps = f"0% {{ visibility: visible; }} {100 * share:.3f}% {{ visibility: hidden; }}"
            rules.append(f"@keyframes {name}{kind} {{ {steps} }}")
        playing = f".{name}:checked ~ .frames > "
        rules.append(f"{playing}* {{ animation: {name} {seconds} step-end infinite; visibility: hidden; }}")
        rules.append(f"{playing}:last-child {{ animation-name: {name}-last; }}")
        rules += [
            f"{playing}:nth-child({number + 1}) {{ animation-delay: {number * SECONDS_PER_FRAME:.2f}s; }}"
            for number in range(1, count)
        ]
    still = [f".{film['film']}:checked ~ .frames > " for film in films]
    rules.append("@media print, (prefers-reduced-motion: reduce) {")
    rules += [f"{each}* {{ animation: none; }} {each}:last-child {{ visibility: visible; }}" for each in still]
    rules.append("}")
    return "\n".join(rules) + "\n"


def _chosen(films: Sequence[Mapping[str, Any]]) -> str:
    """The style sheet that shows the frame whose button was pressed: the first button plays them all."""
    return "".join(
        f"figure > input:nth-of-type({frame + 1}):checked ~ .frames > :nth-child({frame}) {{ visibility: visible; }}\n"
        for frame in range(1, max((len(film["frames"]) for film in films), default=0) + 1)
    )


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError("its folder does not exist", where=str(path), todo="Make it, or choose another.")
