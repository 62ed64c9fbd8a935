"""Which heads, neurons and residual dimensions stay within a budget, where each has a score of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.algorithms.budgets import BudgetError

_ROUNDING = 1e-6  # of shares that are sums of thousands; any unit costs more
_LEFT_OUT = 8

Block = tuple[int, str]  # a layer, and `attention` or `ffn`


@dataclass(frozen=True, kw_only=True)
class WidthCosts:
    """What a shape costs, as a share of the whole ranker: linear in its units, and in its residual dimensions.

    With ``counts = [1, heads of each layer, neurons of each layer]`` it is ``(fixed + width_share * scaled) · counts``.

    Attributes:
        fixed, scaled: float64 ``[1 + 2 * layers]``.
    """

    fixed: Tensor
    scaled: Tensor

    def of(self, heads: Tensor, neurons: Tensor, width_share: Tensor | float = 1.0) -> Tensor:
        """Return the cost of so many heads and neurons in each layer, ``[layers]`` each, fractions of one too."""
        counts = torch.cat([heads.new_ones(1), heads, neurons])
        return ((self.fixed + width_share * self.scaled).to(counts) * counts).sum()

    def of_units(self, width_share: float = 1.0) -> tuple[float, list[float], list[float]]:
        """Return the cost of no units at all, of a head of each layer and of a neuron of each layer."""
        each: list[float] = (self.fixed + width_share * self.scaled).tolist()
        n_layers = len(each) // 2
        return each[0], each[1 : 1 + n_layers], each[1 + n_layers :]


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """How much each unit deserves to stay; scores of different kinds and layers are compared.

    Attributes:
        heads, neurons: per layer, float ``[units]``.
        residual: float ``[width]``; None where all dimensions stay.
    """

    heads: Sequence[Tensor]
    neurons: Sequence[Tensor]
    residual: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ChosenUnits:
    """What stays: int64, ascending, per layer, and of the residual stream (None: all of it)."""

    heads: list[Tensor]
    neurons: list[Tensor]
    residual: Tensor | None = None


def best_units(
    scores: UnitScores, costs: WidthCosts, budget: float, round_to: int, needed: Collection[Block] = ()
) -> ChosenUnits:
    """Return the units with the best scores that the budget pays for: one threshold for all of them.

    Of the residual stream as many dimensions stay as are above the threshold at which all would be paid for, rounded
    down; then heads, and neurons in groups, are taken in the order of their scores until nothing more can be paid.

    Args:
        scores: of all units.
        costs: of units, as shares of the whole.
        budget: the share that may stay.
        round_to: neurons, and residual dimensions, stay in multiples of this.
        needed: blocks of which one head, or one group of neurons, stays whatever its score.

    Raises:
        BudgetError: what has to stay costs more.
    """
    residual = None
    share = 1.0
    if scores.residual is not None:
        residual = _best(scores.residual, _n_above_threshold(scores, scores.residual, costs, budget, round_to))
        share = len(residual) / len(scores.residual)
    base, *unit_costs = costs.of_units(share)
    orders: dict[Block, Tensor] = {}
    items: list[tuple[bool, float, int, Block, int, float]] = []
    for block, group, found, prices in (
        ("attention", 1, scores.heads, unit_costs[0]),
        ("ffn", round_to, scores.neurons, unit_costs[1]),
    ):
        for index, values in enumerate(found):
            place = (index, block)
            ordered = values.detach().float().cpu().sort(descending=True, stable=True)
            orders[place] = ordered.indices
            for rank, each in enumerate(ordered.values.split(group) if len(values) else ()):
                is_optional = bool(rank) or place not in needed
                items.append((is_optional, -float(each.mean()), rank, place, len(each), len(each) * prices[index]))
    left, counts, closed = budget - base, dict.fromkeys(orders, 0), set[Block]()
    for is_optional, _, _, place, n_units, price in sorted(items):
        if price > left + _ROUNDING:
            if not is_optional:
                raise BudgetError(base + price)
            closed.add(place)  # what comes later of this block has lower scores
        elif place not in closed:
            left -= price
            counts[place] += n_units
    if left < -_ROUNDING:
        raise BudgetError(base)
    stay = {place: order[: counts[place]].sort().values for place, order in orders.items()}
    return ChosenUnits(
        heads=[stay[index, "attention"] for index in range(len(scores.heads))],
        neurons=[stay[index, "ffn"] for index in range(len(scores.neurons))],
        residual=residual,
    )


def paid_for(scores: Tensor, prices: Tensor, budget: float) -> Tensor:
    """Return which units stay, float 0 or 1 ``[n]``: those with the best scores, as many as can be paid for.

    What is too dear where the budget ends is left out, a few times, for cheaper ones behind it.

    Args:
        scores: ``[n]``; of equal ones the first stays.
        prices: of each unit, ``[n]``.
        budget: most that they may cost together.
    """
    order = scores.detach().sort(descending=True, stable=True).indices
    ordered, is_wanted = prices[order].double(), torch.ones_like(order, dtype=torch.bool)
    for _ in range(_LEFT_OUT + 1):
        stays = is_wanted & ((ordered * is_wanted).cumsum(0) <= budget + _ROUNDING)
        beyond = is_wanted & ~stays
        if not beyond.any():
            break
        is_wanted[beyond.int().argmax()] = False
    return torch.zeros_like(scores).index_copy(0, order, stays.to(scores.dtype))


def _n_above_threshold(scores: UnitScores, residual: Tensor, costs: WidthCosts, budget: float, round_to: int) -> int:
    width = len(residual)
    thresholds = torch.cat([*scores.heads, *scores.neurons, residual]).detach().float().cpu().unique()

    def cost(threshold: Tensor) -> float:
        def above(values: Sequence[Tensor]) -> Tensor:
            return torch.tensor([float((each.detach().cpu() >= threshold).sum()) for each in values])

        return float(costs.of(above(scores.heads), above(scores.neurons), above([residual])[0] / width))

    low, high = 0, len(thresholds) - 1
    while low < high:  # the lowest threshold that can be paid, or the highest there is
        middle = (low + high) // 2
        low, high = (low, middle) if cost(thresholds[middle]) <= budget else (middle + 1, high)
    n_above = int((residual.detach().cpu() >= thresholds[low]).sum())
    return width if n_above == width else max(n_above // round_to * round_to, min(round_to, width))


def _best(values: Tensor, count: int) -> Tensor:
    return values.detach().cpu().sort(descending=True, stable=True).indices[:count].sort().values
