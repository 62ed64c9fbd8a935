"""How many heads and neurons each layer keeps within a budget: what passes that cut widths share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from compressor.algorithms.budgets import BudgetError, shared_out
from compressor.passes.contract import PlanError
from compressor.ranker.cost import linear_weights, macs
from compressor.ranker.forms import layer_linears
from compressor.ranker.narrowing import narrowed
from compressor.ranker.spec import LayerSpec, RankerSpec
from compressor.records import Record

if TYPE_CHECKING:
    from compressor.algorithms.width_choice import WidthCosts
    from compressor.export.block_times import BlockTimes

PLANNED_TOKENS = 128  # a pass is planned before any text is read

Share = Annotated[float, Field(gt=0, le=1)]
Cost = Callable[[RankerSpec], float]


class Budget(Record):
    """What may stay of a ranker's cost, as a share.

    ``macs``: of the multiply-adds of a pair of mean length. ``parameters``: of those of its layers; tables stay whole.
    ``latency``: of the time that a pair of mean length takes on this machine: blocks of several widths, or layers at
    several numbers of tokens, are timed first, and times add up. With ``threads`` (by default all) and ``precision`` of
    the graphs that are timed.
    """

    macs: Share | None = None
    parameters: Share | None = None
    latency: Share | None = None
    threads: PositiveInt | None = None
    precision: Literal["fp32", "int8"] = "fp32"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.macs, self.parameters, self.latency].count(None) != 2:
            raise ValueError("name one budget: macs, parameters or latency")
        if self.latency is None and (self.threads or self.precision != "fp32"):
            raise ValueError("threads and precision are those of latency")
        return self

    @property
    def share(self) -> float:
        """The share, of whatever it is."""
        return self.macs or self.parameters or self.latency or 1.0

    def times(self, spec: RankerSpec, n_tokens: int) -> BlockTimes | None:
        """Time what a budget in latency has to know, on this machine; None for other budgets."""
        if self.latency is None:
            return None
        from compressor.export.block_times import measure_block_times

        return measure_block_times(spec, n_tokens, threads=self.threads, precision=self.precision)

    def costing(self, n_tokens: int) -> Cost:
        """Return `cost` as a function of a shape alone."""
        return lambda spec: self.cost(spec, n_tokens)

    def cost(self, spec: RankerSpec, n_tokens: int) -> int:
        """Return what is limited of a spec, for pairs of ``n_tokens``: multiply-adds where latency is not timed yet."""
        if self.parameters is None:
            return macs(spec, n_tokens)
        return sum(map(linear_weights, layer_linears(spec).values()))

    def too_small(self, least: float, left: str, pairs: str, *, fix: str = "name a larger share") -> PlanError:
        """Return what is to be said of a share that is below the ``least`` one, ``left`` by the cheapest choice."""
        return PlanError(
            f"{self.share:.3%}, which is less than what is left {left}",
            allowed=f"from {math.ceil(least * 1e5) / 1e5:.3%} on, for pairs of {pairs}",
            fix=fix,
            setting="budget",
        )


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
    spec: RankerSpec, cost: Cost, share: float, round_to: int,
    heads: Sequence[np.ndarray], neurons: Sequence[np.ndarray],
) -> Widths:  # fmt: skip
    """Share a budget out between heads and neurons of all layers.

    Args:
        spec: the whole ranker.
        cost: what is limited; what blocks cost adds up.
        share: of the whole ranker's cost that may stay.
        round_to: neurons stay in multiples of this.
        heads, neurons: for each layer, the loss when 0, 1, 2 ... units stay.

    Raises:
        BudgetError: not even the narrowest shape is cheap enough.
    """
    least = least_widths(spec)
    base = cost(least.of(spec))
    losses, costs, counts = [], [], []
    for kind, found in (("heads", heads), ("neurons", neurons)):
        for index, layer in enumerate(spec.layers):
            options = head_counts(layer) if kind == "heads" else neuron_counts(layer, round_to)
            counts.append(options)
            losses.append(np.asarray(found[index], dtype=np.float64)[options])
            costs.append(np.array([cost(_with(least, kind, index, units).of(spec)) - base for units in options]))
    chosen = shared_out(losses, costs, share * cost(spec) - base)
    widths = [options[choice] for options, choice in zip(counts, chosen, strict=True)]
    return Widths(widths[: len(spec.layers)], widths[len(spec.layers) :])


def _with(least: Widths, kind: str, index: int, units: int) -> Widths:
    """Return the narrowest shape with some units in one place."""
    widths = Widths(list(least.heads), list(least.neurons))
    getattr(widths, kind)[index] = units
    return widths


def planned_widths(spec: RankerSpec, budget: Budget, round_to: int) -> Widths:
    """Return about the widths that a budget leaves, where all units of a layer are worth the same.

    Raises:
        PlanError: not even the narrowest shape is cheap enough.
    """

    def alike(counts: Sequence[int]) -> list[np.ndarray]:
        return [np.array([(1 - units / most) ** 2 if most else 0.0 for units in range(most + 1)]) for most in counts]

    heads, neurons = (alike([getattr(layer, name) for layer in spec.layers]) for name in ("heads", "ffn_width"))
    cost = budget.costing(PLANNED_TOKENS)
    try:
        return shared_widths(spec, cost, budget.share, round_to, heads, neurons)
    except BudgetError:
        raise too_small(spec, cost, budget, PLANNED_TOKENS) from None


def too_small(spec: RankerSpec, cost: Cost, budget: Budget, n_tokens: int) -> PlanError:
    """Return what is to be said of a budget that the narrowest shape exceeds, for pairs of ``n_tokens``."""
    least = cost(least_widths(spec).of(spec)) / cost(spec)
    return budget.too_small(least, "without a head or neuron", f"{n_tokens} tokens")


def width_costs(spec: RankerSpec, budget: Budget, n_tokens: int, *, on_residual: bool = False) -> WidthCosts:
    """Return what heads, neurons and, if asked for, residual dimensions cost, as shares of the whole.

    Args:
        spec: the whole ranker.
        budget: what is limited.
        n_tokens: the length of a pair at which multiply-adds are counted.
        on_residual: whether dimensions of the residual stream can go; else their cost counts as fixed.
    """
    import torch

    from compressor.algorithms.gates import narrowed_stream
    from compressor.algorithms.width_choice import WidthCosts

    n_layers, whole = len(spec.layers), budget.cost(spec, n_tokens)

    def counts(width: int) -> np.ndarray:
        def cost(place: int | None) -> int:
            units = [int(each == place) for each in range(2 * n_layers)]
            return budget.cost(narrowed_stream(spec, width, units[:n_layers], units[n_layers:]), n_tokens)

        base = cost(None)
        return np.array([base, *(cost(place) - base for place in range(2 * n_layers))]) / whole

    wide = counts(spec.width)
    per_dimension = (wide - counts(1)) / (spec.width - 1) if on_residual and spec.width > 1 else 0 * wide
    scaled = per_dimension * spec.width
    return WidthCosts(fixed=torch.from_numpy(wide - scaled), scaled=torch.from_numpy(scaled))
