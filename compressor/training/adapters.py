"""Adapters beside frozen matrices: LoRA and RandLoRA, trained alone and merged in the end, under masks and rounding."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.families.adapter_changes import drawn_ternary_bases, drawn_uniform_bases, update_of_bases
from compressor.ranker.linears import Linear
from compressor.ranker.spec import Float32, LinearSpec, SparseForm
from compressor.training.stand_ins import StandIn

Bases = Literal["dense", "sparse", "very_sparse"]


class Adapter(nn.Module, ABC):
    """What is added to one matrix ``[outputs, inputs]``; nothing at first.

    ``parts``: all that is trained, by the names that PEFT's files have them under.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({name: nn.Parameter(part) for name, part in parts.items()})

    @abstractmethod
    def update_of(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return what parts like those of this adapter add, ``[outputs, inputs]``, on their device."""

    def update(self) -> Tensor:
        """Return what is added now."""
        return self.update_of(dict(self.parts.items()))

    def thin_product(self, values: Tensor, outputs: int | None, inputs: int | None) -> Tensor | None:
        """Return ``values`` times the update, where that takes no whole matrix."""
        return None


class LoraAdapter(Adapter):
    """``Δ = α / R · up down``, ``[outputs, R] [R, inputs]`` (LoRA, arXiv 2106.09685); ``up`` starts at zero.

    Args:
        spec: the linear's.
        rank: R.
        alpha: α.
        generator: draws ``down``.
    """

    def __init__(self, spec: LinearSpec, rank: int, alpha: float, generator: torch.Generator) -> None:
        down = nn.init.kaiming_uniform_(torch.empty(rank, spec.inputs), a=math.sqrt(5), generator=generator)
        super().__init__({"down": down, "up": torch.zeros(spec.outputs, rank)})
        self.scaling = alpha / rank

    def update_of(self, parts: Mapping[str, Tensor]) -> Tensor:
        return self.scaling * (parts["up"] @ parts["down"])

    def thin_product(self, values: Tensor, outputs: int | None, inputs: int | None) -> Tensor:
        inner = F.linear(values, self.parts["down"][:, :inputs])
        return self.scaling * F.linear(inner, self.parts["up"][:outputs])


class SharedBases:
    """RandLoRA's random bases, fp32: one pair for all matrices of a ranker, never trained and never stored.

    Args:
        shapes: ``outputs, inputs`` of all adapted matrices; the bases are as large as any of them needs.
        rank: R of the bases.
        seed: equal seeds draw equal bases.
        kind: ``dense``, or ternary ones: ``sparse``, ``very_sparse``.
    """

    def __init__(self, shapes: list[tuple[int, int]], rank: int, seed: int, kind: Bases) -> None:
        sides = [max(side) for side in zip(*shapes, strict=True)]
        smaller, larger = min(sides), max(sides)
        if kind == "dense":
            self._pair = drawn_uniform_bases(rank, smaller, larger, seed)
        else:
            self._pair = drawn_ternary_bases(rank, smaller, larger, seed, very=kind == "very_sparse")
        self._like = {(torch.device("cpu"), torch.float32): self._pair}

    def like(self, part: Tensor) -> dict[str, Tensor]:
        """Return both on a part's device and in its precision: once for all adapters."""
        key = (part.device, part.dtype)
        if key not in self._like:
            with torch.inference_mode(False):  # training has to be able to use them, whoever asks first
                a, b = (base.to(part) for base in self._pair)
            self._like[key] = (a, b)
        a, b = self._like[key]
        return {"a": a, "b": b}


class RandLoraAdapter(Adapter):
    """A full-rank update out of fixed random bases, whose scales alone are trained (RandLoRA, arXiv 2502.00987).

    ``Δ = α / R · Σ b_j (λ_j ∘ a ∘ γ_j)`` over n = ⌈min / R⌉ bases of rank R, for the smaller of the matrix's sides, in
    PEFT's form, which pairs terms in an order of its own: ``lambda [R, n]`` starts at zero, ``gamma [n, min]`` at
    ``1 / max(n, min)``.

    Args:
        spec: the linear's.
        rank: R; a smaller one has more parameters.
        alpha: α.
        bases: shared by all adapters.
    """

    def __init__(self, spec: LinearSpec, rank: int, alpha: float, bases: SharedBases) -> None:
        smaller = min(spec.outputs, spec.inputs)
        n_bases = math.ceil(smaller / rank)
        gamma = torch.full((n_bases, smaller), 1 / max(n_bases, smaller))
        super().__init__({"lambda": torch.zeros(rank, n_bases), "gamma": gamma})
        self.shape, self.scaling, self._bases = (spec.outputs, spec.inputs), alpha / rank, bases

    def update_of(self, parts: Mapping[str, Tensor]) -> Tensor:
        bases = self._bases.like(parts["gamma"])
        return self.scaling * update_of_bases({**parts, **bases}, self.shape)


class AdaptedLinear(StandIn):
    """A linear whose matrix W stays as it is, and an adapter beside it: ``y = x (W + Δ)ᵀ + b``.

    Where zeros of W are to stay, Δ is masked at every step, so that what learns is what will be merged. Where W is
    rounded, the sum is: what learns has to get through the rounding, as the merged matrix will.

    Args:
        linear: one matrix; its parameters are copied, and the copies frozen.
        adapter: Δ.
        dropout: the share of inputs that Δ, and Δ alone, does not see at a step; of exact linears only.
    """

    kept: Tensor | None

    def __init__(self, linear: Linear, adapter: Adapter, dropout: float = 0.0) -> None:
        super().__init__(linear)
        self.requires_grad_(False)
        is_sparse = isinstance(self.spec.form, SparseForm)
        self.register_buffer("kept", self.weight != 0 if is_sparse else None, persistent=False)
        self.adapter, self.dropout = adapter, dropout
        self._is_exact = isinstance(self.spec.precision, Float32)
        if dropout and not self._is_exact:
            raise ValueError("dropout beside a matrix that is rounded together with its update")

    def forward(self, values: Tensor, *, outputs: int | None = None, inputs: int | None = None) -> Tensor:
        # By gradients and not by the module's mode, which is evaluation where the ranker itself drops nothing.
        is_dropping = self.dropout > 0 and torch.is_grad_enabled()
        seen = F.dropout(values, self.dropout) if is_dropping else values
        is_thin = self._is_exact and self.kept is None
        update = self.adapter.thin_product(seen, outputs, inputs) if is_thin else None
        if update is None and not is_dropping:
            return super().forward(values, outputs=outputs, inputs=inputs)
        if update is None:
            update = F.linear(seen, self._masked(self.adapter.update())[:outputs, :inputs])
        bias = None if self.bias is None else self.bias[:outputs]
        return F.linear(values, self.weight[:outputs, :inputs], bias) + update

    def matrix(self) -> Tensor:
        return self.weight + self._masked(self.adapter.update())

    @torch.no_grad()
    def settled(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prefix = "adapter.parts."
        parts = {name.removeprefix(prefix): part.double() for name, part in state.items() if name.startswith(prefix)}
        update = self.adapter.update_of(parts)
        if self.kept is not None:
            update = update * self.kept.cpu()
        own = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        return {**own, "weight": (state["weight"].double() + update).float()}

    def _masked(self, update: Tensor) -> Tensor:
        return update if self.kept is None else update * self.kept
