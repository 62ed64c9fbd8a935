"""Low-rank factors of a matrix: the best of every rank in a weighted norm, and what each rank loses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_LEAST_SHARE = 1e-6  # of the largest output weight: no output is free to be anything


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """A matrix W ``[outputs, inputs]`` as a sum of rank-one parts, those that matter most first.

    Attributes:
        writes: float64 ``[outputs, parts]``.
        reads: float64 ``[parts, inputs]``; ``writes @ reads`` is W.
        losses: float64 ``[parts + 1]``: the squared error, in the norm of the decomposition, of the first 0, 1, 2 ...
            parts.
    """

    writes: Tensor
    reads: Tensor
    losses: Tensor

    def relative(self) -> Decomposition:
        """Return the same with losses as shares of all that there is to lose."""
        tiny = torch.finfo(torch.float32).tiny
        return replace(self, losses=self.losses / self.losses[0].clamp(min=tiny))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return ``up [outputs, rank]`` and ``down [rank, inputs]``, whose product no matrix of that rank is nearer to.

        Both are equally large, part by part, so that neither is hard to train or to round.
        """
        up, down = self.writes[:, :rank], self.reads[:rank]
        tiny = torch.finfo(torch.float32).tiny
        balance = (down.norm(dim=1).clamp(min=tiny) / up.norm(dim=0).clamp(min=tiny)).sqrt()
        return (up * balance).float().contiguous(), (down / balance[:, None]).float().contiguous()


def decomposed(
    weight: Tensor, inputs: Tensor | None = None, outputs: Tensor | None = None, judge: Tensor | None = None
) -> Decomposition:
    """Decompose a matrix W in the norm ``‖A (W - W') B‖`` with ``AᵀA`` and ``BBᵀ`` given.

    With U the left singular vectors of ``A W B``, the best W' of rank r is ``A⁻¹ U_r U_rᵀ A W`` (Eckart and Young): the
    outputs are projected on their principal components. So B is never inverted, and inputs that never vary do no harm.
    With the second moment of what W reads as ``BBᵀ`` that is the least squared error of what W gives (DRONE, NeurIPS
    2021; SVD-LLM, arXiv 2403.07378); without weights it is plain SVD.

    Args:
        weight: ``[outputs, inputs]``.
        inputs: ``BBᵀ``, ``[inputs, inputs]``, or the diagonal of one, ``[inputs]``; None weighs all alike.
        outputs: ``AᵀA``, ``[outputs, outputs]``, or the diagonal of one; None weighs all alike.
        judge: another ``AᵀA`` by which ``losses`` are counted, instead of ``outputs``.
    """
    whole = weight.double()
    forth, back = _root_and_inverse(outputs, len(whole))
    scaled = forth @ whole
    left, values, _ = torch.linalg.svd(scaled @ _root(inputs, whole.shape[1]), full_matrices=False)
    writes = back @ left
    energies = values.square()
    if judge is not None:
        energies = energies * (writes * (judge.double() @ writes)).sum(dim=0).clamp(min=0)
    tails = energies.flip(0).cumsum(0).flip(0)
    return Decomposition(writes=writes, reads=left.T @ scaled, losses=torch.cat([tails, tails.new_zeros(1)]))


def _root(second: Tensor | None, size: int) -> Tensor:
    """Return B with ``BBᵀ`` as given."""
    if second is None:
        return torch.eye(size, dtype=torch.float64)
    if second.dim() == 1:
        return second.double().clamp(min=0).sqrt().diag()
    values, vectors = torch.linalg.eigh(second.double())
    return vectors * values.clamp(min=0).sqrt()


def _root_and_inverse(second: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Return A with ``AᵀA`` as given, and its inverse."""
    if second is None:
        return torch.eye(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    if second.dim() == 1:
        values, vectors = second.double(), torch.eye(size, dtype=torch.float64)
    else:
        values, vectors = torch.linalg.eigh(second.double())
    tiny = torch.finfo(torch.float32).tiny
    roots = values.clamp(min=max(_LEAST_SHARE * float(values.max()), tiny)).sqrt()
    return roots[:, None] * vectors.T, vectors / roots
