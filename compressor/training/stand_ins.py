"""Linears that stand in for others while a ranker trains: what they learn with goes, what they learned stays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.dense_sparse import INDEX_TYPES, matrix_of_codes, spread
from compressor.ranker.encoder import Encoder
from compressor.ranker.linears import Linear
from compressor.ranker.quantizers import straight_through
from compressor.ranker.spec import DenseSparseForm
from compressor.training.objective import Objective

Part = TypeVar("Part", bound="StandIn")


class StandIn(Linear, ABC):
    """A linear with more parameters than its spec has, until it settles."""

    def __init__(self, linear: Linear) -> None:
        super().__init__(linear.spec)
        self.load_state_dict(linear.state_dict())

    @abstractmethod
    def settled(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the spec's linear out of those of this one, by names that begin at the linear."""


class PhasedStandIn(StandIn):
    """One that computes otherwise as training goes on.

    ``steps`` counts steps of the optimizer; it is stored with the weights, so that a killed training goes on exactly.
    """

    steps: Tensor

    def __init__(self, linear: Linear, n_steps: int) -> None:
        super().__init__(linear)
        self.n_steps = n_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def after_step(self) -> None:
        """Take note of a step of the optimizer."""
        self.steps += 1


class GuidedLinear(PhasedStandIn):
    """Low-rank factors beside the matrix that they stand for, which fades (StructuredFFN, arXiv 2406.16450).

    The result is ``α W x + (1 - α) U V x``, each with its bias. α falls from 1 to 0 like a cosine over the first steps:
    training starts where the ranker was, and all of it learns while the factors take over. ``leans``: false while
    the factors alone are asked for, as when they are evaluated.

    Args:
        linear: the factors.
        n_steps: of the whole training.
        weight, bias: of the matrix.
        guided_share: of the training, over which the matrix fades.
    """

    def __init__(
        self, linear: Linear, n_steps: int, *, weight: Tensor, bias: Tensor | None, guided_share: float
    ) -> None:
        super().__init__(linear, n_steps)
        self.guided_share, self.leans = guided_share, True
        self.guide_weight = nn.Parameter(weight.detach().clone())
        self.guide_bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def guide(self) -> float:
        """The share of the result that comes from the matrix."""
        progress = int(self.steps) / max(1.0, self.guided_share * self.n_steps)
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.leans and progress < 1 else 0.0

    def forward(self, values: Tensor, *, outputs: int | None = None, inputs: int | None = None) -> Tensor:
        guide = self.guide
        thin = super().forward(values, outputs=outputs, inputs=inputs)
        if not guide:
            return thin
        bias = None if self.guide_bias is None else self.guide_bias[:outputs]
        return guide * F.linear(values, self.guide_weight[:outputs, :inputs], bias) + (1 - guide) * thin

    def settled(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {kind: tensor for kind, tensor in state.items() if kind in ("up", "down", "bias")}


class StraightThroughLinear(PhasedStandIn):
    """Atoms and codes that choose their atoms anew at every step (DSFormer's straight-through factorizer).

    All codes are kept in full. The largest entries of each vector are used, and the gradient reaches the others as if
    they had been, so that atoms can come back. Over the last steps the choice stays, and what it leaves out is zero.

    Args:
        linear: atoms and codes to begin with.
        n_steps: of the whole training.
        frozen_share: of the training, at its end, over which the choice stays.
    """

    support: Tensor

    def __init__(self, linear: Linear, n_steps: int, *, frozen_share: float) -> None:
        super().__init__(linear, n_steps)
        assert isinstance(linear.spec.form, DenseSparseForm)  # noqa: S101  # no other form has codes
        self.form, self.frozen_share = linear.spec.form, frozen_share
        self.latent = nn.Parameter(spread(self.form, linear.values.detach(), linear.indices))
        self.register_buffer("support", torch.ones_like(self.latent, dtype=torch.bool))
        del self.values, self.indices

    @property
    def is_frozen(self) -> bool:
        return int(self.steps) >= self.n_steps * (1 - self.frozen_share) > 0

    def matrix(self) -> Tensor:
        if self.is_frozen:
            return matrix_of_codes(self.form, self.latent * self.support, self.atoms)
        used = self.latent * self._largest()
        return matrix_of_codes(self.form, straight_through(self.latent, used), self.atoms)

    @torch.no_grad()
    def after_step(self) -> None:
        was_frozen = self.is_frozen
        super().after_step()
        if self.is_frozen:
            if not was_frozen:
                self.support.copy_(self._largest())
            self.latent.mul_(self.support)

    def settled(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        codes = state["latent"]
        indices = codes.abs().topk(self.form.nonzeros, dim=2).indices.sort(dim=2).values
        found = {kind: tensor for kind, tensor in state.items() if kind in ("atoms", "bias")}
        return {**found, "values": codes.gather(2, indices), "indices": indices.to(INDEX_TYPES[self.form.index_bytes])}

    def _largest(self) -> Tensor:
        """Return where an entry is among the largest of its vector."""
        codes = self.latent.detach()
        places = codes.abs().topk(self.form.nonzeros, dim=2).indices
        return torch.zeros_like(codes, dtype=torch.bool).scatter(2, places, True)


def stand_in(module: Encoder, names: Iterable[str], make: Callable[[str, Linear], Part]) -> dict[str, Part]:
    """Put stand-ins into a module, in place of linears of these names; return them."""
    parts = {}
    for name in names:
        linear = module.get_submodule(name)
        assert isinstance(linear, Linear)  # noqa: S101  # names of linears were given
        parts[name] = make(name, linear)
        module.set_submodule(name, parts[name])
    return parts


def settled_weights(parts: Mapping[str, StandIn], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a ranker out of those of a module with stand-ins, which are given by name."""
    result = dict(weights)
    for name, part in parts.items():
        prefix = f"{name}."
        state = {each: result.pop(each) for each in weights if each.startswith(prefix)}
        found = part.settled({each.removeprefix(prefix): tensor for each, tensor in state.items()})
        result |= {f"{prefix}{kind}": tensor for kind, tensor in found.items()}
    return result


class StandInObjective(Objective):
    """The losses of an `Objective` for a module some of whose linears have stand-ins.

    Args:
        make: returns the stand-in of a linear, given its name, itself and the number of steps.
        names: of the linears.
        losses: as of `Objective`.
    """

    def __init__(self, make: Callable[[str, Linear, int], PhasedStandIn], names: list[str], **losses: Any) -> None:
        super().__init__(**losses)
        self._make, self._names = make, names
        self._parts: dict[str, PhasedStandIn] = {}

    def begin(self, module: Encoder, n_steps: int) -> None:
        self._parts = stand_in(module, self._names, lambda name, linear: self._make(name, linear, n_steps))

    def after_step(self) -> None:
        for part in self._parts.values():
            part.after_step()

    def settled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return settled_weights(self._parts, weights)


@contextmanager
def on_their_own(module: Encoder) -> Iterator[None]:
    """Have factors do without their guides while the block runs."""
    guided = [part for part in module.modules() if isinstance(part, GuidedLinear)]
    for part in guided:
        part.leans = False
    try:
        yield
    finally:
        for part in guided:
            part.leans = True
