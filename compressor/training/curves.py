"""What a training records: curves over pairs seen, and the best weights on dev data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Points = list[tuple[float, float]]

MAX_POINTS = 200  # of a curve: more than a plot can show


@dataclass(kw_only=True)
class CurveBook:
    """Curves by name, point by point."""

    points: dict[str, Points] = field(default_factory=dict)

    def record(self, pairs: int, values: Mapping[str, float]) -> None:
        """Add one point to each named curve, at so many pairs seen."""
        for name, value in values.items():
            self.points.setdefault(name, []).append((float(pairs), float(value)))

    def last(self, name: str) -> float | None:
        """Return a curve's last value, or None where it has none."""
        return self.points[name][-1][1] if self.points.get(name) else None

    def thinned(self) -> dict[str, Points]:
        """Return the curves with at most `MAX_POINTS` points each: means over stretches of equal length."""
        return {name: _thinned(points) for name, points in self.points.items()}

    def restore(self, points: Mapping[str, Any]) -> None:
        """Take over what JSON made of ``points``."""
        self.points = {name: [(x, y) for x, y in curve] for name, curve in points.items()}


@dataclass(kw_only=True)
class BestOnDev:
    """The best weights so far by the dev metric, higher being better.

    Attributes:
        patience: evaluations without a better one before training should stop; None never stops.
    """

    patience: int | None
    value: float = -math.inf
    at: int = 0
    n_evaluations: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def take(self, value: float, weights: Mapping[str, Tensor]) -> None:
        """Take an evaluation in."""
        self.n_evaluations += 1
        if value > self.value:
            self.value, self.at = value, self.n_evaluations
            self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.n_evaluations - self.at >= self.patience

    def counters(self) -> dict[str, Any]:
        """Return all but the weights, as JSON."""
        return {"value": self.value if self.weights else None, "at": self.at, "n_evaluations": self.n_evaluations}

    def restore(self, counters: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
        """Take over what `counters` returned, with the weights."""
        self.value = -math.inf if counters["value"] is None else counters["value"]
        self.at, self.n_evaluations, self.weights = counters["at"], counters["n_evaluations"], weights


def _thinned(points: Points) -> Points:
    size = -(-len(points) // MAX_POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    return [(stretch[-1][0], float(np.mean([y for _, y in stretch]))) for stretch in stretches]
