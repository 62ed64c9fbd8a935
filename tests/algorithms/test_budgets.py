"""Sharing a budget out: never over it, as good as trying all choices where parts get ever less from more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compressor.algorithms.budgets import BudgetError, shared_out


def drawn(seed, n_parts=4, n_options=5, convex=True):
    draw = np.random.default_rng(seed)
    losses, costs = [], []
    for _ in range(n_parts):
        gains = draw.random(n_options - 1)
        gains = np.sort(gains)[::-1] if convex else gains
        losses.append(np.concatenate([[gains.sum()], gains.sum() - gains.cumsum()]))
        costs.append(np.arange(n_options) * float(draw.integers(1, 4)))
    return losses, costs


def total(values, options):
    return sum(float(value[option]) for value, option in zip(values, options, strict=True))


def best(losses, costs, budget):
    every = itertools.product(*(range(len(loss)) for loss in losses))
    return min(total(losses, options) for options in every if total(costs, options) <= budget)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("budget", [0.0, 3.0, 9.0, 14.0, 1000.0])
def test_a_budget_is_kept_and_well_spent(seed, convex, budget):
    losses, costs = drawn(seed, convex=convex)
    options = shared_out(losses, costs, budget)
    assert total(costs, options) <= budget
    everything = sum(float(loss[0]) for loss in losses)
    allowed = 0.05 if convex else 0.15  # whole options do not always fill a budget
    assert total(losses, options) <= best(losses, costs, budget) + allowed * everything
    if budget == 1000:
        assert options == [len(loss) - 1 for loss in losses]


def test_a_part_that_loses_nothing_goes_first():
    losses = [np.array([0.0, 0.0, 0.0]), np.array([2.0, 1.0, 0.0])]
    assert shared_out(losses, [np.array([0.0, 1.0, 2.0])] * 2, 2.0) == [0, 2]


def test_what_costs_nothing_is_kept():
    losses = [np.array([1.0, 0.0]), np.array([1.0, 0.0])]
    assert shared_out(losses, [np.array([0.0, 0.0]), np.array([0.0, 5.0])], 1.0) == [1, 0]


def test_too_small_a_budget_is_refused():
    with pytest.raises(BudgetError) as caught:
        shared_out([np.array([1.0, 0.0])], [np.array([3.0, 4.0])], 2.0)
    assert caught.value.least == 3
