"""The report's pictures: small SVG drawings whose colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from rhapsode.base.drawing import FAINT, FIRST, SECOND, as_svg, drawing
from rhapsode.report.records import Records, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

TRAIN, VALIDATION, RAW = FIRST, SECOND, FAINT
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
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with drawing():
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y")
        draw(axes)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_data_interval()[1] >= 1000:
            axis.set_major_formatter(EngFormatter(sep=" "))
    return as_svg(figure)


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
