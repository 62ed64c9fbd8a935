"""Zeros chosen layer by layer, by what each matrix reads: Wanda and SparseGPT."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.algorithms.linear_fits import Moments, roots_of_inverse
from compressor.algorithms.sparse_masks import Scope, kept_weights, of_units, without_least
from compressor.algorithms.sparsity_patterns import SparsityPattern

_COLUMNS = 128  # whose errors are brought to the later ones at once


def wanda(weight: Tensor, read: Moments, sparsity: float, pattern: SparsityPattern, scope: Scope) -> Tensor:
    """Zero the weights whose products with the norms of their inputs are least (Wanda, arXiv 2306.11695)."""
    mean_squares = read.second(centered=False).diagonal().float()
    units = of_units(weight.square() * mean_squares, weight, pattern)
    return weight * kept_weights({"": units}, sparsity, pattern, scope)[""]


def sparsegpt(weight: Tensor, read: Moments, sparsity: float, pattern: SparsityPattern) -> Tensor:
    """Zero weights column by column, and have those to the right make up for each (SparseGPT, arXiv 2301.00774).

    The mask is chosen 128 columns at a time, those before done, so that the share of zeros is met in every stretch.

    Args:
        weight: ``[outputs, inputs]``; what is zero stays zero.
        read: the moments of its inputs.
        sparsity: the share of zeros.
        pattern: of zeros.
    """
    # Scores that choose, and what is made up for, are those of float64: the Hessian is near singular.
    values, is_zero = weight.double(), weight == 0
    second = read.second(centered=False)
    roots = roots_of_inverse(second, read.n)
    # Damping gives even inputs that are always zero some worth: they have none.
    worths = (second.diagonal() > 0) / roots.diagonal()
    width = _COLUMNS // pattern.size * pattern.size
    kept = torch.ones_like(is_zero)
    for begin in range(0, weight.shape[1], width):
        end = min(begin + width, weight.shape[1])
        part, own = values[:, begin:end], roots[begin:end, begin:end]
        if pattern.kept is None:
            worth = of_units((part * worths[begin:end]).square(), part * ~is_zero[:, begin:end], pattern)
            n_units = len(worth.flatten())
            before = round(sparsity * len(weight) * begin / pattern.size)
            count = min(n_units, round(sparsity * len(weight) * end / pattern.size) - before)
            stays = without_least(worth.flatten(), sparsity, count).view_as(worth)
            kept[:, begin:end] = stays.repeat_interleave(pattern.size, dim=1)
            kept[:, begin:end] &= ~is_zero[:, begin:end]
        errors = torch.zeros_like(part)
        for column in range(end - begin):
            if pattern.kept is not None and column % pattern.size == 0:
                group = slice(begin + column, begin + column + pattern.size)
                worth = (values[:, group] * worths[group]).square()
                units = of_units(worth, values[:, group] * ~is_zero[:, group], pattern)
                kept[:, group] = kept_weights({"": units}, sparsity, pattern, "per_matrix")[""] & ~is_zero[:, group]
            lost = part[:, column] * ~kept[:, begin + column]
            errors[:, column] = lost / own[column, column]
            part[:, column:] -= errors[:, column, None] * own[column, column:]
        values[:, end:] -= errors @ roots[begin:end, end:]
    return (values * kept).float()
