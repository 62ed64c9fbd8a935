"""`cut_nested`: of a ranker with nested widths, the one of a chosen width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from compressor.errors import Fault, InputError
from compressor.passes.contract import Pass, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.nested_widths import (
    DEFAULT_SHARES,
    Shares,
    UntrainedError,
    check_trained,
    full_widths,
    mixes,
    share_of,
)
from compressor.passes.refusals import refuse_quantized, refuse_sparse
from compressor.passes.width_budget import Budget, Share, Widths
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("cut_nested")
class CutNested(Pass):
    """Keep the first neurons of each feed-forward, as many as `nest_widths` trained to rank without the others.

    ``share``: of the neurons; one for all layers, or one for each (Mix'n'Match, arXiv 2310.07707).
    ``budget``: the share of the ranker's cost that may stay, instead: the widest ranker within it whose layers do not
    get narrower with depth, and take but two neighboring shares.
    ``shares``: what the budget chooses among, as in `nest_widths`. ``n_tokens``: the length of a pair at which
    multiply-adds are counted.

    The result scores as those neurons did in training. Nothing is measured or trained, so several widths can be cut out
    of one training: its stored stage serves them all. Passes between the two that fit output matrices anew fit them for
    the full width. Layers may go between the two.
    """

    share: Share | Annotated[tuple[Share, ...], Field(min_length=1)] | None = None
    budget: Budget | None = None
    shares: Shares = DEFAULT_SHARES
    n_tokens: PositiveInt = 128

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.share is None) == (self.budget is None):
            raise ValueError("name one: share or budget")
        return self

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        return self._cut(spec, self._widths(spec))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        import torch

        from compressor.algorithms.subcloning import sliced, within_layers

        spec, widths = ranker.spec, self._widths(ranker.spec)
        supply.note("ffn_widths", widths)
        if widths == full_widths(spec):
            return ranker.changed()
        try:
            check_trained(ranker, widths)
        except UntrainedError as error:
            where = "budget" if self.budget else "share"
            raise InputError(Fault(source=self.verb, where=where, found=error.found, fix=error.fix)) from None
        kept = within_layers(
            spec, [torch.arange(layer.heads) for layer in spec.layers], [torch.arange(width) for width in widths]
        )
        return ranker.changed(spec=self._cut(spec, widths), weights=sliced(spec, ranker.weights, kept))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return at_most_its_parameters(result)

    def _cut(self, spec: RankerSpec, widths: list[int]) -> RankerSpec:
        return Widths([layer.heads for layer in spec.layers], widths).of(spec)

    def _widths(self, spec: RankerSpec) -> list[int]:
        """Return the neurons of every layer that stay.

        Raises:
            PlanError: there are more or fewer shares than layers, or the budget is too small.
        """
        full = full_widths(spec)
        shares = self._within(self.budget, spec) if self.budget else self._listed(len(full))
        return [share_of(width, share) for width, share in zip(full, shares, strict=True)]

    def _listed(self, n_layers: int) -> Sequence[float]:
        if not isinstance(self.share, tuple):
            return [self.share or 1.0] * n_layers
        if len(self.share) != n_layers:
            found, allowed = f"{len(self.share)} shares for {n_layers} layers", f"one share, or {n_layers}"
            raise PlanError(found, allowed=allowed, setting="share")
        return self.share

    def _within(self, budget: Budget, spec: RankerSpec) -> Sequence[float]:
        n_tokens, full = min(self.n_tokens, spec.max_length), full_widths(spec)

        def cost(shares: Sequence[float]) -> int:
            widths = [share_of(width, share) for width, share in zip(full, shares, strict=True)]
            return budget.cost(self._cut(spec, widths), n_tokens)

        whole, chosen = budget.cost(spec, n_tokens), None
        for mix in mixes(len(full), self.shares):
            if cost(mix) > budget.share * whole:
                break
            chosen = mix
        if chosen is None:
            least = cost([self.shares[-1]] * len(full)) / whole
            raise PlanError(
                f"{budget.share:.3%}, which is less than every layer with its smallest share, {self.shares[-1]:g}",
                allowed=f"from {least:.3%} on, for pairs of {n_tokens} tokens",
                fix="name a larger share, or train smaller ones",
                setting="budget",
            )
        return chosen
