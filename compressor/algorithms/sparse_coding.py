"""Vectors as sums of few atoms: sparse coding and least squares in turn (dictionary learning)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compressor.ranker.dense_sparse import INDEX_TYPES, vectors_of
from compressor.ranker.spec import DenseSparseForm

_ROUNDS = 8  # in which a code's atoms are chosen, several at once
_AT_ONCE = 512  # vectors whose equations are held at once
_LEAST_RIDGE = 1e-6  # of the mean square of what is solved for


class SparseFactors(NamedTuple):
    """Vectors as ``codes @ atoms``.

    Attributes:
        atoms: ``[atoms, length]``, of unit norm.
        values: ``[vectors, nonzeros]``.
        indices: int64, of the same shape: the atoms of each vector, ascending, no atom twice.
    """

    atoms: Tensor
    values: Tensor
    indices: Tensor

    def product(self) -> Tensor:
        """Return the vectors that these factors stand for, ``[vectors, length]``."""
        return _codes(self.values, self.indices, len(self.atoms)) @ self.atoms


def sparse_factors(vectors: Tensor, n_atoms: int, nonzeros: int, sweeps: int, seed: int) -> SparseFactors:
    """Return atoms and codes whose product is near some vectors, in least squares.

    A sweep codes every vector anew by orthogonal matching pursuit, where that is better than the code it had, and fits
    all atoms to the codes; so no sweep makes the error larger. An atom that no code uses becomes the vector that is met
    worst.

    Args:
        vectors: float32 ``[vectors, length]``.
        n_atoms: how many atoms, at most as many as there are vectors.
        nonzeros: how many of them each vector is a sum of.
        sweeps: how often.
        seed: for the vectors that the atoms begin as.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(vectors), generator=generator)[:n_atoms]
    atoms = _of_unit_norm(vectors[chosen] + 1e-6 * torch.randn(n_atoms, vectors.shape[1], generator=generator))
    values, indices = _pursued(vectors, atoms, nonzeros)
    for _ in range(sweeps):
        codes = _codes(values, indices, n_atoms)
        atoms = _fitted_atoms(vectors, codes, atoms)
        values = _fitted_values(vectors, atoms, indices)
        other, others = _pursued(vectors, atoms, nonzeros)
        is_better = _errors(vectors, atoms, other, others) < _errors(vectors, atoms, values, indices)
        values = torch.where(is_better[:, None], other, values)
        indices = torch.where(is_better[:, None], others, indices)
    order = indices.argsort(dim=1)
    return SparseFactors(atoms=atoms, values=values.gather(1, order), indices=indices.gather(1, order))


def _pursued(vectors: Tensor, atoms: Tensor, nonzeros: int) -> tuple[Tensor, Tensor]:
    """Code all vectors at once: orthogonal matching pursuit that takes several atoms in a round (arXiv 1111.6664)."""
    products, gram = vectors @ atoms.T, atoms @ atoms.T
    left = products
    indices = torch.zeros(len(vectors), 0, dtype=torch.int64)
    values = vectors.new_zeros(len(vectors), 0)
    rounds = min(_ROUNDS, nonzeros)
    for number in range(rounds):
        count = nonzeros * (number + 1) // rounds - indices.shape[1]
        free = left.abs().scatter(1, indices, -1.0)
        indices = torch.cat([indices, free.topk(count, dim=1).indices], dim=1)
        values = _solved(products, gram, indices)
        left = products - _codes(values, indices, len(atoms)) @ gram
    return values, indices


def _fitted_values(vectors: Tensor, atoms: Tensor, indices: Tensor) -> Tensor:
    """Return the best values of codes whose atoms stay."""
    return _solved(vectors @ atoms.T, atoms @ atoms.T, indices)


def _solved(products: Tensor, gram: Tensor, indices: Tensor) -> Tensor:
    ridge, found = _LEAST_RIDGE * torch.eye(indices.shape[1]), []
    for some, wanted in zip(indices.split(_AT_ONCE), products.gather(1, indices).split(_AT_ONCE), strict=True):
        among = gram[some[:, :, None], some[:, None, :]]  # [vectors, nonzeros, nonzeros]
        found.append(torch.cholesky_solve(wanted[..., None], torch.linalg.cholesky(among + ridge))[..., 0])
    return torch.cat(found)


def _fitted_atoms(vectors: Tensor, codes: Tensor, before: Tensor) -> Tensor:
    """Return the best atoms for codes; those that no code uses begin anew."""
    among = codes.T @ codes
    level = among.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    atoms = torch.linalg.solve(among + _LEAST_RIDGE * level * torch.eye(len(among)), codes.T @ vectors)
    unused = ~(codes != 0).any(dim=0)
    if unused.any():
        missed = (vectors - codes @ before).square().sum(dim=1)
        atoms[unused] = vectors[missed.topk(int(unused.sum())).indices]
    return _of_unit_norm(atoms)


def _of_unit_norm(atoms: Tensor) -> Tensor:
    return atoms / atoms.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _codes(values: Tensor, indices: Tensor, n_atoms: int) -> Tensor:
    return values.new_zeros(len(values), n_atoms).scatter(1, indices, values)


def _errors(vectors: Tensor, atoms: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return (vectors - _codes(values, indices, len(atoms)) @ atoms).square().sum(dim=1)


def as_atoms_and_codes(
    matrix: Tensor, form: DenseSparseForm, sweeps: int, seed: int
) -> tuple[dict[str, Tensor], float]:
    """Return what is stored of a matrix in a dense-sparse form, and the share of its squares that is missed.

    Args:
        matrix: ``[outputs, inputs]``.
        form: how many atoms, non-zeros and blocks.
        sweeps: of `sparse_factors`.
        seed: of its start.
    """
    blocks = vectors_of(form, matrix.float())
    found = [sparse_factors(block, form.atoms, form.nonzeros, sweeps, seed + at) for at, block in enumerate(blocks)]
    missed = sum(float((block - one.product()).square().sum()) for block, one in zip(blocks, found, strict=True))
    stored = {
        "atoms": torch.stack([one.atoms for one in found]),
        "values": torch.stack([one.values for one in found]),
        "indices": torch.stack([one.indices for one in found]).to(INDEX_TYPES[form.index_bytes]),
    }
    return stored, missed / max(float(matrix.square().sum()), torch.finfo(torch.float32).tiny)
