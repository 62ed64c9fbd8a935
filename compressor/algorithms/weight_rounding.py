"""Matrices rounded so that what they give errs least, in place of each weight to its nearest number: GPTQ.

What comes out is a float matrix that lies on its grid: rounded again, by the simulation or the exporter, it stays what
it is, and nothing but the matrix has to be stored. For that, the weight of which a scale is made keeps its code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.algorithms.linear_fits import Moments, roots_of_inverse
from compressor.ranker.quantizers import WholeNumbers, int8_rows, weight_blocks, weight_levels
from compressor.ranker.spec import Int4Blocks, Int8Blocks

_COLUMNS = 128  # whose errors are brought to the later ones at once


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which numbers a matrix ``[rows, columns]`` may take.

    Attributes:
        scales: float32 ``[rows, columns]``, the step of each weight's grid.
        lowest, highest: codes.
        nearest: float32 ``[rows, columns]``, the codes nearest to the matrix that the grid was made for.
        is_fixed: bool ``[rows, columns]``: weights of which scales are made, and all of blocks of zeros.
    """

    scales: Tensor
    lowest: int
    highest: int
    nearest: Tensor
    is_fixed: Tensor

    @classmethod
    def of(cls, weight: Tensor, precision: WholeNumbers) -> Grid:
        """Return the grid on which the precision rounds a matrix."""
        if isinstance(precision, Int8Blocks | Int4Blocks):
            codes, scales = weight_blocks(weight, precision.bits, precision.block_size)
            lowest, highest = -(2 ** (precision.bits - 1)), 2 ** (precision.bits - 1) - 1
        else:
            levels = weight_levels(precision)
            rows, row_scales = int8_rows(weight, levels=levels)
            codes, scales = rows[:, None], row_scales[:, None]  # a row is one block
            lowest, highest = -levels, levels
        size, columns = codes.shape[2], weight.shape[1]
        blocks = F.pad(weight.detach().float(), (0, -columns % size)).unflatten(1, (-1, size))
        largest = F.one_hot(blocks.abs().argmax(dim=2), size).bool()
        is_fixed = largest | (codes == 0).all(dim=2, keepdim=True)

        def flat(values: Tensor) -> Tensor:
            return values.flatten(1)[:, :columns]

        return cls(
            scales=flat(scales[..., None].expand(codes.shape)), lowest=lowest, highest=highest,
            nearest=flat(codes.float()), is_fixed=flat(is_fixed),
        )  # fmt: skip

    def codes(self, values: Tensor, column: int) -> Tensor:
        """Return the codes of a column's values, float64 ``[rows]``."""
        nearest = torch.round(values / self.scales[:, column]).clamp(self.lowest, self.highest)
        return torch.where(self.is_fixed[:, column], self.nearest[:, column].double(), nearest)


def gptq(weight: Tensor, read: Moments, precision: WholeNumbers, keeps_zeros: bool = False) -> Tensor:
    """Round column by column, and have those that are not rounded yet make up for each (GPTQ, arXiv 2210.17323).

    Columns that read most go first, on a grid that was made before ("activation order", "static groups"). What makes up
    is weighed by damped second moments, 0.01 of their mean or more, in stretches of 128 columns.

    Args:
        weight: float ``[outputs, inputs]``.
        read: the moments of its inputs.
        precision: on whose grid it comes to lie.
        keeps_zeros: whether what is zero stays zero.

    Returns:
        float32 ``[outputs, inputs]``.
    """
    grid = Grid.of(weight, precision)
    second = read.second(centered=False)
    order = second.diagonal().argsort(descending=True, stable=True)
    roots = roots_of_inverse(second[order][:, order], read.n)
    values = weight.detach().double()[:, order]
    stays_zero = (weight == 0) & keeps_zeros
    codes = torch.empty_like(grid.nearest)
    for begin in range(0, len(order), _COLUMNS):
        end = min(begin + _COLUMNS, len(order))
        part, own = values[:, begin:end], roots[begin:end, begin:end]
        errors = torch.zeros_like(part)
        for place in range(end - begin):
            column = int(order[begin + place])
            chosen = grid.codes(part[:, place], column) * ~stays_zero[:, column]
            codes[:, column] = chosen.float()
            errors[:, place] = (part[:, place] - chosen * grid.scales[:, column]) / own[place, place]
            part[:, place:] -= errors[:, place, None] * own[place, place:]
        values[:, end:] -= errors @ roots[begin:end, end:]
    return codes * grid.scales


def output_error(error: Tensor, second: Tensor) -> Tensor:
    """Return the mean square of what an error of a matrix does to each of its outputs, float64 ``[outputs]``.

    Args:
        error: ``[outputs, inputs]``.
        second: the second moments of its inputs, float64 ``[inputs, inputs]``.
    """
    error = error.double()
    return ((error @ second) * error).sum(dim=1)


def relative_error(weight: Tensor, rounded: Tensor, second: Tensor) -> float:
    """Return which share of the mean square of a matrix's outputs its rounding moves."""
    whole = output_error(weight, second).sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(output_error(weight - rounded, second).sum() / whole)
