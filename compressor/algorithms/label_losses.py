"""Losses of a student's scores on labels: ``(scores, targets, mask, **options) -> [L]``, one value per list.

Shapes and conventions as in `teacher_losses`; ``targets`` are labels, 0 for not relevant and NaN for unknown.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.score_lists import least, mean_of, score_lists


def softmax_labels(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    positives: Literal["share", "separate"] = "share",
    poly1: float = 0.0,
) -> Tensor:
    """Cross entropy of the list's softmax (RankT5, arXiv 2210.10634); 0 for a list without positives.

    Args:
        scores, targets, mask: see the module; a positive has a label above 0, its weight is its share of the sum.
        positives: ``share``, one softmax over the list, in which several positives compete for mass; ``separate``, a
            softmax of each positive against the negatives alone.
        poly1: weight of ``1 - sum of weight * p`` beside it (Poly-1 of PolyLoss, arXiv 2204.12511).
    """
    lists = score_lists(scores, targets, mask)
    labels = lists.targets.clamp(min=0)
    weights = labels / labels.sum(dim=1, keepdim=True).clamp(min=torch.finfo(labels.dtype).tiny)
    if positives == "share":
        log_p = lists.log_softmax(lists.scores)
    else:
        negatives = lists.scores.masked_fill(~lists.valid | (labels > 0), least(labels)).logsumexp(dim=1, keepdim=True)
        log_p = -F.softplus(negatives - lists.scores)  # log of e^s / (e^s + sum over negatives)
    loss = -weights * log_p + poly1 * weights * (1 - log_p.exp())
    return lists.fill(loss, 0.0).sum(dim=1)


def bce_labels(scores: Tensor, targets: Tensor, mask: Tensor, *, relevant_from: float = 1.0) -> Tensor:
    """Mean binary cross entropy of each raw logit; labels below ``relevant_from`` count in proportion, soft."""
    lists = score_lists(scores, targets, mask)
    wanted = (lists.targets / relevant_from).clamp(0, 1)
    losses = F.binary_cross_entropy_with_logits(lists.scores, wanted, reduction="none")
    return mean_of(losses, lists.valid)


def gbce_labels(
    scores: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    calibration: float = 0.75,
    pool: int = 1000,
    relevant_from: float = 1.0,
) -> Tensor:
    """Generalized binary cross entropy (gSASRec, arXiv 2308.07192; shallow cross-encoders, arXiv 2403.20222).

    The mean of ``-beta log sigmoid(s)`` over positives and ``-log(1 - sigmoid(s))`` over negatives, with
    ``beta = a (t (1 - 1 / a) + 1 / a)``, a the share of the pool that was sampled as negatives, t the calibration. Few
    negatives make a relevant item look too likely; beta below 1 takes that back.

    Args:
        scores, targets, mask: see the module.
        calibration: t, from 0 (beta is 1, plain BCE) to 1 (beta is the sampled share).
        pool: how many candidates the negatives were sampled from.
        relevant_from: the least label of a positive.
    """
    lists = score_lists(scores, targets, mask)
    positive = lists.valid & (lists.targets >= relevant_from)
    negative = lists.valid & ~positive
    sampled = (negative.sum(dim=1, keepdim=True) / pool).clamp(max=1)
    beta = sampled * calibration + (1 - calibration)  # the formula above, free of the division by a
    losses = torch.where(positive, beta * F.softplus(-lists.scores), F.softplus(lists.scores))
    both = positive.any(dim=1, keepdim=True) & negative.any(dim=1, keepdim=True)
    return mean_of(losses, lists.valid & both)


def hinge_labels(scores: Tensor, targets: Tensor, mask: Tensor, *, margin: float = 1.0) -> Tensor:
    """Mean of ``relu(margin - (s_i - s_j))`` over pairs whose label says that i is the better one."""
    lists = score_lists(scores, targets, mask)
    return mean_of(F.relu(margin - (lists.scores[:, :, None] - lists.scores[:, None, :])), lists.better())
