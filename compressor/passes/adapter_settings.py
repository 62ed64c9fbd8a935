"""Adapters in training passes: which linears get one, of what kind and size, and what else is trained beside them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from compressor.passes.contract import PlanError
from compressor.passes.rank_budget import Which, named_linears
from compressor.ranker.cost import linear_weights
from compressor.ranker.spec import LinearSpec, RankerSpec
from compressor.records import Record
from compressor.training.settings import Share

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.ranker.encoder import Encoder
    from compressor.training.adapters import Adapter

Beside = Literal["norms", "biases", "head"]


class AdapterSettings(Record, ABC):
    """Adapters beside the matrices of a ranker, which are frozen; what they learned is merged in the end.

    ``rank``, ``alpha``: an update is scaled by ``alpha / rank``.
    ``linears``: ``all`` of the layers, ``ffn``, ``attention``, or patterns of names: ``[layers.*.ffn.up]``. Where one
    is factors already (low rank, or atoms and codes), these are trained as they are: an update could not be merged
    into them, and they are as thin as it would be. So is a matrix that is no larger than its adapter. All other
    linears, and the embeddings, stay to the bit.
    ``dropout``: the share of its inputs that an adapter does not see at a step.
    ``also``: what else is trained: ``norms``, ``biases`` of linears, and the ``head`` with those of exits.
    """

    rank: PositiveInt
    linears: Which = "all"
    dropout: Share = 0.0
    also: tuple[Beside, ...] = ()

    @abstractmethod
    def parameters_of(self, linear: LinearSpec) -> int:
        """Return how many parameters the adapter of a linear has."""

    @abstractmethod
    def maker(self, linears: Mapping[str, LinearSpec], seed: int) -> Callable[[LinearSpec], Adapter]:
        """Return what makes the adapters of these linears, one after the other."""

    def adapted(self, spec: RankerSpec) -> dict[str, LinearSpec]:
        """Return the linears that get an adapter, by name.

        Raises:
            PlanError: there is none, no adapter is smaller than its matrix, or one would drop out where all is rounded.
        """
        named = named_linears(spec, self.linears, "adapters.linears")
        matrices = {name: one for name, one in named.items() if one.is_one_matrix}
        if not matrices:
            found = f"adapters for {len(named)} linears, all of them factorized already"
            fix = "take adapters away: training all of such a ranker is cheap, too; or name other linears"
            raise PlanError(found, fix=fix, setting="adapters.linears")
        smaller = {name: one for name, one in matrices.items() if self.parameters_of(one) < linear_weights(one)}
        if not smaller:
            name, one = next(iter(matrices.items()))
            raise PlanError(
                f"adapters of rank {self.rank}, which have {self.parameters_of(one):,} parameters beside the "
                f"{linear_weights(one):,} of {name}",
                allowed="adapters smaller than their matrices",
                fix="name another rank, or take adapters away and train the matrices themselves",
                setting="adapters.rank",
            )
        for name, one in smaller.items():
            if self.dropout and one.precision.kind != "fp32":
                raise PlanError(
                    f"dropout of adapters beside {name} in {one.precision.kind}, with which they are rounded as one",
                    allowed="0 behind quantize",
                    setting="adapters.dropout",
                )
        return smaller

    def put_into(self, module: Encoder, seed: int) -> Settle:
        """Freeze a module but for what is to be trained, adapters among it.

        Args:
            module: changed in place.
            seed: for what adapters draw.

        Returns:
            What makes a ranker's weights of those of the module, updates merged.
        """
        from functools import partial

        from compressor.training.adapters import AdaptedLinear
        from compressor.training.stand_ins import settled_weights, stand_in

        adapted = self.adapted(module.spec)
        module.requires_grad_(False)
        make = self.maker(adapted, seed)
        parts = stand_in(
            module, adapted, lambda _, linear: AdaptedLinear(linear, make(linear.spec), dropout=self.dropout)
        )
        for name in named_linears(module.spec, self.linears).keys() - adapted.keys():
            for kind, parameter in module.get_submodule(name).named_parameters():
                parameter.requires_grad_(kind != "bias")
        self._train_along(module)
        return partial(settled_weights, parts)

    def _train_along(self, module: Encoder) -> None:
        from torch import nn

        from compressor.ranker.linears import Linear

        for name, part in module.named_modules():
            is_head = name.startswith("head") or ".exit" in name
            if "head" in self.also and is_head:
                part.requires_grad_(True)
            if "norms" in self.also and isinstance(part, nn.LayerNorm | nn.RMSNorm):
                part.requires_grad_(True)
            if "biases" in self.also and isinstance(part, Linear) and part.bias is not None:
                part.bias.requires_grad_(True)


class LoraSettings(AdapterSettings):
    """``W + α / R · up down`` (LoRA, arXiv 2106.09685): updates of rank R, of R (in + out) parameters each."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16

    def parameters_of(self, linear: LinearSpec) -> int:
        return self.rank * (linear.inputs + linear.outputs)

    def maker(self, linears: Mapping[str, LinearSpec], seed: int) -> Callable[[LinearSpec], Adapter]:
        import torch

        from compressor.training.adapters import LoraAdapter

        generator = torch.Generator().manual_seed(seed)
        return lambda spec: LoraAdapter(spec, self.rank, self.alpha, generator)


class RandLoraSettings(AdapterSettings):
    """Full-rank updates out of random bases whose scales alone are trained (RandLoRA, arXiv 2502.00987).

    A smaller ``rank`` has more parameters, about min² / rank for the smaller of a matrix's sides. ``alpha``: 20 times
    the rank by default, as in PEFT. ``bases``: ``dense``, or ternary ones, a third of them not zero (``sparse``) or one
    of √min (``very_sparse``); they are drawn from the recipe's seed, shared by all matrices and never stored.
    """

    kind: Literal["randlora"]
    rank: PositiveInt = 32
    alpha: PositiveFloat | None = None
    bases: Literal["dense", "sparse", "very_sparse"] = "dense"

    def parameters_of(self, linear: LinearSpec) -> int:
        smaller = min(linear.inputs, linear.outputs)
        return math.ceil(smaller / self.rank) * (self.rank + smaller)

    def maker(self, linears: Mapping[str, LinearSpec], seed: int) -> Callable[[LinearSpec], Adapter]:
        from compressor.training.adapters import RandLoraAdapter, SharedBases

        shapes = [(one.outputs, one.inputs) for one in linears.values()]
        bases = SharedBases(shapes, self.rank, seed, self.bases)
        alpha = 20 * self.rank if self.alpha is None else self.alpha
        return lambda spec: RandLoraAdapter(spec, self.rank, alpha, bases)


Adapters = Annotated[LoraSettings | RandLoraSettings, Field(discriminator="kind")]
Settle = Callable[[Mapping[str, "Tensor"]], dict[str, "Tensor"]]
