"""Linear layers and lookup tables in every form and precision of the spec, with quantization simulated in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.dense_sparse import INDEX_TYPES, matrix_of_codes, spread
from compressor.ranker.quantizers import (
    block_activations,
    rounded_blocks,
    rounded_rows,
    rounded_weight,
    to_float_kind,
    uint8_activations,
)
from compressor.ranker.spec import (
    BFloat16,
    DenseSparseForm,
    Float16,
    Float32,
    FloatKind,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    LinearSpec,
    LowRankForm,
    TableSpec,
    float_kind,
)


def _first(weight: Tensor, rows: int | None, columns: int | None) -> Tensor:
    weight = weight if rows is None else weight[:rows]
    return weight if columns is None else weight[:, :columns]


class Linear(nn.Module):
    """``y = x Wᵀ + b`` over packed tokens ``[T, inputs]``, in the spec's form and precision.

    Called with ``outputs`` or ``inputs``, it gives or reads the first so many alone. ``mask``: what the one matrix goes
    through before it is used, where a training learns which of its weights stay.
    """

    indices: Tensor
    input_ranges: Tensor

    def __init__(self, spec: LinearSpec) -> None:
        super().__init__()
        self.spec = spec
        self.mask: Callable[[Tensor], Tensor] | None = None
        if isinstance(spec.form, LowRankForm):
            self.down = nn.Parameter(torch.empty(spec.form.rank, spec.inputs))
            self.up = nn.Parameter(torch.empty(spec.outputs, spec.form.rank))
        elif isinstance(spec.form, DenseSparseForm):
            form, (n_vectors, length) = spec.form, spec.form.vectors(spec.inputs, spec.outputs)
            self.atoms = nn.Parameter(torch.empty(form.blocks, form.atoms, length // form.blocks))
            self.values = nn.Parameter(torch.empty(form.blocks, n_vectors, form.nonzeros))
            self.register_buffer("indices", torch.zeros(self.values.shape, dtype=INDEX_TYPES[form.index_bytes]))
        else:
            self.weight = nn.Parameter(torch.empty(spec.outputs, spec.inputs))
        self.bias = nn.Parameter(torch.empty(spec.outputs)) if spec.bias else None
        if isinstance(spec.precision, Int8Static):  # observed, not learned: an optimizer never sees it
            n_products = 2 if isinstance(spec.form, LowRankForm) else 1
            self.register_buffer("input_ranges", torch.empty(n_products, 2))

    def forward(self, values: Tensor, *, outputs: int | None = None, inputs: int | None = None) -> Tensor:
        bias = self.bias if self.bias is None or outputs is None else self.bias[:outputs]
        if isinstance(self.spec.form, LowRankForm):
            inner = self._product(0, values, _first(self.down, None, inputs), None)
            return self._product(1, inner, _first(self.up, outputs, None), bias)
        weight = self.mask(self.weight) if self.mask else self.matrix()
        return self._product(0, values, _first(weight, outputs, inputs), bias)

    def matrix(self) -> Tensor:
        """Return the matrix that the linear multiplies by, ``[outputs, inputs]``."""
        if isinstance(self.spec.form, LowRankForm):
            return self.up @ self.down
        if isinstance(self.spec.form, DenseSparseForm):
            return matrix_of_codes(self.spec.form, spread(self.spec.form, self.values, self.indices), self.atoms)
        return self.weight

    def _product(self, index: int, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        match self.spec.precision:
            case Float32():
                return F.linear(values, weight, bias)
            case Int8Dynamic() as precision:
                return F.linear(uint8_activations(values), rounded_weight(weight, precision), bias)
            case Int8Static() as precision:
                rounded = uint8_activations(values, *self.input_ranges[index])
                return F.linear(rounded, rounded_weight(weight, precision), bias)
            case Int8Blocks(block_size=size) | Int4Blocks(block_size=size) as precision:
                return F.linear(block_activations(values, size), rounded_weight(weight, precision), bias)
            case Float16() | BFloat16() as precision:
                return _half_product(values, weight, bias, float_kind(precision))


def _half_product(values: Tensor, weight: Tensor, bias: Tensor | None, kind: FloatKind) -> Tensor:
    """Compute with rounded factors; sums are wide, what leaves the product and what leaves the addition is rounded."""
    product = to_float_kind(F.linear(to_float_kind(values, kind), to_float_kind(weight, kind)), kind)
    return product if bias is None else to_float_kind(product + to_float_kind(bias, kind), kind)


class Table(nn.Module):
    """A lookup table ``[rows, width]`` in the spec's precision; what is looked up is fp32."""

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.rows, spec.width))

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight)  # [T, width]
        match self.spec.precision:
            case Int8Rows():
                return rounded_rows(rows)
            case Int4Blocks(bits=bits, block_size=size):
                return rounded_blocks(rows, bits, size)
            case precision:
                return to_float_kind(rows, float_kind(precision))
