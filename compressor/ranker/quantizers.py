"""Rounding, as the exported graphs do it: weights by rows or blocks, activations by tensor or block, half precision."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.ranker.spec import FloatKind, Int4Blocks, Int8Blocks, Int8Dynamic, Int8Static

WholeNumbers = Int8Dynamic | Int8Static | Int8Blocks | Int4Blocks
"""The precisions whose weights are whole numbers times scales."""

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Blocks of smaller numbers count as zeros: 127 divided by less overflows.
_LEAST_BLOCK = 1e-30


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded`` in the forward pass and pass gradients on as if nothing had been rounded."""
    return values + (rounded - values).detach() if values.requires_grad else rounded


def int8_rows(weight: Tensor, *, levels: int = 127) -> tuple[Tensor, Tensor]:
    """Quantize a matrix symmetrically with one scale per row.

    Args:
        weight: float ``[rows, columns]``; a linear's rows are its output channels.
        levels: the largest magnitude, 127 for 8 bits, 63 for 7.

    Returns:
        int8 ``[rows, columns]`` and float ``[rows]`` scales; ``values * scales[:, None]`` is near ``weight``.
        A row of zeros has scale 1.
    """
    largest = weight.detach().float().abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / levels, torch.ones_like(largest))
    values = torch.round(weight.detach().float() / scales[:, None]).clamp(-levels, levels).to(torch.int8)
    return values, scales


def weight_levels(precision: Int8Dynamic | Int8Static) -> int:
    """Return the largest int8 magnitude that the precision allows."""
    return 63 if precision.reduce_range else 127


def rounded_rows(weight: Tensor, levels: int = 127) -> Tensor:
    """Return a matrix rounded by rows, with straight-through gradients."""
    values, scales = int8_rows(weight, levels=levels)
    return straight_through(weight, values.to(weight.dtype) * scales[:, None].to(weight.dtype))


def weight_blocks(weight: Tensor, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a matrix symmetrically with one scale for each ``block_size`` columns of a row.

    A block's number of largest magnitude takes the lowest level, which has no counterpart above zero: scales have its
    sign turned. So all levels are in use, and what stands at the other end is cut by at most one step.

    Args:
        weight: float ``[rows, columns]``; a linear's rows are its output channels.
        bits: 4 or 8.
        block_size: the last block is filled up with zeros.

    Returns:
        int8 ``[rows, blocks, block_size]`` from ``-2^(bits-1)`` to ``2^(bits-1) - 1``, and float ``[rows, blocks]``
        scales. A block of zeros has scale 1.
    """
    weight = weight.detach().float()
    blocks = F.pad(weight, (0, -weight.shape[1] % block_size)).unflatten(1, (-1, block_size))
    lowest = -(2 ** (bits - 1))
    extreme = blocks.gather(2, blocks.abs().argmax(dim=2, keepdim=True))[..., 0]
    scales = torch.where(extreme.abs() > _LEAST_BLOCK, extreme / lowest, torch.ones_like(extreme))
    codes = torch.round(blocks / scales[..., None]).clamp(lowest, -lowest - 1).to(torch.int8)
    return codes, scales


def rounded_blocks(weight: Tensor, bits: int, block_size: int) -> Tensor:
    """Return a matrix rounded by blocks, with straight-through gradients."""
    codes, scales = weight_blocks(weight, bits, block_size)
    rounded = (codes * scales[..., None]).flatten(1)[:, : weight.shape[1]]
    return straight_through(weight, rounded.to(weight.dtype))


def rounded_weight(weight: Tensor, precision: WholeNumbers) -> Tensor:
    """Return a matrix rounded as the precision does, with straight-through gradients.

    What has been rounded stays as it is, to the bit: the largest magnitude, of which scales are made, is on the grid.
    """
    if isinstance(precision, Int8Blocks | Int4Blocks):
        return rounded_blocks(weight, precision.bits, precision.block_size)
    return rounded_rows(weight, weight_levels(precision))


def scale_and_zero(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point, a whole float, with which uint8 covers a range that 0 is made part of."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, torch.round(-low / scale)


def uint8_activations(values: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Round activations as ONNX `DynamicQuantizeLinear` does: one scale and zero point for the whole tensor.

    Given a range, round as `QuantizeLinear` does with the scale of that range; what lies outside comes to its ends.
    """
    low = values.detach().amin() if low is None else low
    high = values.detach().amax() if high is None else high
    scale, zero = scale_and_zero(low, high)
    rounded = (torch.clamp(torch.round(values / scale) + zero, 0, 255) - zero) * scale
    return straight_through(values, rounded)


def block_activations(values: Tensor, block_size: int) -> Tensor:
    """Round each ``block_size`` numbers of a row to int8 with one scale, as `MatMulNBits` does on CPUs at level 4."""
    detached = values.detach()
    blocks = F.pad(detached, (0, -values.shape[-1] % block_size)).unflatten(-1, (-1, block_size))
    largest = blocks.abs().amax(dim=-1, keepdim=True).clamp(min=_LEAST_BLOCK)
    rounded = torch.round(blocks * (127 / largest)) * (largest / 127)
    return straight_through(values, rounded.flatten(-2)[..., : values.shape[-1]])


def to_float_kind(values: Tensor, kind: FloatKind) -> Tensor:
    """Round to half precision, with straight-through gradients; fp32 stays as it is."""
    if kind == "fp32":
        return values
    return straight_through(values, values.detach().to(_HALF[kind]).to(values.dtype))
