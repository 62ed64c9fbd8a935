"""Curves in one line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from compressor.bench.plot_curves import Points, thinned

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 14


def sparkline(points: Points, width: int = _WIDTH) -> str:
    """Return a curve as blocks, one for each of ``width`` spans of its points; nothing where no value is finite.

    A curve of positive values over more than a decade, such as a loss, rises by its logarithm.
    """
    values = np.array([y for _, y in thinned([point for point in points if all(map(math.isfinite, point))], width)])
    if not len(values):
        return ""
    if values.min() > 0 and values.max() > 10 * values.min():
        values = np.log(values)
    span = float(np.ptp(values))
    heights = (values - values.min()) / span if span else np.full(len(values), 0.5)
    return "".join(_BLOCKS[round(float(height) * (len(_BLOCKS) - 1))] for height in heights)


def training_line(series: Mapping[str, Points]) -> str:
    """Return the total loss and the dev measures of a training pass in one line; nothing where it had none.

    Beside a loss stand its first and last value, beside a dev measure its last and, if better, its best.
    """
    parts: list[str] = []
    for name, points in series.items():
        values = [y for _, y in thinned(points) if math.isfinite(y)]
        if not values:
            continue
        if name == "loss":
            parts.insert(0, f"loss {sparkline(points)} {values[0]:.3g} → {values[-1]:.3g}")
        elif name.startswith("dev/"):
            best = f", best {max(values):.4f}" if max(values) > values[-1] else ""
            parts.append(f"{name.removeprefix('dev/')} {sparkline(points)} {values[-1]:.4f}{best}")
    return "   ".join(parts)
