"""How far scores have moved from exact ones, and how much of their order that has cost. No judgments are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from compressor.runtime.list_scores import kendall_tau

DEPTH = 10  # of the nDCG


@dataclass(frozen=True, kw_only=True)
class ScoreShift:
    """What became of the scores of some lists.

    Attributes:
        score_rmse: root mean square change in logits, each list's mean change taken out: it reorders nothing.
        raw_score_rmse: the same with nothing taken out.
        kendall_tau: τ-b between the orders before and after, mean over lists.
        ndcg_loss: what nDCG@10 lost whose gains are the places of the order before, mean over lists.
    """

    score_rmse: float
    raw_score_rmse: float
    kendall_tau: float
    ndcg_loss: float

    @property
    def squared(self) -> float:
        """The mean square of what can reorder, in squared logits: of small errors without relation, these add up."""
        return self.score_rmse**2

    def as_json(self) -> dict[str, float]:
        """Return all of it, in six digits, for a ranker's history."""
        return {name: digits(value) for name, value in asdict(self).items()}


def list_places(queries: Sequence[str]) -> list[np.ndarray]:
    """Return where each list of two or more pairs stands, int64 ``[k]`` each, by the query of every pair."""
    _, group = np.unique(np.asarray(queries), return_inverse=True)
    places = [np.flatnonzero(group == index) for index in range(group.max(initial=-1) + 1)]
    return [each for each in places if len(each) > 1]


def score_shift(scores: np.ndarray, reference: np.ndarray, lists: Sequence[np.ndarray]) -> ScoreShift:
    """Compare scores with exact ones.

    Args:
        scores, reference: float ``[n]``; of a list in first-stage order, which breaks ties.
        lists: places of each list's items, one list or more, from `list_places`.
    """
    pairs = [(scores[each].astype(np.float64), reference[each].astype(np.float64)) for each in lists]
    changes = [after - before for after, before in pairs]
    return ScoreShift(
        score_rmse=_root_mean_square([change - change.mean() for change in changes]),
        raw_score_rmse=_root_mean_square(changes),
        kendall_tau=float(np.mean([kendall_tau(after, before) for after, before in pairs])),
        ndcg_loss=float(np.mean([1 - ndcg_of_order(after, before) for after, before in pairs])),
    )


def ndcg_of_order(scores: np.ndarray, reference: np.ndarray, depth: int = DEPTH) -> float:
    """Return nDCG of one list when the order by ``reference`` is right: its best gains ``depth``, the next one less.

    Args:
        scores, reference: float ``[k]``; equal ones keep their order. Shorter lists gain from ``k`` down.
        depth: how many count.
    """
    depth = min(depth, len(scores))
    falling = np.arange(depth, 0, -1, dtype=np.float64)
    gains = np.zeros(len(scores))
    gains[np.argsort(-reference, kind="stable")[:depth]] = falling
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    found = gains[np.argsort(-scores, kind="stable")[:depth]]
    return float((found * discounts).sum() / (falling * discounts).sum())


def digits(value: float) -> float:
    """Return a measurement in six digits."""
    return float(f"{value:.6g}")


def _root_mean_square(parts: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(np.mean(np.concatenate(parts) ** 2)))
