"""Lists of scores, some of whose items are padding or have no target: what every score loss does first and last."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ScoreLists(NamedTuple):
    """L lists of up to K items, fit to compute with.

    Attributes:
        scores: ``[L, K]``, fp32 or finer; 0, and cut off from any gradient, where there is no valid item.
        targets: ``[L, K]``, likewise, without gradient.
        valid: bool ``[L, K]``: a real item with a target.
    """

    scores: Tensor
    targets: Tensor
    valid: Tensor

    def fill(self, values: Tensor, fill: float) -> Tensor:
        """Return ``values [L, K]`` with ``fill`` at invalid items."""
        return values.masked_fill(~self.valid, fill)

    def log_softmax(self, values: Tensor) -> Tensor:
        """Return the log-softmax of ``values [L, K]`` over the valid items of each list, 0 elsewhere."""
        return self.fill(self.fill(values, least(values)).log_softmax(dim=1), 0.0)

    def better(self) -> Tensor:
        """Return bool ``[L, K, K]``: item i's target is greater than item j's, both valid."""
        both = self.valid[:, :, None] & self.valid[:, None, :]
        return (self.targets[:, :, None] > self.targets[:, None, :]) & both

    def ranks(self) -> Tensor:
        """Return each item's rank by target from 1, ``[L, K]``; equal targets share their mean rank."""
        both = self.valid[:, :, None] & self.valid[:, None, :]
        equal = (self.targets[:, :, None] == self.targets[:, None, :]) & both
        return self.better().sum(dim=1) + (equal.sum(dim=1) + 1) / 2


def score_lists(scores: Tensor, targets: Tensor, mask: Tensor) -> ScoreLists:
    """Prepare lists for a loss; an item whose target is NaN is left out.

    Args:
        scores: the student's raw logits, float ``[L, K]``.
        targets: teacher scores or labels, float ``[L, K]``; NaN where missing.
        mask: bool ``[L, K]``, true at real items.

    Raises:
        ValueError: the shapes differ.
    """
    if not scores.shape == targets.shape == mask.shape or scores.dim() != 2:
        shapes = f"scores {list(scores.shape)}, targets {list(targets.shape)}, mask {list(mask.shape)}"
        raise ValueError(f"{shapes}; all three must be [lists, items]")
    exact = torch.promote_types(scores.dtype, torch.float32)
    targets = targets.detach().to(exact)
    valid = mask.bool() & ~targets.isnan()
    zero = scores.new_zeros((), dtype=exact)
    return ScoreLists(torch.where(valid, scores.to(exact), zero), torch.where(valid, targets, zero), valid)


def mean_of(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean over the items or pairs of each list where ``where`` holds, ``[L, ...] -> [L]``; 0 if nowhere."""
    kept = torch.where(where, values, values.new_zeros(())).flatten(1)
    return kept.sum(dim=1) / where.flatten(1).sum(dim=1).clamp(min=1)


def least(values: Tensor) -> float:
    """Return the least finite number of a tensor's type: a logit whose probability is 0."""
    return torch.finfo(values.dtype).min
