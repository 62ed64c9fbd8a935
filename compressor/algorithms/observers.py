"""What range a fixed activation scale shall cover: all that was seen, most of it, or what loses least information."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ObserverKind = Literal["min_max", "percentile", "entropy"]

N_BINS = 8192
_LEVELS = 256  # of uint8
_CANDIDATES = 100
_SMOOTHING = 1e-4  # of all mass, over all bins: what a range cannot express costs much, but not infinitely much


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often numbers were seen between the lowest and the highest one.

    Attributes:
        low, high: the lowest and the highest number, 0 among them.
        counts: float64 ``[N_BINS]``, for bins of equal width.
    """

    low: float
    high: float
    counts: Tensor

    @property
    def edges(self) -> Tensor:
        """Where bins begin and end, float64 ``[N_BINS + 1]``."""
        return torch.linspace(self.low, self.high, len(self.counts) + 1, dtype=torch.float64)


class Observer(ABC):
    """Chooses the range of uint8 activations from what was seen of them. Zero is always in it."""

    needs_histogram = True

    @abstractmethod
    def range_of(self, seen: Histogram) -> tuple[float, float]:
        """Return the lowest and the highest number that is not cut off."""


class MinMax(Observer):
    """All that was seen: one outlier makes every step coarse."""

    needs_histogram = False

    def range_of(self, seen: Histogram) -> tuple[float, float]:
        return seen.low, seen.high


@dataclass(frozen=True)
class Percentile(Observer):
    """``percentile`` of what was seen; of the rest, half is cut off at either end."""

    percentile: float

    def range_of(self, seen: Histogram) -> tuple[float, float]:
        if seen.low == seen.high:
            return seen.low, seen.high
        tail = (1 - self.percentile / 100) / 2
        below = torch.cat([torch.zeros(1, dtype=torch.float64), seen.counts.cumsum(0) / seen.counts.sum()])
        # Whole bins: the last edge with no more than the tail below it, and the first with no more above it.
        first = int((below <= tail).nonzero().max())
        last = int((below >= 1 - tail).nonzero().min())
        return min(float(seen.edges[first]), 0.0), max(float(seen.edges[last]), 0.0)


class Entropy(Observer):
    """The range whose 256 levels tell most about what was seen: least Kullback-Leibler divergence.

    As TensorRT's calibration (Migacz, GTC 2017) for a range with two ends: a bound on magnitudes is tried out, and an
    end that what was seen does not reach stays where it is, so that the short negative side of a GELU is never cut for
    the sake of its long positive one.
    """

    def range_of(self, seen: Histogram) -> tuple[float, float]:
        if seen.low == seen.high:
            return seen.low, seen.high
        edges = seen.edges
        largest = max(-seen.low, seen.high)
        best = (float("inf"), seen.low, seen.high)
        for share in torch.linspace(1, 1 / _CANDIDATES, _CANDIDATES).tolist():  # the widest of equally good ones
            bound = share * largest
            first = int((edges[:-1] < -bound).sum())
            last = len(seen.counts) - int((edges[1:] > bound).sum())
            if last - first < _LEVELS:
                break  # no wider than its levels: nothing would be rounded, and all be cut off
            divergence = _divergence(seen.counts, first, last)
            if divergence < best[0] * (1 - 1e-9):
                best = (divergence, float(edges[first]), float(edges[last]))
        return min(best[1], 0.0), max(best[2], 0.0)


def _divergence(counts: Tensor, first: int, last: int) -> float:
    """Return KL(seen || expressed), where a range of bins is expressed in 256 levels and the rest comes to its ends."""
    inside = counts[first:last]
    seen = inside.clone()
    seen[0] += counts[:first].sum()
    seen[-1] += counts[last:].sum()
    level = torch.arange(len(inside)) * _LEVELS // len(inside)
    is_used = (inside > 0).double()
    mass = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, level, inside)
    n_used = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, level, is_used)
    expressed = (mass / n_used.clamp(min=1))[level] * is_used  # spread over the bins of a level that hold anything
    share = _smoothed(seen)
    return float((share * (share / _smoothed(expressed)).log()).sum())


def _smoothed(counts: Tensor) -> Tensor:
    return (counts / counts.sum().clamp(min=1)) * (1 - _SMOOTHING) + _SMOOTHING / len(counts)


def histogram_counts(values: Tensor, low: float, high: float) -> Tensor:
    """Return how many values lie in each of `N_BINS` bins of equal width, float64; none where all are one number."""
    if low == high:
        return torch.zeros(N_BINS, dtype=torch.float64)
    return torch.histc(values.float(), N_BINS, low, high).double()
