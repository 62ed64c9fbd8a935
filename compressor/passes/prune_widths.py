"""`prune_widths`: fewer heads and neurons in minutes, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from compressor.algorithms.budgets import BudgetError
from compressor.errors import Fault, InputError
from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.refusals import (
    refuse_bi_encoder,
    refuse_factorized_outputs,
    refuse_quantized,
    refuse_sparse,
    refuse_token_rules,
)
from compressor.passes.width_budget import Budget, Cost, Widths, planned_widths, shared_widths, too_small
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.algorithms.subcloning import Kept
    from compressor.algorithms.width_importance import Evidence, Ranking
    from compressor.ranker.ranker import Ranker

Importance = Literal["predicted", "fisher", "clustered", "taylor", "hessian", "wanda", "magnitude"]


@register("prune_widths")
class PruneWidths(Pass):
    """Cut attention heads and feed-forward neurons to a budget, each layer as many as it can spare, or all.

    Three stages, after Kwon et al. (arXiv 2204.09656), label-free: which units matter is measured by how the scores of
    real candidates answer, shifts of a whole list taken out.

    ``budget``: the share that stays, of ``macs``, ``parameters`` or measured ``latency``.
    ``importance``: how units are ranked: ``predicted``, by what scores would lose when the rest makes up for a unit;
    ``fisher`` and ``taylor``, by gradients; ``clustered``, by those of the kind of queries that needs a unit most;
    ``hessian``, ``wanda``, ``magnitude``.
    ``rearrange``: swap units of a layer that matter together; only with importances that judge units one by one by
    gradients, ``fisher`` and ``taylor``.
    ``compensate``: ``refit``, new output matrices by regression, layer by layer; ``rescale``, one factor for each unit;
    ``none``.
    ``temperature``: of the listwise softmax that weighs candidates in ``fisher`` and ``taylor``; none weighs all alike.
    ``round_to``: neurons are kept in multiples of this, which matrix kernels like. An attention or a feed-forward of
    which nothing stays is gone from the graph, too; its bias moves into what stands before it.
    ``n_pairs``: calibration pairs, whole lists of 8.
    """

    budget: Budget
    importance: Importance = "predicted"
    rearrange: bool = False
    compensate: Literal["refit", "rescale", "none"] = "refit"
    temperature: PositiveFloat | None = None
    round_to: PositiveInt = 16
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return frozenset() if self._keeps_all else frozenset({"calibration"})

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        refuse_token_rules(spec, self.verb)
        refuse_bi_encoder(spec)
        refuse_factorized_outputs(spec, self.verb)
        if self.rearrange and self.importance not in ("fisher", "taylor"):
            raise PlanError(
                f"rearrange with importance {self.importance}, which has no gradients of single units to rearrange by",
                allowed="fisher or taylor, or rearrange: false",
                setting="rearrange",
            )
        if self._keeps_all:
            return spec
        return planned_widths(spec, self.budget, self.round_to).of(spec)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        from compressor.algorithms.absent_blocks import with_biases_of_absent
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.compensation import refitted, rescaled
        from compressor.algorithms.subcloning import sliced
        from compressor.algorithms.width_importance import measured_evidence, ranked_widths

        pairs = supply.pairs("calibration", self.n_pairs, per_query=CANDIDATES_OF_A_LIST)
        batches = calibration_batches(ranker, pairs)
        n_tokens = round(sum(len(batch.embedded) for batch in batches) / len(pairs))
        evidence = measured_evidence(
            ranker, batches, [query for query, _ in pairs], self.importance,
            temperature=self.temperature, needs_inputs=self.compensate == "rescale",
        )  # fmt: skip
        heads, neurons = ranked_widths(self.importance, evidence)
        losses = [ranking.losses.tolist() for ranking in (*heads, *neurons)]
        times = self.budget.times(ranker.spec, n_tokens)
        cost = self.budget.costing(n_tokens) if times is None else times.of
        try:
            small = self._shared(ranker.spec, losses, cost).of(ranker.spec)
        except BudgetError:  # planned for pairs of another length, or for multiply-adds in place of times
            found = too_small(ranker.spec, cost, self.budget, n_tokens)
            raise InputError(
                Fault(source=self.verb, where="budget", found=found.found, allowed=found.allowed, fix=found.fix)
            ) from None
        kept = self._kept(evidence, heads, neurons, small)
        weights = dict(ranker.weights)
        if self.compensate == "rescale" and evidence.inputs is not None:
            weights |= rescaled(weights, kept, ranker.spec.layers, evidence.inputs)
        cut = ranker.changed(spec=small, weights=sliced(ranker.spec, weights, kept))
        if self.compensate == "refit":
            cut = cut.changed(weights={**cut.weights, **refitted(ranker.module, cut.trainable().eval(), batches)})
        else:
            cut = cut.changed(weights=with_biases_of_absent(ranker.spec, weights, small, cut.weights))
        supply.note("heads", [layer.heads for layer in small.layers])
        supply.note("ffn_widths", [layer.ffn_width for layer in small.layers])
        supply.note("mean_tokens", n_tokens)
        supply.note("kept_share", round(cost(small) / cost(ranker.spec), 4))
        if times is not None:
            supply.note("block_times", times.as_json())
            supply.note("measured_share", round(times.measured_share(ranker.spec, small), 4))
        return cut

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if self._keeps_all:
            return ()
        return at_most_its_parameters(result)

    @property
    def _keeps_all(self) -> bool:
        return self.budget.share == 1

    def _shared(self, spec: RankerSpec, losses: Sequence[Sequence[float]], cost: Cost) -> Widths:
        """Share the budget out by losses of every layer's heads, then of every layer's neurons."""
        arrays = [np.array(one) for one in losses]
        n_layers = len(spec.layers)
        return shared_widths(spec, cost, self.budget.share, self.round_to, arrays[:n_layers], arrays[n_layers:])

    def _kept(
        self, evidence: Evidence, heads: Sequence[Ranking], neurons: Sequence[Ranking], small: RankerSpec
    ) -> Kept:
        from compressor.algorithms.rearrangement import rearranged
        from compressor.algorithms.subcloning import within_layers
        from compressor.algorithms.width_importance import mask_gradients

        def first(rankings: Sequence[Ranking], counts: Sequence[int], part: str) -> list[Tensor]:
            found = []
            for index, (ranking, count) in enumerate(zip(rankings, counts, strict=True)):
                units = ranking.order[:count].sort().values
                if self.rearrange:
                    units = rearranged(mask_gradients(evidence, index, part), units)
                found.append(units)
            return found

        return within_layers(
            small,
            first(heads, [layer.heads for layer in small.layers], "attention.output"),
            first(neurons, [layer.ffn_width for layer in small.layers], "ffn.down"),
        )
