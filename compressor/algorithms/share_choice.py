"""Shares of document tokens, brought from what was learned to a budget in multiply-adds. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from compressor.algorithms.budgets import BudgetError
from compressor.ranker.cost import macs_of_rows
from compressor.ranker.spec import KeepShareRule, RankerSpec

LEAST_SHARE = 0.001
_NEARLY_ALL = 0.99  # a share above is no rule's
_FIRST_OPEN = 0.9  # what a place starts with that is opened for the budget alone
_OPEN = 0.5
_STEPS = 40  # of a bisection
_DECIMALS = 4  # of a share

Cost = Callable[[Mapping[int, float]], float]


class LearnedShare(NamedTuple):
    """What was learned about one place: the share that stays where it is open, and how far it is, both from 0 to 1."""

    share: float
    gate: float

    @property
    def is_open(self) -> bool:
        """Whether there is to be a rule, budget allowing."""
        return self.gate >= _OPEN and self.share <= _NEARLY_ALL

    @property
    def gone(self) -> float:
        """Which share of the tokens that reach the place went, in the mean."""
        return self.gate * (1 - self.share)


def cost_of_shares(spec: RankerSpec, n_tokens: np.ndarray, n_document: np.ndarray) -> Cost:
    """Return what shares by place cost in multiply-adds over some pairs, as a share of those with all of their tokens.

    Args:
        spec: the ranker, with a rule behind each place; what it keeps is not read.
        n_tokens: of each pair, int64 ``[n]``.
        n_document: of them, the document's.
    """
    n_asking = np.minimum(n_tokens, np.maximum(0, n_tokens - n_document - 3) + 1)
    whole = macs_of_rows(spec, n_tokens, n_document, n_asking, {}).sum()

    def cost(shares: Mapping[int, float]) -> float:
        left = {place: KeepShareRule(share=share).n_left for place, share in shares.items()}
        return float(macs_of_rows(spec, n_tokens, n_document, n_asking, left).sum() / whole)

    return cost


def n_document_tokens(ids: np.ndarray, separator_id: int | None) -> int:
    """Return how many tokens of a row ``[n]`` are the document's: those behind its first separator that are none."""
    separates = ids == separator_id
    return int(((separates.cumsum() > 0) & ~separates).sum())


def shares_at_budget(learned: Mapping[int, LearnedShare], cost: Cost, budget: float) -> dict[int, float]:
    """Return shares at which the cost is the budget, just below it as it is no smooth one, by place.

    Places that are open keep one power of what they learned: which are smaller stay smaller. A place has no rule whose
    gate is closed, or at which nearly all stays. Where the budget cannot be met with those that are open, that one is
    opened next which let most go.

    Args:
        learned: by place.
        cost: what shares by place cost, from 1 without any.
        budget: above 0 and below 1.

    Raises:
        BudgetError: even with the least shares at all places it costs more.
    """
    in_turn = sorted(learned, key=lambda place: (not learned[place].is_open, -learned[place].gone, place))
    n_open = sum(one.is_open for one in learned.values())
    for count in range(max(1, n_open), len(learned) + 1):
        chosen = sorted(in_turn[:count])
        if cost(dict.fromkeys(chosen, LEAST_SHARE)) <= budget:
            return _at_budget({place: learned[place] for place in chosen}, cost, budget)
    raise BudgetError(cost(dict.fromkeys(learned, LEAST_SHARE)))


def _at_budget(learned: Mapping[int, LearnedShare], cost: Cost, budget: float) -> dict[int, float]:
    starts = {
        place: max(LEAST_SHARE, one.share if one.is_open else min(one.share, _FIRST_OPEN))
        for place, one in learned.items()
    }

    def at(power: float) -> dict[int, float]:
        found = {place: max(LEAST_SHARE, round(start**power, _DECIMALS)) for place, start in starts.items()}
        return {place: share for place, share in found.items() if share <= _NEARLY_ALL}

    low, high = 0.0, 1.0
    while cost(at(high)) > budget:  # ends: the least shares at all of these places cost less
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) > budget else (low, middle)
    return at(high)
