"""Sharing a budget out: how much of each part may stay, where each part tells what its loss would be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BudgetError(ValueError):
    """No choice is cheap enough: what the cheapest one costs."""

    def __init__(self, least: float) -> None:
        super().__init__(f"the cheapest choice costs {least:g}")
        self.least = least


def shared_out(losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float) -> list[int]:
    """Choose one option of each part, so that the sum of losses is small and the sum of costs within the budget.

    The best choice for a price per unit of cost (a Lagrange multiplier) is best for what it costs; the price is found
    by bisection, and what is left of the budget is then spent where it helps most.

    Args:
        losses: for each part, the loss of each option.
        costs: for each part, the cost of each option, in the same order, ascending.
        budget: most that may be spent.

    Returns:
        The option of each part.

    Raises:
        BudgetError: the cheapest options together cost more.
    """
    least = sum(float(cost[0]) for cost in costs)
    if least > budget:
        raise BudgetError(least)
    cheap, dear = 0.0, 1.0

    def chosen(price: float) -> list[int]:
        return [int(np.argmin(loss + price * cost)) for loss, cost in zip(losses, costs, strict=True)]

    def spent(options: Sequence[int]) -> float:
        return sum(float(cost[option]) for cost, option in zip(costs, options, strict=True))

    if spent(chosen(0.0)) <= budget:
        return _topped_up(chosen(0.0), losses, costs, budget)
    while spent(chosen(dear)) > budget:
        dear *= 4
    for _ in range(200):
        middle = (cheap + dear) / 2
        cheap, dear = (middle, dear) if spent(chosen(middle)) > budget else (cheap, middle)
    return _topped_up(chosen(dear), losses, costs, budget)


def _topped_up(
    options: list[int], losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float
) -> list[int]:
    """Spend what is left on the steps that lower the loss most per unit of cost."""
    options = list(options)
    left = budget - sum(float(cost[option]) for cost, option in zip(costs, options, strict=True))
    while True:
        best: tuple[float, int, int] | None = None
        for part, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
            now = options[part]
            for option in range(now + 1, len(loss)):
                extra = float(cost[option] - cost[now])
                if extra > left:
                    break
                gain = float(loss[now] - loss[option]) / max(extra, 1e-300)
                if gain > 0 and (best is None or gain > best[0]):
                    best = (gain, part, option)
        if best is None:
            return options
        _, part, option = best
        left -= float(costs[part][option] - costs[part][options[part]])
        options[part] = option
