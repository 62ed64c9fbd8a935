"""Scores of one query's candidates as one order, also where a cascade dropped some of them, and how orders agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GAP = np.float32(1.0)  # in logits, between stages; far above fp32's last bit


@dataclass(frozen=True, kw_only=True)
class ListScores:
    """One query's candidates, scored together.

    Attributes:
        scores: float32 ``[C]``; sorting by them, equal ones in the order of the input, gives the ranking. Those of
            candidates that reached the head are its raw logits.
        stages: int64 ``[C]``, how many stages each one passed; all of them means that it reached the head. None where
            there is no cascade.
    """

    scores: np.ndarray
    stages: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document's place in a ranking: its index in the input, and its score (raw logit or dot product).

    Where a cascade dropped the document, the score is its exit's logit, lowered so that it stands below all that went
    further; it compares within this ranking alone. ``stage``: how many stages of the cascade it passed.
    """

    index: int
    score: float
    stage: int | None = None


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the ``count`` highest scores, ascending; of equal ones the first. int64 ``[count]``."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def in_one_order(logits: np.ndarray, stages: np.ndarray) -> ListScores:
    """Join the logits of several stages: a candidate that went further stands before all that did not.

    Logits of different exits do not compare. Those of each stage are lowered together, by as much as brings its best a
    logit below the worst that went further, and not at all where they lie there already.

    Args:
        logits: float32 ``[C]``, of the last stage that each candidate reached.
        stages: int64 ``[C]``, how many stages it passed.
    """
    scores = logits.astype(np.float32)
    floor = np.float32(np.inf)
    for stage in sorted(set(stages.tolist()), reverse=True):
        members = stages == stage
        scores[members] -= max(np.float32(0), scores[members].max() - floor + (_GAP if np.isfinite(floor) else 0))
        floor = scores[members].min()
    return ListScores(scores=scores, stages=stages)


def ranked(found: ListScores, top_k: int | None = None) -> list[Ranked]:
    """Return indices, scores and stages, best first; equal scores keep their order."""
    order = np.argsort(-found.scores, kind="stable")[:top_k]
    stages = [None] * len(order) if found.stages is None else found.stages[order].tolist()
    return [Ranked(int(one), float(found.scores[one]), stage) for one, stage in zip(order, stages, strict=True)]


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Return Kendall's τ-b of two score lists [k], k ≥ 2.

    Where all scores of one list are equal, τ-b is 0/0: 1 is returned if both are so (the order agrees, there is
    none), else 0.
    """
    upper = np.triu_indices(len(a), 1)
    sign_a = np.sign(a[:, None] - a[None, :])[upper]
    sign_b = np.sign(b[:, None] - b[None, :])[upper]
    ordered_a, ordered_b = float(np.abs(sign_a).sum()), float(np.abs(sign_b).sum())
    if not ordered_a or not ordered_b:
        return 1.0 if ordered_a == ordered_b else 0.0
    return float(sign_a @ sign_b) / float(np.sqrt(ordered_a * ordered_b))
