"""`learn_factors`: low-rank factors that take over from their matrices while the ranker distills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compressor.passes.contract import Need, PlanError, Promise, Supply, at_most_its_parameters
from compressor.passes.distill import Distill
from compressor.passes.factorize import FactorSettings
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.linears import Linear
    from compressor.ranker.ranker import Ranker
    from compressor.training.stand_ins import GuidedLinear


@register("learn_factors")
class LearnFactors(FactorSettings, Distill):
    """Distill low-rank factors that begin beside the matrices they stand for, which fade (self-guided training).

    All settings of `factorize`, for which linears get factors, of what rank, and how these begin; all of `distill`; and

    ``guided_share``: of the training, over which the matrices fade. The result of each linear is
    ``α W x + (1 - α) U V x``: α is 1 at the start, so that training begins with the ranker as it is, and falls to 0
    like a cosine. Matrices and factors learn together, and the factors alone are left.

    Costs a training in which the matrices are computed, too. `factorize` with `distill` behind does without. With
    ``evaluate_every`` factors are judged without their matrices. Literature: "Building on Efficient Foundations:
    Effectively Training LLMs with Structured Feedforward Layers" (arXiv 2406.16450), there from random weights.
    """

    guided_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def needs(self) -> frozenset[Need]:
        if self.keeps_all:
            return frozenset()
        return super().needs() | ({"calibration"} if self.calibrates else set[Need]())

    @property
    def reads_along(self) -> str:
        return "" if self.keeps_all else super().reads_along

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        if not self.keeps_all and self.epochs == 0:
            raise PlanError(
                "no epochs, in which no factor takes over",
                fix="name epochs, or take factorize, which measures instead of learning",
                setting="epochs",
            )
        return self.planned_factors(spec, self.verb)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.keeps_all:
            return ranker.changed()
        from compressor.ranker.forms import layer_linears
        from compressor.training.stand_ins import StandInObjective

        thin = self.with_factors(ranker, supply)
        whole = layer_linears(ranker.spec)
        names = [name for name, one in layer_linears(thin.spec).items() if one.form != whole[name].form]
        return self.learned(thin, supply, partial(StandInObjective, partial(self._guided, ranker), names))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return () if self.keeps_all else at_most_its_parameters(result)

    def _guided(self, ranker: Ranker, name: str, linear: Linear, n_steps: int) -> GuidedLinear:
        from compressor.training.stand_ins import GuidedLinear

        return GuidedLinear(
            linear, n_steps, weight=ranker.weights[f"{name}.weight"], bias=ranker.weights.get(f"{name}.bias"),
            guided_share=self.guided_share,
        )  # fmt: skip

    def _evaluation(self, ranker: Ranker, supply: Supply) -> Callable[[Encoder], float] | None:
        from compressor.training.stand_ins import on_their_own

        evaluate = super()._evaluation(ranker, supply)
        if evaluate is None:
            return None

        def alone(module: Encoder) -> float:
            with on_their_own(module):
                return evaluate(module)

        return alone
