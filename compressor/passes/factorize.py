"""`factorize`: two thin matrices for one, of ranks that a budget leaves, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from compressor.errors import Fault, InputError
from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.rank_budget import RankSettings, low_rank_spec
from compressor.passes.refusals import refuse_bi_encoder, refuse_quantized, refuse_token_rules, refuse_zeros
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.algorithms.calibration import CalibrationBatch
    from compressor.ranker.ranker import Ranker

Method = Literal["activation", "fisher", "svd"]


class FactorSettings(RankSettings):
    """Which linears get factors, of what rank, and how these are made; the words are those of `Factorize`."""

    verb: ClassVar[str]

    method: Method = "activation"
    compensate: Literal["refit", "none"] = "refit"
    n_pairs: PositiveInt = 256

    @property
    def calibrates(self) -> bool:
        return not self.keeps_all and (self.method != "svd" or self.compensate == "refit")

    def planned_factors(self, spec: RankerSpec, verb: str) -> RankerSpec:
        """Return about the shape that is left.

        Raises:
            PlanError: the settings make no sense on this shape.
        """
        if self.keeps_all:
            return spec
        refuse_zeros(spec, verb)
        refuse_token_rules(spec, verb)
        if self.method == "fisher":
            refuse_bi_encoder(spec)
        return low_rank_spec(spec, self.planned_ranks(spec))

    def with_factors(self, ranker: Ranker, supply: Supply) -> Ranker:
        """Return the ranker with factors.

        Raises:
            InputError: the budget is too small for pairs as long as these.
        """
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.compensation import refitted
        from compressor.algorithms.factor_choice import decompositions, factorized
        from compressor.algorithms.folding import measure_inputs
        from compressor.passes.width_budget import PLANNED_TOKENS

        batches: list[CalibrationBatch] = []
        n_tokens = PLANNED_TOKENS
        if self.calibrates:
            pairs = supply.pairs("calibration", self.n_pairs, per_query=CANDIDATES_OF_A_LIST)
            batches = calibration_batches(ranker, pairs)
            n_tokens = max(1, round(sum(len(batch.embedded) for batch in batches) / len(pairs)))
        inputs = measure_inputs(ranker.module, batches) if self.calibrates else {}
        names = list(self.candidates(ranker.spec))
        parts = decompositions(ranker, names, self.method, batches, inputs)
        losses = {name: one.losses.numpy() for name, one in parts.items()}
        try:
            ranks = self.ranks(ranker.spec, losses, n_tokens)
        except PlanError as error:  # planned for pairs of another length
            raise InputError(
                Fault(
                    source=self.verb, where=error.setting, found=error.found, allowed=error.allowed,
                    fix=error.fix,
                )
            ) from None  # fmt: skip
        thin = factorized(ranker, parts, ranks, inputs if self.calibrates else None)
        if self.compensate == "refit":
            fitted = refitted(ranker.module, thin.trainable().eval(), batches)
            thin = thin.changed(weights={**thin.weights, **fitted})
        supply.note("ranks", ranks)
        supply.note("dense", [name for name in names if name not in ranks])
        supply.note("predicted_loss", round(sum(float(losses[name][rank]) for name, rank in ranks.items()), 6))
        supply.note("mean_tokens", n_tokens)
        if self.budget:
            cost = self.budget.costing(n_tokens)
            supply.note("kept_share", round(cost(thin.spec) / cost(ranker.spec), 4))
        return thin


@register("factorize")
class Factorize(FactorSettings, Pass):
    """Put two thin matrices in the place of one, where that is cheaper, without training.

    ``budget``: the share that stays, of ``macs`` or ``parameters``; ranks are shared out among the linears by what
    scores would lose, and a linear stays as it is where that is the better use of the budget.
    ``rank``: instead, one rank for all. Where factors would be no smaller than their matrix, it stays.
    ``linears``: ``all`` of the layers, ``ffn``, ``attention``, or patterns of names: ``[layers.*.ffn.up]``.
    ``round_to``: ranks are multiples of this, which matrix kernels like.
    ``method``: ``activation``, the factors that change what matrices give on calibration texts least (DRONE, NeurIPS
    2021; SVD-LLM, arXiv 2403.07378); ``fisher``, weights count by how scores answer to them (FWSVD, arXiv 2207.00112,
    where columns alone do); ``svd``, all weights count alike.
    ``compensate``: ``refit``, new factors of every block's output matrix by reduced-rank regression, block by block, so
    that they make up for what those before them lost; or ``none``.
    ``n_pairs``: calibration pairs, whole lists of 8.

    A product of rank r costs r (in + out) instead of in · out, so it pays below rank in · out / (in + out) alone: half
    the width of a square matrix. Costs ranking quality unless distillation follows. Linears that are to lose heads or
    neurons do so before it: `prune_widths` reads whole matrices.
    """

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if self.calibrates else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        return self.planned_factors(spec, self.verb)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        return ranker.changed() if self.keeps_all else self.with_factors(ranker, supply)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return () if self.keeps_all else at_most_its_parameters(result)
