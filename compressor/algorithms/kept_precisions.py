"""Rankers that are rounded but for some linears, which compute in a higher precision, and how few of these will do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from compressor.algorithms.quantization import quantized
from compressor.algorithms.score_shifts import ScoreShift, list_places, score_shift
from compressor.algorithms.sensitivity import Rounding
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import LinearPrecision, TablePrecision


@dataclass(frozen=True, kw_only=True)
class RoundedBut:
    """A ranker that is rounded but for some groups of linears.

    Attributes:
        ranker: the exact one.
        low: by group, what its linears are rounded to.
        high: by group, what they compute in where the group is kept.
        table: the precision of lookup tables; None leaves them.
        ranges: of inputs, for ``int8_static``.
    """

    ranker: Ranker
    low: Mapping[str, Rounding]
    high: Mapping[str, Rounding]
    table: TablePrecision | None
    ranges: Mapping[str, Tensor]

    def precisions(self, kept: Collection[str]) -> dict[str, LinearPrecision]:
        """Return the precision of every linear that is not fp32, with these groups kept."""
        found = {
            name: precision
            for group in self.low
            for name, precision in (self.high if group in kept else self.low)[group].items()
        }
        return {name: precision for name, precision in found.items() if precision.kind != "fp32"}

    def shift(self, kept: Collection[str], pairs: Sequence[tuple[str, str]], exact: np.ndarray) -> ScoreShift:
        """Return how far scores move with these groups kept, as the composed ranker gives them.

        Args:
            kept: groups.
            pairs: (query, document) texts; pairs of a query form its list.
            exact: their exact scores, float ``[n]``.
        """
        rounded = quantized(self.ranker, self.precisions(kept), self.table, self.ranges)
        return score_shift(rounded.score(pairs), exact, list_places([query for query, _ in pairs]))


def worth_keeping(gains: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """Return the groups that gain by a higher precision, those first that gain most per unit of cost.

    Args:
        gains: what keeping each takes off the squared error.
        costs: what keeping it costs, above zero.
    """
    gaining = [name for name, gain in gains.items() if gain > 0]
    return sorted(gaining, key=lambda name: -gains[name] / costs[name])


def fewest_kept(n: int, holds: Callable[[int], bool]) -> int | None:
    """Return how many of ``n`` groups, in their order, have to be kept for a limit to hold; None where all do not do.

    Keeping more lowers the error, by and large, so the number is found by bisection. Tried were that it holds, and that
    it does not with one less.

    Args:
        n: how many there are.
        holds: whether the limit holds with the first so many kept; asked once for each number.
    """
    if holds(0):
        return 0
    if not n or not holds(n):
        return None
    too_few, enough = 0, n
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if holds(middle) else (middle, enough)
    return enough
