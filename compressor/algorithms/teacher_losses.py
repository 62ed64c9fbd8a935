"""Losses of a student's scores on its teacher's: ``(scores, targets, mask, **options) -> [L]``, one value per list.

``scores`` and ``targets`` are raw logits ``[L, K]``, ``mask`` is true at real items; a NaN target leaves its item out.
Each value is a mean over the list's items or pairs, so long lists weigh as much as short ones, and exactly 0, with zero
gradient, where a list is too short to teach anything.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.score_lists import ScoreLists, least, mean_of, score_lists


def mse(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of raw logits: the loss of the Ettin rerankers, enough where data is plenty and diverse."""
    lists = score_lists(scores, targets, mask)
    return mean_of((lists.scores - lists.targets) ** 2, lists.valid)


def centered_mse(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of scores less their list's mean: a shift of a whole list cannot change its order."""
    lists = score_lists(scores, targets, mask)
    error = lists.scores - lists.targets
    return mean_of((error - mean_of(error, lists.valid)[:, None]) ** 2, lists.valid)


def margin_mse(scores: Tensor, targets: Tensor, mask: Tensor, *, pairs: Literal["all", "first"] = "all") -> Tensor:
    """Mean of ``((s_i - s_j) - (t_i - t_j))^2`` over pairs (MarginMSE, arXiv 2010.02666).

    Blind to a shift of the teacher's scores, not to their scale. Over all pairs it is ``2n / (n - 1)`` times the
    centered MSE of a list of n.

    Args:
        scores, targets, mask: see the module.
        pairs: ``all`` of a list, or its ``first`` item, the positive, against each other one.
    """
    lists = score_lists(scores, targets, mask)
    error = lists.scores - lists.targets
    if pairs == "first":
        return mean_of((error[:, :1] - error[:, 1:]) ** 2, lists.valid[:, :1] & lists.valid[:, 1:])
    both = lists.valid[:, :, None] & lists.valid[:, None, :]
    others = ~torch.eye(error.shape[1], dtype=torch.bool, device=error.device)
    return mean_of((error[:, :, None] - error[:, None, :]) ** 2, both & others)


def listwise_kl(scores: Tensor, targets: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``temperature^2 * KL(softmax(t / temperature) || softmax(s / temperature))`` over each list.

    The square keeps the size of gradients when the temperature changes (arXiv 1503.02531), so that weights of a
    mixture need not follow it. A good temperature leaves the teacher's best item 0.3 to 0.6 of the mass.
    """
    lists = score_lists(scores, targets, mask)
    teacher = lists.log_softmax(lists.targets / temperature)
    student = lists.log_softmax(lists.scores / temperature)
    divergence = lists.fill(teacher.exp() * (teacher - student), 0.0).sum(dim=1)
    return temperature**2 * divergence


def ranknet(scores: Tensor, targets: Tensor, mask: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Mean of ``log(1 + exp(-sigma (s_i - s_j)))`` over pairs that the teacher orders i before j (RankNet, 2005).

    Only the teacher's order counts; ties of the teacher say nothing.
    """
    lists = score_lists(scores, targets, mask)
    differences = lists.scores[:, :, None] - lists.scores[:, None, :]
    return mean_of(F.softplus(-sigma * differences), lists.better())


def adr_mse(scores: Tensor, targets: Tensor, mask: Tensor, *, sigma: float = 1.0) -> Tensor:
    """Mean of ``(r_i - (1 + sum_j sigmoid(sigma (s_j - s_i))))^2 / log2(1 + r_i)``, r the teacher's rank.

    Approx discounted rank MSE of Rank-DistiLLM (arXiv 2405.07920); ties of the teacher share their mean rank.
    """
    lists = score_lists(scores, targets, mask)
    ranks = lists.ranks().to(lists.scores.dtype)
    ahead = torch.sigmoid(sigma * (lists.scores[:, None, :] - lists.scores[:, :, None]))  # j ahead of i
    smooth = 0.5 + (ahead * lists.valid[:, None, :]).sum(dim=2)  # an item is half ahead of itself
    return mean_of((ranks - smooth) ** 2 / torch.log2(1 + ranks), lists.valid)


def rank_distil(
    scores: Tensor, targets: Tensor, mask: Tensor, *, k: int = 10, gamma: float = 1.0, margin: float = 0.0
) -> Tensor:
    """Match the teacher's top k, and keep the others below them (after RankDistil, AISTATS 2021).

    ``mean over top k of (s_i - t_i)^2 + gamma * mean over others of relu(s_j - min over top k of s + margin)``; the
    top k are those with fewer than k items above them, so that ties at the border are all in.
    """
    lists = score_lists(scores, targets, mask)
    top = lists.valid & (lists.better().sum(dim=1) < k)
    matched = mean_of((lists.scores - lists.targets) ** 2, top)
    lowest = lists.scores.masked_fill(~top, torch.finfo(lists.scores.dtype).max).amin(dim=1, keepdim=True)
    pushed = mean_of(F.relu(lists.scores - lowest + margin), lists.valid & ~top)
    return torch.where(lists.valid.sum(dim=1) > 1, matched + gamma * pushed, matched.new_zeros(()))


def keep_top(
    scores: Tensor, targets: Tensor, mask: Tensor, *, top: float = 0.1, keep: float = 0.3, margin: float = 1.0
) -> Tensor:
    """Hold the teacher's top items in the part of the list that a cascade keeps.

    ``mean over the top of relu(margin + c - s_i)``, c the best score that must be beaten so that all of them are kept:
    of the other items' scores the one at place ``n_keep - n_top + 1``. Of n items the first ``ceil(top n)`` are the top
    (ties at the border are all in) and ``ceil(keep n)`` are kept, no fewer than those. Nothing is asked of the order
    above the cut, nor of lists of which nothing is cut. After the stages of the Cascade Transformer (arXiv 2005.02534);
    the hinge at the cut is ours.
    """
    lists = score_lists(scores, targets, mask)
    n_items = lists.valid.sum(dim=1, keepdim=True)
    n_top = _share_of(top, n_items)
    n_keep = torch.maximum(_share_of(keep, n_items), n_top)
    is_top = lists.valid & (lists.better().sum(dim=1) < n_top)
    lowest = least(lists.scores)
    others = lists.scores.masked_fill(is_top | ~lists.valid, lowest)
    place = (n_keep - is_top.sum(dim=1, keepdim=True)).clamp(min=0, max=others.shape[1] - 1)
    cut = others.detach().sort(dim=1, descending=True).values.gather(1, place)
    at_cut = (others.detach() == cut) & (others.detach() > lowest)  # all of equal ones, whatever their order
    shared = mean_of(others, at_cut)[:, None]
    held = is_top & (n_items > n_keep) & at_cut.any(dim=1, keepdim=True)
    return mean_of(F.relu(margin + shared - lists.scores), held)


def _share_of(share: float, n_items: Tensor) -> Tensor:
    """Return ``ceil(share * n)``; a float's last bit makes no item more."""
    return (n_items.double() * share - 1e-6).ceil().long()


def list_mle(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the targets' order, per item (ListMLE, ICML 2008).

    Each item is chosen out of itself and all that follow. Equal targets are each chosen out of all their equals and all
    that follow (Breslow's rule), which needs no order among them; the lowest ones are never chosen, only left over.
    """
    lists = score_lists(scores, targets, mask)
    losses, chosen = _choices(lists)
    return _per_item(lists, (losses * chosen).sum(dim=1))


def plist_mle(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """ListMLE with the choice of rank r weighted by ``2^(n - r) - 1``, weights adding up to 1 (p-ListMLE, UAI 2014)."""
    lists = score_lists(scores, targets, mask)
    losses, chosen = _choices(lists)
    # 2^-r - 2^-n is the same weight up to a factor, and cannot overflow.
    length = lists.valid.sum(dim=1, keepdim=True)
    weights = (torch.exp2(-lists.ranks()) - torch.exp2(-length.to(losses.dtype))) * lists.valid
    share = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(losses.dtype).tiny)
    return (losses * chosen * share).sum(dim=1)


def _choices(lists: ScoreLists) -> tuple[Tensor, Tensor]:
    """Return the loss of each item's choice and whether it was chosen at all, both ``[L, K]``."""
    better = lists.better()
    open_ = ~better.transpose(1, 2) & lists.valid[:, None, :]  # j is still there when i is chosen: not better than i
    there = lists.scores[:, None, :].masked_fill(~open_, least(lists.scores))
    losses = there.logsumexp(dim=2) - lists.scores
    chosen = better.any(dim=2)  # something follows
    return torch.where(chosen, losses, losses.new_zeros(())), chosen


def _per_item(lists: ScoreLists, values: Tensor) -> Tensor:
    return values / lists.valid.sum(dim=1).clamp(min=1)
