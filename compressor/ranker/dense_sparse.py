"""Matrices as few atoms and sparse codes: how they are stored, and the matrix that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.ranker.cost import linears_of
from compressor.ranker.forms import with_forms
from compressor.ranker.spec import DenseForm, DenseSparseForm, RankerSpec

INDEX_TYPES = {1: torch.uint8, 2: torch.int16}  # by bytes


def spread(form: DenseSparseForm, values: Tensor, indices: Tensor) -> Tensor:
    """Return sparse codes with all their zeros, ``[blocks, vectors, atoms]``."""
    codes = values.new_zeros(*values.shape[:2], form.atoms)
    return codes.scatter_add(2, indices.long(), values)


def matrix_of_codes(form: DenseSparseForm, codes: Tensor, atoms: Tensor) -> Tensor:
    """Return the matrix ``[outputs, inputs]`` of codes ``[blocks, vectors, atoms]``."""
    vectors = torch.matmul(codes, atoms).transpose(0, 1).flatten(1)  # [vectors, length]
    return vectors if form.codes == "rows" else vectors.T


def vectors_of(form: DenseSparseForm, matrix: Tensor) -> Tensor:
    """Return what is coded of a matrix ``[outputs, inputs]``: ``[blocks, vectors, length / blocks]``."""
    vectors = matrix if form.codes == "rows" else matrix.T
    return vectors.unflatten(1, (form.blocks, -1)).transpose(0, 1).contiguous()


def expanded(spec: RankerSpec, weights: Mapping[str, Tensor]) -> tuple[RankerSpec, dict[str, Tensor]]:
    """Return the same ranker with a whole matrix wherever there are atoms and codes."""
    sparse = {name: one for name, one in linears_of(spec) if isinstance(one.form, DenseSparseForm)}
    result = dict(weights)
    for name, one in sparse.items():
        form = one.form
        assert isinstance(form, DenseSparseForm)  # noqa: S101  # chosen above
        atoms, values, indices = (result.pop(f"{name}.{kind}") for kind in ("atoms", "values", "indices"))
        result[f"{name}.weight"] = matrix_of_codes(form, spread(form, values, indices), atoms).contiguous()
    return with_forms(spec, dict.fromkeys(sparse, DenseForm())), result


def broken_indices(weights: Mapping[str, Tensor]) -> list[str]:
    """Return where stored codes name atoms that there are not, in words."""
    faults = []
    for name, indices in weights.items():
        if name.endswith(".indices") and indices.numel():
            atoms = weights[f"{name.removesuffix('indices')}atoms"].shape[1]
            least, most = int(indices.min()), int(indices.max())
            if least < 0 or most >= atoms:
                faults.append(f"{name}: expected 0 to {atoms - 1}, found {least} to {most}")
    return faults
