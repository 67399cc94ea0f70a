"""Letters as patterns of -1 and +1, drawn on the spot: what the memories of `hopfield` and `attention` keep."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

FINER = 8  # points across each pixel, which is ink where half of them are


def letters(text: str, side: int) -> npt.NDArray[np.float64]:
    """The letters of `text` (letters, side * side), row by row: +1 is ink, -1 is paper."""
    import matplotlib.style
    from matplotlib.figure import Figure

    drawn = []
    with matplotlib.style.context("default"):
        for letter in text:
            figure = Figure(figsize=(1, 1), dpi=side * FINER)
            font = {"family": "DejaVu Sans", "weight": "bold", "size": 80}
            figure.text(0.5, 0.48, letter, ha="center", va="center_baseline", fontdict=font)
            file = io.BytesIO()
            figure.savefig(file, format="rgba")
            red = np.frombuffer(file.getvalue(), dtype=np.uint8)[::4]
            points = red.reshape(side, FINER, side, FINER)
            drawn.append(np.where(points.mean(axis=(1, 3)) < 128, 1.0, -1.0).ravel())
    return np.stack(drawn)
