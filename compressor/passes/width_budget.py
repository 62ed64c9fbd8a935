"""How many heads and neurons each layer keeps within a budget: what passes that cut widths share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from compressor.algorithms.budgets import shared_out
from compressor.ranker.cost import linears_of, macs
from compressor.ranker.narrowing import narrowed
from compressor.ranker.spec import LayerSpec, RankerSpec
from compressor.records import Record

Share = Annotated[float, Field(gt=0, le=1)]


class Budget(Record):
    """What may stay of a ranker's cost, as a share.

    ``macs``: of the multiply-adds of a pair of mean length. ``parameters``: of those of its layers; tables stay whole.
    """

    macs: Share | None = None
    parameters: Share | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.macs is None) == (self.parameters is None):
            raise ValueError("name one budget: macs or parameters")
        return self

    @property
    def share(self) -> float:
        """The share, of whatever it is."""
        return self.macs or self.parameters or 1.0

    def cost(self, spec: RankerSpec, n_tokens: int) -> int:
        """Return what is limited of a spec, for pairs of ``n_tokens``."""
        if self.macs is not None:
            return macs(spec, n_tokens)
        in_layers = [linear for name, linear in linears_of(spec.without_exits()) if name.startswith("layers.")]
        return sum(linear.inputs * linear.outputs for linear in in_layers)


class Widths(NamedTuple):
    """What each layer keeps."""

    heads: list[int]
    neurons: list[int]

    def of(self, spec: RankerSpec) -> RankerSpec:
        """Return the spec, cut to these widths."""
        return narrowed(spec, width=spec.width, heads=self.heads, ffn_widths=self.neurons)


def head_counts(layer: LayerSpec) -> list[int]:
    """Return how many heads a layer may keep, ascending from none."""
    return list(range(layer.heads + 1))


def neuron_counts(layer: LayerSpec, round_to: int) -> list[int]:
    """Return how many neurons a layer may keep, ascending: none, multiples, and all."""
    return sorted({*range(0, layer.ffn_width, round_to), layer.ffn_width})


def least_widths(spec: RankerSpec) -> Widths:
    """Return the narrowest shape: no head and no neuron in any layer."""
    return Widths([0] * len(spec.layers), [0] * len(spec.layers))


def shared_widths(
    spec: RankerSpec, budget: Budget, n_tokens: int, round_to: int,
    heads: Sequence[np.ndarray], neurons: Sequence[np.ndarray],
) -> Widths:  # fmt: skip
    """Share the budget out between heads and neurons of all layers.

    Args:
        spec: the whole ranker.
        budget: what may stay.
        n_tokens: the length of a pair at which multiply-adds are counted.
        round_to: neurons stay in multiples of this.
        heads, neurons: for each layer, the loss when 0, 1, 2 ... units stay.

    Raises:
        BudgetError: not even the narrowest shape is cheap enough.
    """
    least = least_widths(spec)
    base = budget.cost(least.of(spec), n_tokens)
    losses, costs, counts = [], [], []
    for kind, found in (("heads", heads), ("neurons", neurons)):
        for index, layer in enumerate(spec.layers):
            options = head_counts(layer) if kind == "heads" else neuron_counts(layer, round_to)
            counts.append(options)
            losses.append(np.asarray(found[index], dtype=np.float64)[options])
            costs.append(_extra(spec, budget, n_tokens, least, kind, index, options) - base)
    chosen = shared_out(losses, costs, budget.share * budget.cost(spec, n_tokens) - base)
    widths = [options[choice] for options, choice in zip(counts, chosen, strict=True)]
    return Widths(widths[: len(spec.layers)], widths[len(spec.layers) :])


def _extra(
    spec: RankerSpec, budget: Budget, n_tokens: int, least: Widths, kind: str, index: int, options: Sequence[int]
) -> np.ndarray:
    """Return the cost of the narrowest shape with each of some widths in one place: costs of places add up."""
    few, more = options[0], options[-1]
    found = []
    for units in (few, more):
        widths = Widths(list(least.heads), list(least.neurons))
        getattr(widths, kind)[index] = units
        found.append(budget.cost(widths.of(spec), n_tokens))
    return np.interp(options, [few, more], found) if more > few else np.array(found[:1], dtype=np.float64)
