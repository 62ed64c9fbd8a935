"""What zeros cost to second order, in blocks of neighboring weights, and how the others make up for them.

The loss near a ranker is taken to be ``½ δᵀ F δ``, with F the empirical Fisher information, block by block (Optimal
BERT Surgeon, arXiv 2203.07259). There the inverse of a damped block is built sample by sample (Sherman-Morrison); here
samples are summed up and blocks inverted once by their Cholesky factors in float64. That is the same inverse: with more
samples than a block has weights it takes less time, and it does not start from the reciprocal of a small damping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.sparsity_patterns import SparsityPattern

_BLOCKS_AT_ONCE = 2048
_GONE = -1.0


class DiagonalCurvature:
    """The diagonal of the Fisher information of a matrix, ``[outputs, inputs]``."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.squares = torch.zeros(shape)

    def add(self, gradients: Tensor, shares: Tensor) -> None:
        """Add gradients ``[n, outputs, inputs]`` with weights ``[n]``; they are overwritten."""
        self.squares += (shares @ gradients.square_().flatten(1)).view(self.shape)

    def damped(self, damping: float) -> Tensor:
        """Return the diagonal with a share of its mean added."""
        return self.squares + damping * self.squares.mean()


class BlockCurvature:
    """Blocks of the Fisher information of a matrix: of so many consecutive weights each, row after row.

    Memory: ``4 · block size`` bytes for each weight.

    Args:
        shape: of the matrix, ``(outputs, inputs)``.
        size: weights of a block; the last one is filled up with weights that are zero.
        damping: added to the diagonal, as a share of its mean.
    """

    def __init__(self, shape: tuple[int, int], size: int, damping: float) -> None:
        self.shape, self.size, self.damping = shape, size, damping
        self.blocks = torch.zeros(-(-math.prod(shape) // size), size, size)

    def add(self, gradients: Tensor, shares: Tensor) -> None:
        """Add gradients ``[n, outputs, inputs]`` with weights ``[n]``; they are overwritten."""
        gradients *= shares.sqrt()[:, None, None]
        scaled = self._in_blocks(gradients.flatten(1)).transpose(0, 1)  # [blocks, n, size]
        self.blocks.baddbmm_(scaled.transpose(1, 2), scaled)

    def losses(self, weight: Tensor, pattern: SparsityPattern) -> Tensor:
        """Return what it costs to zero each unit alone while the rest of its block makes up for it.

        ``w² / (2 [F⁻¹]_ii)`` of a weight, ``½ w_Qᵀ ([F⁻¹]_QQ)⁻¹ w_Q`` of a block of neighbors that go together.

        Args:
            weight: the matrix; what is zero is left out of the curvature.
            pattern: whose units: weights, or blocks of neighbors.

        Returns:
            float32 ``[outputs, inputs / size of a unit]``; less than 0 where there is nothing to zero.
        """
        if pattern.kept is not None:
            raise ValueError("choose N of M with `best_of_groups`")
        found = []
        for values, inverse in self._inverses(weight):
            groups, within = _groups(values, inverse, pattern.size)
            costs = _quadratic(groups, within)
            found.append(costs.masked_fill((groups == 0).all(dim=-1), _GONE).flatten())
        n_units = math.prod(self.shape) // pattern.size
        return torch.cat(found)[:n_units].view(self.shape[0], -1).float()

    def best_of_groups(self, weight: Tensor, pattern: SparsityPattern) -> Tensor:
        """Return which N of every M neighbors stay, bool ``[outputs, inputs]``: what goes costs least together."""
        n_gone = pattern.size - (pattern.kept or 0)
        choices = torch.tensor(list(combinations(range(pattern.size), n_gone)))  # [choices, gone]
        stays = torch.ones(len(choices), pattern.size, dtype=torch.bool).scatter_(1, choices, False)
        found = []
        for values, inverse in self._inverses(weight):
            groups, within = _groups(values, inverse, pattern.size)
            costs = torch.stack(
                [_quadratic(groups[..., gone], within[..., gone, :][..., gone]) for gone in choices], dim=-1
            )
            found.append(stays[costs.argmin(dim=-1)].flatten())
        return torch.cat(found)[: math.prod(self.shape)].view(self.shape)

    def made_up(self, weight: Tensor, kept: Tensor) -> Tensor:
        """Return the matrix with zeros where nothing is kept, and in each block what makes up for them best.

        All zeros of a block are made up for together, ``w_K + F_KK⁻¹ F_KP w_P``: the least loss that the mask allows.

        Args:
            weight: as it is.
            kept: bool, of its shape.
        """
        values, stays = self._in_blocks(weight.flatten()), self._in_blocks(kept.flatten())
        stays = stays & (values != 0)
        found = []
        for part, curvature in self._damped(values):
            own = stays[part]
            whole = values[part].double()
            pull = (curvature @ (whole * ~own)[..., None])[..., 0] * own
            among = curvature * own[:, :, None] * own[:, None, :] + torch.diag_embed((~own).double())
            found.append((whole + _solved(among, pull)) * own)
        return torch.cat(found).flatten()[: math.prod(self.shape)].view(self.shape).float()

    def _in_blocks(self, values: Tensor) -> Tensor:
        """Cut the last axis, ``[..., weights]``, into ``[..., blocks, size]``."""
        padded = F.pad(values, (0, len(self.blocks) * self.size - values.shape[-1]))
        return padded.unflatten(-1, (len(self.blocks), self.size))

    def _inverses(self, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weights ``[b, size]`` and inverse curvature ``[b, size, size]``, some blocks after others, float64."""
        values = self._in_blocks(weight.flatten())
        for part, curvature in self._damped(values):
            yield values[part].double(), torch.cholesky_inverse(torch.linalg.cholesky(curvature))

    def _damped(self, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield some blocks of curvature after others, float64; zeros are left out of it, as ones on the diagonal."""
        diagonal = self.blocks.diagonal(dim1=1, dim2=2)
        alive = values != 0
        mean = float((diagonal * alive).sum() / alive.sum().clamp(min=1))
        level = self.damping * max(mean, torch.finfo(torch.float32).tiny)
        for begin in range(0, len(self.blocks), _BLOCKS_AT_ONCE):
            part = slice(begin, begin + _BLOCKS_AT_ONCE)
            own = alive[part]
            curvature = self.blocks[part].double() * own[:, :, None] * own[:, None, :]
            yield part, curvature + torch.diag_embed(torch.where(own, level, 1.0).double())


def _groups(values: Tensor, inverse: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the weights of groups of neighbors, ``[b, groups, size]``, and their part of the inverse."""
    cut = inverse.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # [b, groups, size, groups, size]
    return values.unflatten(1, (-1, size)), cut.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _quadratic(values: Tensor, inverse: Tensor) -> Tensor:
    """Return ``½ wᵀ A⁻¹ w`` over the last axes."""
    if values.shape[-1] == 1:
        return 0.5 * values[..., 0].square() / inverse[..., 0, 0]
    return 0.5 * (values * _solved(inverse, values)).sum(dim=-1)


def _solved(matrices: Tensor, values: Tensor) -> Tensor:
    return torch.cholesky_solve(values[..., None], torch.linalg.cholesky(matrices))[..., 0]
