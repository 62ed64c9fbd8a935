"""Which weights stay, by what they are worth: exact counts, the same choice whatever the ties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from compressor.algorithms.sparsity_patterns import SparsityPattern

Scope = Literal["per_row", "per_matrix", "global"]
_GONE = -1.0  # what a weight is worth that is zero already


def of_units(worth: Tensor, weight: Tensor, pattern: SparsityPattern) -> Tensor:
    """Return what is chosen among: the worth of weights, or its sum over blocks that go as a whole.

    Args:
        worth: at least 0, ``[outputs, inputs]``; squares where blocks are summed up.
        weight: the matrix: what is zero in it goes first.
        pattern: of zeros.

    Returns:
        ``[outputs, inputs]``, or ``[outputs, inputs / size]`` for blocks.
    """
    worth = worth.masked_fill(weight == 0, 0)
    if pattern.kept is not None or pattern.size == 1:
        return worth.masked_fill(weight == 0, _GONE)
    gone = (weight == 0).unflatten(1, (-1, pattern.size)).all(dim=2)
    return worth.unflatten(1, (-1, pattern.size)).sum(dim=2).masked_fill(gone, _GONE)


def kept_weights(
    units: Mapping[str, Tensor], sparsity: float, pattern: SparsityPattern, scope: Scope
) -> dict[str, Tensor]:
    """Return which weights stay, bool ``[outputs, inputs]`` by name.

    The share of zeros is met to the unit, rounded; of equal units the first ones go. With N of M the pattern decides.

    Args:
        units: what `of_units` returns, by name.
        sparsity: the share of zeros.
        pattern: of zeros.
        scope: among which units the least are looked for: of a row, of a matrix, or of all matrices.
    """
    if pattern.kept is not None:
        return {name: _best_of_groups(worth, pattern) for name, worth in units.items()}
    if scope == "global":
        stays = without_least(torch.cat([worth.flatten() for worth in units.values()]), sparsity)
        parts = stays.split([worth.numel() for worth in units.values()])
        kept = {name: part.view_as(units[name]) for name, part in zip(units, parts, strict=True)}
    elif scope == "per_matrix":
        kept = {name: without_least(worth.flatten(), sparsity).view_as(worth) for name, worth in units.items()}
    else:
        kept = {name: _without_least_of_rows(worth, sparsity) for name, worth in units.items()}
    return {name: stays.repeat_interleave(pattern.size, dim=1) for name, stays in kept.items()}


def without_least(worth: Tensor, sparsity: float, count: int | None = None) -> Tensor:
    """Return bool ``[n]``: all but the least units, a share or a count of them."""
    count = round(sparsity * len(worth)) if count is None else count
    if count <= 0:
        return torch.ones(len(worth), dtype=torch.bool)
    limit = worth.kthvalue(count).values
    stays = worth > limit
    at_limit = (worth == limit).nonzero()[:, 0]
    n_below = int((worth < limit).sum())
    stays[at_limit[count - n_below :]] = True
    return stays


def _without_least_of_rows(worth: Tensor, sparsity: float) -> Tensor:
    count = round(sparsity * worth.shape[1])
    order = worth.argsort(dim=1, stable=True)
    return torch.ones_like(worth, dtype=torch.bool).scatter_(1, order[:, :count], False)


def _best_of_groups(worth: Tensor, pattern: SparsityPattern) -> Tensor:
    groups = worth.unflatten(1, (-1, pattern.size))
    order = groups.argsort(dim=2, stable=True)
    n_gone = pattern.size - (pattern.kept or 0)
    return torch.ones_like(groups, dtype=torch.bool).scatter_(2, order[..., :n_gone], False).flatten(1)
