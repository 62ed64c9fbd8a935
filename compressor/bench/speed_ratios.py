"""Speed-ups as medians of paired ratios, with bootstrap bounds; and how such a ratio changed between two runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2_000
_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Speedup:
    """How many times as fast: a median of paired ratios, each end of the interval a one-sided 95 % bound."""

    ratio: float
    low: float
    high: float


def speedup(baseline_s: np.ndarray, row_s: np.ndarray, *, seed: int = 0) -> Speedup:
    """Compare two rows' times, float64 [rounds, queries], taken in the same turns.

    The speed-up is the median over all turns of baseline time / row time. A ratio of total times would let one long
    query, or one hiccup of the machine, speak for all. The interval resamples queries, and rounds within each: turns
    of one query resemble each other, and more rounds do not make more queries.
    """
    ratios = baseline_s / row_s
    rng = np.random.default_rng(seed)
    medians = _resampled_medians(ratios, _drawn_queries(ratios, rng), rng)
    return _bounded(float(np.median(ratios)), medians)


def speedup_change(old: np.ndarray, new: np.ndarray, *, same_queries: bool, seed: int = 0) -> Speedup:
    """Compare a row's speed-ups over a baseline in two runs: the new median ratio / the old one; above 1 is faster now.

    Args:
        old, new: baseline time / row time of every turn, float64 [rounds, queries]; the runs may differ in both.
        same_queries: column q is the same query in both, so that both lose and gain it together when queries are
            resampled. Rounds of two runs have nothing in common and are resampled apart.
    """
    rng = np.random.default_rng(seed)
    old_queries = _drawn_queries(old, rng)
    new_queries = old_queries if same_queries else _drawn_queries(new, rng)
    medians = _resampled_medians(new, new_queries, rng) / _resampled_medians(old, old_queries, rng)
    return _bounded(float(np.median(new) / np.median(old)), medians)


def spread_of_rounds(ratios: np.ndarray) -> float:
    """Return how far the rounds of one run lie apart: the highest of their median ratios / the lowest, less 1.

    Args:
        ratios: baseline time / row time, float64 [rounds, queries].
    """
    medians = np.median(ratios, axis=1)
    return float(medians.max() / medians.min() - 1)


def _drawn_queries(ratios: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n_queries = ratios.shape[1]
    return rng.integers(0, n_queries, (_RESAMPLES, n_queries, 1))


def _resampled_medians(ratios: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n_rounds = len(ratios)
    turns = rng.integers(0, n_rounds, (_RESAMPLES, queries.shape[1], n_rounds))
    medians: np.ndarray = np.median(ratios[turns, queries].reshape(_RESAMPLES, -1), axis=1)
    return medians


def _bounded(ratio: float, medians: np.ndarray) -> Speedup:
    low, high = np.quantile(medians, [_LEVEL, 1 - _LEVEL])
    return Speedup(ratio=ratio, low=float(low), high=float(high))
