"""Agreement of a ranker with its teacher on the same candidates. No judgments needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressor.bench.quality import Scores, best_first
from compressor.runtime.list_scores import kendall_tau


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Per-query figures; queries with fewer than two candidates have no order and are left out.

    Attributes:
        kendall_tau: float64 [n], τ-b in −1..1, ties corrected.
        overlap_at_10: float64 [n], shared documents of both top tens as a share of ten (of k where k < 10).
        squared_error: float64 [n], mean square of (ranker − teacher), each centered per query, in squared logits.
        score_std: mean standard deviation of the teacher's scores within a query, the yardstick of the error.
    """

    query_ids: tuple[str, ...]
    kendall_tau: np.ndarray
    overlap_at_10: np.ndarray
    squared_error: np.ndarray
    score_std: float


def agreement(scores: Scores, teacher: Scores) -> Agreement:
    """Compare two rankers' scores of the same candidates, query by query.

    Raises:
        ValueError: the two do not cover the same queries and candidates.
    """
    if scores.keys() != teacher.keys() or any(len(scores[q]) != len(teacher[q]) for q in scores):
        raise ValueError("agreement needs scores of the same candidates of the same queries")
    queries = tuple(query for query in teacher if len(teacher[query]) > 1)
    pairs = [(scores[query].astype(np.float64), teacher[query].astype(np.float64)) for query in queries]
    return Agreement(
        query_ids=queries,
        kendall_tau=np.array([kendall_tau(a, b) for a, b in pairs]),
        overlap_at_10=np.array([overlap(a, b, 10) for a, b in pairs]),
        squared_error=np.array([np.mean((a - a.mean() - (b - b.mean())) ** 2) for a, b in pairs]),
        score_std=float(np.mean([b.std() for _, b in pairs])) if pairs else 0.0,
    )


def overlap(a: np.ndarray, b: np.ndarray, depth: int) -> float:
    """Return the share of documents that both top lists of ``depth`` hold."""
    depth = min(depth, len(a))
    return len(set(best_first(a)[:depth].tolist()) & set(best_first(b)[:depth].tolist())) / depth
