"""The LambdaLoss framework: pairs weighted by what their swap would cost in nDCG (doi 10.1145/3269206.3271784).

Shapes and conventions as in `teacher_losses`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.loss_options import LambdaScheme
from compressor.algorithms.score_lists import ScoreLists, mean_of, score_lists


def lambda_loss(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    scheme: LambdaScheme = "ndcg_loss2pp",
    relevance: Literal["reciprocal_rank", "linear"] = "reciprocal_rank",
    top_grade: float = 1.0,
    k: int | None = None,
    sigma: float = 1.0,
    mu: float = 10.0,
) -> Tensor:
    """LambdaLoss on the teacher's ranks: its raw logits are no relevance grades, as ``2^grade`` would show.

    Args:
        scores, targets, mask: as in `teacher_losses`.
        scheme: see `lambda_weights`.
        relevance: an item of rank r in a list of n is worth ``top_grade / r``, or ``top_grade * (n - r) / (n - 1)``.
        top_grade: the best item's grade; its gain is ``2^top_grade - 1``.
        k: count only pairs with an item in the student's top k, and nDCG at k.
        sigma: the slope of the pairs' logistic loss.
        mu: the share of ndcg_loss2 in ndcg_loss2pp.
    """
    lists = score_lists(scores, targets, mask)
    ranks = lists.ranks().to(lists.scores.dtype)
    if relevance == "reciprocal_rank":
        grades = top_grade / ranks.clamp(min=1)
    else:
        length = lists.valid.sum(dim=1, keepdim=True)
        grades = top_grade * (length - ranks) / (length - 1).clamp(min=1)
    return _lambda_loss(lists, grades, scheme, k, sigma, mu)


def lambda_labels(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    scheme: LambdaScheme = "ndcg_loss2pp",
    k: int | None = None,
    sigma: float = 1.0,
    mu: float = 10.0,
) -> Tensor:
    """LambdaLoss on relevance grades 0, 1, 2, ...; the gain is ``2^grade - 1``, that of negative grades 0."""
    lists = score_lists(scores, targets, mask)
    return _lambda_loss(lists, lists.targets.clamp(min=0), scheme, k, sigma, mu)


def lambda_arp2(scores: Tensor, targets: Tensor, mask: Tensor, *, top: int, sigma: float = 1.0) -> Tensor:
    """Return ARP-Loss2 of the items that the targets rank highest, divided by the square of their number, ``[L]``.

    ``sum over y_i > y_j of (y_i - y_j) log2(1 + exp(-sigma (s_i - s_j)))`` bounds the relevance-weighted average rank;
    the last of the ``top`` items has relevance y = 1, the one before it 2, and so on, as ToP (arXiv 2306.14393) has it.

    Args:
        scores, targets, mask: as in `teacher_losses`.
        top: how many items of each list count; fewer where there are fewer.
        sigma: the slope of the pairs' logistic loss.
    """
    judged = targets.masked_fill(~mask | targets.isnan(), -torch.inf)
    best = judged.topk(min(top, judged.shape[1]), dim=1).indices
    lists = score_lists(*(each.gather(1, best) for each in (scores, targets, mask)))
    n_top = lists.valid.sum(dim=1)
    relevance = n_top[:, None] + 1 - lists.ranks().to(lists.scores.dtype)
    gaps = relevance[:, :, None] - relevance[:, None, :]
    differences = lists.scores[:, :, None] - lists.scores[:, None, :]
    losses = gaps * F.softplus(-sigma * differences) / math.log(2)
    return torch.where(lists.better(), losses, 0.0).sum(dim=(1, 2)) / n_top.clamp(min=1).square()


def _lambda_loss(
    lists: ScoreLists, grades: Tensor, scheme: LambdaScheme, k: int | None, sigma: float, mu: float
) -> Tensor:
    """Return the mean over pairs of ``-weight_ij * log2(sigmoid(sigma (s_i - s_j)))``, ``[L]``."""
    with torch.no_grad():
        places = _places(lists)
        pairs = lists.better()
        if scheme == "ndcg_loss1":  # bounds DCG item by item, so it asks about every other item
            itself = torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
            pairs = lists.valid[:, :, None] & lists.valid[:, None, :] & ~itself
        if k is not None:
            near = places <= k
            pairs = pairs & (near[:, :, None] | near[:, None, :])
        gains = lists.fill(torch.exp2(grades) - 1, 0.0)
        gains = gains / _best_dcg(gains, k)[:, None]
        weights = lambda_weights(gains, places, scheme, mu)
    differences = lists.scores[:, :, None] - lists.scores[:, None, :]
    return mean_of(weights * F.softplus(-sigma * differences) / math.log(2), pairs)


def lambda_weights(gains: Tensor, places: Tensor, scheme: LambdaScheme, mu: float) -> Tensor:
    """Return each pair's weight, ``[L, K, K]``.

    With D(r) = log2(1 + r), gains G and places r: ``ndcg_loss1`` G_i / D(r_i); ``lambdarank``
    |G_i - G_j| |1 / D(r_i) - 1 / D(r_j)|; ``ndcg_loss2`` |G_i - G_j| (1 / D(|r_i - r_j|) - 1 / D(|r_i - r_j| + 1)),
    the tighter bound; ``ndcg_loss2pp`` their mixture, ``mu`` times ndcg_loss2 plus lambdarank.

    Args:
        gains: ``[L, K]``, divided by the list's best DCG.
        places: ``[L, K]``, ranks by the student's score from 1.
        scheme: which of them.
        mu: see above.
    """
    discounts = torch.log2(1 + places)
    if scheme == "ndcg_loss1":
        return (gains / discounts)[:, :, None].expand(*gains.shape, gains.shape[1])
    apart = (places[:, :, None] - places[:, None, :]).abs()
    swap = 1 / torch.log2(1 + apart.clamp(min=1)) - 1 / torch.log2(2 + apart)
    exact = (1 / discounts[:, :, None] - 1 / discounts[:, None, :]).abs()
    change = {"ndcg_loss2": swap, "lambdarank": exact, "ndcg_loss2pp": mu * swap + exact}[scheme]
    return change * (gains[:, :, None] - gains[:, None, :]).abs()


def _places(lists: ScoreLists) -> Tensor:
    """Return each item's rank by the student's score from 1, ``[L, K]``, equal scores in the order of targets."""
    scores = lists.scores
    ahead = scores[:, :, None] > scores[:, None, :]
    tied = (scores[:, :, None] == scores[:, None, :]) & lists.better()
    both = lists.valid[:, :, None] & lists.valid[:, None, :]
    return 1 + ((ahead | tied) & both).sum(dim=1).to(scores.dtype)


def _best_dcg(gains: Tensor, k: int | None) -> Tensor:
    """Return the greatest DCG (at k) that a list's gains ``[L, K]`` can have, ``[L]``; 1 where nothing is relevant."""
    ideal = gains.sort(dim=1, descending=True).values[:, :k]
    places = torch.arange(1, ideal.shape[1] + 1, device=gains.device, dtype=gains.dtype)
    best = (ideal / torch.log2(1 + places)).sum(dim=1)
    return torch.where(best > 0, best, torch.ones_like(best))
