"""What adapters do to one tensor of a checkpoint: every kind, as the shapes that it asks for and the sum that it makes.

All are linear in what the tensor is multiplied with, so that the merged tensor computes what tensor and adapter do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """One change of one tensor.

    Attributes:
        target: the tensor's name in the checkpoint.
        parts: what the adapter's file holds for it, float64 (indices int64), by role.
    """

    target: str
    parts: Mapping[str, Tensor]

    @abstractmethod
    def expected(self, shape: Shape) -> dict[str, Shape]:
        """Return the shape that each part must have for a target of ``shape``."""

    @abstractmethod
    def merged(self, tensor: Tensor) -> Tensor:
        """Return the target's new value, float64; shapes were checked before."""

    def misfits(self, shape: Shape) -> list[str]:
        """Return what is wrong for a target of ``shape``, in words."""
        found = {role: tuple(part.shape) for role, part in self.parts.items()}
        return [
            f"{role} is {list(found[role])}, for {list(shape)} it would be {list(wanted)}"
            for role, wanted in self.expected(shape).items()
            if found[role] != wanted
        ]


@dataclass(frozen=True, kw_only=True)
class Replacement(Change):
    """``W := value``: modules that were trained whole, such as the scoring head."""

    def expected(self, shape: Shape) -> dict[str, Shape]:
        return {"value": shape}

    def merged(self, tensor: Tensor) -> Tensor:
        return self.parts["value"]


@dataclass(frozen=True, kw_only=True)
class Shift(Change):
    """``b := b + scaling · shift``, for biases."""

    scaling: float = 1.0

    def expected(self, shape: Shape) -> dict[str, Shape]:
        return {"shift": shape}

    def merged(self, tensor: Tensor) -> Tensor:
        return tensor + self.scaling * self.parts["shift"]


@dataclass(frozen=True, kw_only=True)
class LowRank(Change):
    """``W := W + scaling · up @ down``, ``[outputs, R] @ [R, inputs]`` (LoRA, arXiv 2106.09685).

    With ``magnitude [outputs]`` the rows of that sum are brought to these lengths (DoRA, arXiv 2402.09353).

    Attributes:
        rank: R, as the config says.
        is_table: an embedding of ``[rows, width]``: its factors are those of the transposed table.
    """

    rank: int
    scaling: float
    is_table: bool = False

    def expected(self, shape: Shape) -> dict[str, Shape]:
        outputs, inputs = reversed(shape) if self.is_table else shape
        shapes: dict[str, Shape] = {"down": (self.rank, inputs), "up": (outputs, self.rank)}
        return shapes | ({"magnitude": (outputs,)} if "magnitude" in self.parts else {})

    def merged(self, tensor: Tensor) -> Tensor:
        update = self.scaling * (self.parts["up"] @ self.parts["down"])
        total = tensor + (update.T if self.is_table else update)
        if "magnitude" not in self.parts:
            return total
        return total * (self.parts["magnitude"] / total.norm(dim=1))[:, None]


@dataclass(frozen=True, kw_only=True)
class RandomBases(Change):
    """A full-rank update as a sum of scaled random bases of rank R (RandLoRA, arXiv 2502.00987), in PEFT's form.

    With n = ⌈min / R⌉ for the smaller and the larger of the target's sides, ``lambda [R, n]`` and ``gamma [n, min]``
    scale the shared base ``a [R, 1, ≥ min]``; ``b [≥ max, ≥ n, R]`` is cut to the target.
    """

    rank: int
    scaling: float

    def expected(self, shape: Shape) -> dict[str, Shape]:
        smaller, larger = min(shape), max(shape)
        n_bases = math.ceil(smaller / self.rank)
        a, b = self.parts["a"].shape, self.parts["b"].shape
        base_a = (self.rank, 1, max(smaller, *a[2:]))  # shared by targets of all sizes: larger ones are cut
        base_b = (max(larger, *b[:1]), max(n_bases, *b[1:2]), self.rank)
        return {"lambda": (self.rank, n_bases), "gamma": (n_bases, smaller), "a": base_a, "b": base_b}

    def merged(self, tensor: Tensor) -> Tensor:
        return tensor + self.scaling * update_of_bases(self.parts, tensor.shape)


