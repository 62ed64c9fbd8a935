"""Easy lists weigh more at first, all alike at the end, each by itself."""

from __future__ import annotations

import torch

from compressor.algorithms.curriculum import curriculum_weights

RANKS = torch.tensor([1.0, 2.0, 4.0, 8.0])


def weights(targets, ranks=RANKS, mask=None, progress=0.0):
    """Return the weight of one list of items with these targets and first-stage ranks; rank 0 was not found."""
    closeness = torch.where(ranks > 0, 1 / ranks.clamp(min=1), 0.0)[None]
    targets = torch.tensor(targets)[None]
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask[None]
    return curriculum_weights(targets, closeness, mask, torch.tensor([progress])).item()


def test_one_relevant_item_gives_the_weight_of_the_paper():
    negatives = (1 / 2 + 1 / 4 + 1 / 8) / 3
    assert abs(weights([1.0, 0.0, 0.0, 0.0]) - (1 - negatives + 1) / 2) < 1e-6
    negatives = (1 + 1 / 2 + 1 / 4) / 3
    assert abs(weights([0.0, 0.0, 0.0, 1.0]) - (1 / 8 - negatives + 1) / 2) < 1e-6


def test_a_teacher_that_agrees_with_the_first_stage_makes_a_list_easy():
    easy, mixed, hard = weights([4.0, 3.0, 2.0, 1.0]), weights([3.0, 4.0, 2.0, 1.0]), weights([1.0, 2.0, 3.0, 4.0])
    assert easy > mixed > hard > 0
    assert abs(easy + hard - 1) < 1e-6
    assert weights([40.0, 30.0, 20.0, 10.0]) == easy, "order counts, not the scale of a teacher's scores"


def test_progress_brings_every_list_to_one():
    for targets in ([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]):
        start = weights(targets)
        assert abs(weights(targets, progress=0.25) - (0.25 + 0.75 * start)) < 1e-6
        assert weights(targets, progress=1.0) == 1


def test_lists_without_any_order_are_neither_easy_nor_hard():
    nan = float("nan")
    assert weights([1.0, 1.0, 1.0, 1.0]) == 0.5
    assert weights([nan, nan, 3.0, nan]) == 0.5


def test_padding_and_missing_targets_count_for_nothing():
    mask = torch.tensor([True, True, False, True])
    assert weights([2.0, 1.0, 9.0, 0.0], mask=mask) == weights([2.0, 1.0, float("nan"), 0.0])
    assert weights([1.0, 0.0], ranks=torch.tensor([0.0, 1.0])) == 0


def test_each_list_has_its_own_weight():
    targets = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    both = curriculum_weights(targets, (1 / RANKS).expand(2, 4), mask, torch.tensor([0.0, 1.0]))
    assert both.tolist() == [weights([4.0, 3.0, 2.0, 1.0]), 1.0]
