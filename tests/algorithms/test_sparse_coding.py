"""Sparse coding finds planted atoms, never gets worse, and is nearer to real matrices than low rank."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from compressor.algorithms.sparse_coding import as_atoms_and_codes, sparse_factors
from compressor.ranker.dense_sparse import matrix_of_codes, spread
from compressor.ranker.spec import DenseSparseForm


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(vectors: torch.Tensor, product: torch.Tensor) -> float:
    return float((vectors - product).square().sum() / vectors.square().sum())


def test_planted_atoms_are_found():
    """Sums of two of 12 atoms in 10 dimensions: of full rank, so that no low rank could tell."""
    atoms, codes = drawn(12, 10, seed=1), torch.zeros(400, 12)
    codes.scatter_(1, torch.rand(400, 12, generator=torch.Generator().manual_seed(2)).argsort(dim=1)[:, :2], 1.0)
    vectors = (codes * (1 + drawn(400, 12, seed=3).abs())) @ atoms
    found = min(
        (sparse_factors(vectors, 12, 2, 60, seed) for seed in range(3)), key=lambda f: error(vectors, f.product())
    )
    left_by_rank_2 = torch.linalg.svdvals(vectors).square()[2:].sum() / vectors.square().sum()  # as many floats
    assert error(vectors, found.product()) < 0.1 * left_by_rank_2
    likeness = (found.atoms @ atoms.T / atoms.norm(dim=1)).abs()
    assert (likeness.max(dim=0).values > 0.99).sum() >= 8


def test_a_sweep_never_loses_and_codes_are_well_formed():
    vectors, errors = drawn(60, 12), []
    for sweeps in range(6):
        found = sparse_factors(vectors, 20, 4, sweeps, seed=5)
        errors.append(error(vectors, found.product()))
        assert found.indices.shape == found.values.shape == (60, 4)
        assert (found.indices.diff(dim=1) > 0).all()
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_codes_of_all_atoms_are_exact():
    vectors = drawn(30, 6)
    assert error(vectors, sparse_factors(vectors, 6, 6, 5, seed=0).product()) < 1e-6


@pytest.mark.parametrize("codes", ["rows", "columns"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_what_is_stored_stands_for_the_matrix(codes, blocks):
    matrix = drawn(18, 12)
    form = DenseSparseForm(codes=codes, atoms=8, nonzeros=3, blocks=blocks)
    stored, missed = as_atoms_and_codes(matrix, form, sweeps=3, seed=0)
    found = matrix_of_codes(form, spread(form, stored["values"], stored["indices"]), stored["atoms"])
    assert stored["indices"].dtype == torch.uint8
    assert error(matrix, found) == pytest.approx(missed, rel=1e-4)
    assert missed < 0.6


@pytest.mark.packaged
def test_atoms_and_codes_are_nearer_to_real_matrices_than_low_rank(packaged_teacher: Path):
    """At equal stored floats, indices not counted, as the paper compares."""
    from compressor.families import load_teacher

    ranker = load_teacher("packaged", packaged_teacher)
    for name in ("layers.0.ffn.up", "layers.6.ffn.down"):
        weight = ranker.weights[f"{name}.weight"]
        floats = weight.numel() * 0.36
        long, short = max(weight.shape), min(weight.shape)
        atoms = int(floats / (short + 0.25 * long))
        form = DenseSparseForm(
            codes="rows" if weight.shape[0] == long else "columns", atoms=atoms, nonzeros=int(0.25 * atoms)
        )
        _, missed = as_atoms_and_codes(weight, form, sweeps=2, seed=0)
        values = torch.linalg.svdvals(weight.double()).square()
        rank = int(floats / (long + short))
        assert form.weights(weight.shape[1], weight.shape[0]) <= floats
        assert missed < float(values[rank:].sum() / values.sum())