@dataclass(frozen=True, kw_only=True)
class Sparse(Change):
    """``W[indices] += values``, ``indices [dimensions, N]`` (LT-SFT, arXiv 2110.07560; SHiRA, arXiv 2406.13175)."""

    def expected(self, shape: Shape) -> dict[str, Shape]:
        count = self.parts["values"].numel()
        return {"values": (count,), "indices": (len(shape), count)}

    def misfits(self, shape: Shape) -> list[str]:
        wrong = super().misfits(shape)
        indices = self.parts["indices"]
        if not wrong and indices.numel():
            least, most = indices.min(dim=1).values, indices.max(dim=1).values
            if (least < 0).any() or (most >= torch.tensor(shape)).any():
                wrong = [f"indices go from {least.tolist()} to {most.tolist()} in a tensor of {list(shape)}"]
        return wrong

    def merged(self, tensor: Tensor) -> Tensor:
        return tensor.index_put(tuple(self.parts["indices"]), self.parts["values"], accumulate=True)


def update_of_bases(parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """Return RandLoRA's update of a matrix before it is scaled, ``[outputs, inputs]``.

    Args:
        parts: ``lambda``, ``gamma``, ``a`` and ``b``, as of `RandomBases`.
        shape: the matrix's.
    """
    (outputs, inputs), n_bases = shape, parts["gamma"].shape[0]
    smaller, larger = min(outputs, inputs), max(outputs, inputs)
    # PEFT counts one factor's rows rank by rank and the other's columns base by base: so adapters are trained.
    rows = (parts["lambda"][:, :, None] * parts["a"][:, :, :smaller] * parts["gamma"]).flatten(0, 1)
    update = parts["b"][:larger, :n_bases].flatten(1) @ rows  # [larger, smaller]
    return update if inputs == smaller else update.T


def shapes_of_bases(rank: int, smaller: int, larger: int) -> tuple[Shape, Shape]:
    """Return the shapes of RandLoRA's ``a`` and ``b``; arguments as of `drawn_ternary_bases`."""
    return (rank, 1, smaller), (larger, math.ceil(smaller / rank), rank)


def drawn_uniform_bases(rank: int, smaller: int, larger: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw RandLoRA's dense bases, as PEFT does but for the half precision in which it draws them.

    Arguments and result as of `drawn_ternary_bases`: uniform around zero, of standard deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = (2 * torch.rand(shape, generator=generator) - 1 for shape in shapes_of_bases(rank, smaller, larger))
    return a / a.std(), b / b.std()


def drawn_ternary_bases(rank: int, smaller: int, larger: int, seed: int, *, very: bool) -> tuple[Tensor, Tensor]:
    """Draw RandLoRA's sparse bases of -1, 0 and 1 again, as PEFT does on a CPU in fp32.

    Args:
        rank: R of the bases.
        smaller, larger: the smaller and the larger of the most outputs and the most inputs among adapted matrices.
        seed: PEFT's ``projection_prng_key``.
        very: whether one of ``√smaller`` entries is not zero, in place of one of three.

    Returns:
        ``a [R, 1, smaller]`` and ``b [larger, ⌈smaller / R⌉, R]``, fp32.
    """
    generator = torch.Generator().manual_seed(seed)
    one_of = math.sqrt(smaller) if very else 3
    a, b = (torch.rand(shape, generator=generator) for shape in shapes_of_bases(rank, smaller, larger))
    return _ternary(a, one_of), _ternary(b, one_of)


def _ternary(uniform: Tensor, one_of: float) -> Tensor:
    signs = (uniform > 1 - 1 / (2 * one_of)).float() - (uniform < 1 / (2 * one_of)).float()
    return signs / signs.std()
