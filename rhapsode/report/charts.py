"""The report's pictures: small SVG drawings whose colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from rhapsode.report.records import Records, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

# matplotlib draws in these stand-ins; the page's own variables take their place in the finished SVG.
INK, LINE, TRAIN, RAW, VALIDATION = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--soft", LINE: "--line", TRAIN: "--train", RAW: "--raw", VALIDATION: "--validation"}

STYLE = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "rhapsode",
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
}
SIZE = (4.6, 2.7)  # inches: text stays readable when the drawing is as narrow as a phone
POINTS = 400


def loss_over_time(records: Records) -> str:
    """Training and validation loss over minutes of training."""
    return _loss(records, "seconds", 1 / 60, "minutes of training")


def loss_over_tokens(records: Records) -> str:
    """The same over the tokens seen, on a logarithmic axis."""
    return _loss(records, "tokens", 1, "tokens seen", logarithmic=True)


def over_steps(
    records: Records, name: str, *, of: Literal["train", "validation"] = "train", scale: float = 1, smooth: bool = True
) -> str:
    """One column of the records of training, or of those of validation, over the steps."""
    series = records.train if of == "train" else records.validation
    steps, values = _column(series, "step"), _column(series, name) * scale
    keep = np.isfinite(steps) & np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if len(steps) < 2:
        return ""

    def draw(axes: Axes) -> None:
        shown = _shown(len(steps))
        line = _smoothed(values) if smooth else values
        axes.plot(steps[shown], line[shown], color=TRAIN)
        axes.set_xlabel("step")
        axes.set_xlim(0, steps[-1])
        axes.set_ylim(0, float(line[len(line) // 50 :].max()) * 1.1 or 1)

    return _svg(draw)


def _loss(records: Records, column: str, scale: float, label: str, *, logarithmic: bool = False) -> str:
    from matplotlib.ticker import NullFormatter

    x, loss = _column(records.train, column) * scale, _column(records.train, "loss")
    keep = np.isfinite(x) & np.isfinite(loss) & (x > 0)
    x, loss = x[keep], loss[keep]
    if len(x) < 2:
        return ""
    validation_x = _column(records.validation, column) * scale
    validation, bits = _column(records.validation, "loss"), _column(records.validation, "bits_per_byte")

    def draw(axes: Axes) -> None:
        smooth, shown = _smoothed(loss), _shown(len(x))
        axes.plot(x[shown], loss[shown], color=RAW, linewidth=0.9)
        axes.plot(x[shown], smooth[shown], color=TRAIN)
        known = np.isfinite(validation_x) & np.isfinite(validation) & (validation_x > 0)
        if known.any():
            axes.plot(
                validation_x[known], validation[known], color=VALIDATION, marker="o", markersize=3.5, clip_on=False
            )
        axes.set_xlabel(label)
        last = float(np.concatenate([x, validation_x[known]]).max())
        if logarithmic and last > 100 * x[0]:
            axes.set_xscale("log")
            axes.set_xlim(x[0], last)
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, last)
        both = np.concatenate([smooth[len(smooth) // 4 :], validation[known]])
        top = smooth[0] if logarithmic else smooth[len(smooth) // 50]
        low = float(both.min())
        axes.set_ylim(low - 0.05 * (float(top) - low), float(max(top, both[-1])) + 0.04 * (float(top) - low) + 1e-6)
        axes.set_ylabel("nats per token")
        ratio = _median(bits / validation)
        if ratio:
            right = axes.secondary_yaxis(
                "right", functions=(partial(np.multiply, ratio), partial(np.multiply, 1 / ratio))
            )
            right.set_ylabel("bits per byte")
            right.tick_params(length=0)
            right.spines["right"].set_visible(False)

    return _svg(draw)


def _svg(draw: Callable[[Axes], None]) -> str:
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_data_interval()[1] >= 1000:
                axis.set_major_formatter(EngFormatter(sep=" "))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_a_page(file.getvalue())


def _for_a_page(svg: str) -> str:
    """The <svg> element alone, in the page's colours and type, with no name that a second drawing has as well."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true"', svg, count=1)
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)


def _column(series: Series, name: str) -> Numbers:
    return np.asarray(series[name], dtype=np.float64)


def _smoothed(values: Numbers) -> Numbers:
    """The mean over the last fiftieth of the values, over less near the start."""
    index = np.arange(len(values))
    window = np.clip(index // 10, 1, max(1, len(values) // 50))
    total = np.concatenate([[0.0], np.cumsum(values)])
    smooth: Numbers = (total[index + 1] - total[index + 1 - window]) / window
    return smooth


def _shown(count: int) -> NDArray[np.int64]:
    """Which of `count` points are drawn: every one of the first few, then evenly spaced ones, and the last."""
    even = np.linspace(0, count - 1, min(count, POINTS))
    early = np.geomspace(1, count, min(count, POINTS)) - 1
    return np.unique(np.concatenate([even, early]).astype(np.int64))


def _median(values: Numbers) -> float:
    finite = [float(value) for value in values if math.isfinite(value) and value > 0]
    return float(np.median(finite)) if finite else 0.0
