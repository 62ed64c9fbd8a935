"""Linear layers and lookup tables in every form and precision of the spec, with quantization simulated in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.spec import Int8Dynamic, LinearSpec, LowRankForm, TableSpec


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


def weight_levels(precision: Int8Dynamic) -> int:
    """Return the largest int8 magnitude that the precision allows."""
    return 63 if precision.reduce_range else 127


def uint8_activations(values: Tensor) -> Tensor:
    """Round activations as ONNX `DynamicQuantizeLinear` does: one scale and zero point for the whole tensor."""
    low = values.detach().amin().clamp(max=0)
    high = values.detach().amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.round(-low / scale)
    rounded = (torch.clamp(torch.round(values / scale) + zero, 0, 255) - zero) * scale
    return straight_through(values, rounded)


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded`` in the forward pass and pass gradients on as if nothing had been rounded."""
    return values + (rounded - values).detach() if values.requires_grad else rounded


def _rounded_rows(weight: Tensor, levels: int) -> Tensor:
    values, scales = int8_rows(weight, levels=levels)
    return straight_through(weight, values.to(weight.dtype) * scales[:, None].to(weight.dtype))


def _first(weight: Tensor, rows: int | None, columns: int | None) -> Tensor:
    weight = weight if rows is None else weight[:rows]
    return weight if columns is None else weight[:, :columns]


class Linear(nn.Module):
    """``y = x Wᵀ + b`` over packed tokens ``[T, inputs]``, in the spec's form and precision.

    Called with ``outputs`` or ``inputs``, it gives or reads the first so many alone. ``mask``: what the one matrix goes
    through before it is used, where a training learns which of its weights stay.
    """

    def __init__(self, spec: LinearSpec) -> None:
        super().__init__()
        self.spec = spec
        self.mask: Callable[[Tensor], Tensor] | None = None
        if isinstance(spec.form, LowRankForm):
            self.down = nn.Parameter(torch.empty(spec.form.rank, spec.inputs))
            self.up = nn.Parameter(torch.empty(spec.outputs, spec.form.rank))
        else:
            self.weight = nn.Parameter(torch.empty(spec.outputs, spec.inputs))
        self.bias = nn.Parameter(torch.empty(spec.outputs)) if spec.bias else None

    def forward(self, values: Tensor, *, outputs: int | None = None, inputs: int | None = None) -> Tensor:
        bias = self.bias if self.bias is None or outputs is None else self.bias[:outputs]
        if isinstance(self.spec.form, LowRankForm):
            inner = self._product(values, _first(self.down, None, inputs), None)
            return self._product(inner, _first(self.up, outputs, None), bias)
        weight = self.mask(self.weight) if self.mask else self.weight
        return self._product(values, _first(weight, outputs, inputs), bias)

    def _product(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        precision = self.spec.precision
        if isinstance(precision, Int8Dynamic):
            return F.linear(uint8_activations(values), _rounded_rows(weight, weight_levels(precision)), bias)
        return F.linear(values, weight, bias)


class Table(nn.Module):
    """A lookup table ``[rows, width]`` in the spec's precision."""

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.rows, spec.width))

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight)  # [T, width]
        return _rounded_rows(rows, 127) if self.spec.precision.kind == "int8_rows" else rows
