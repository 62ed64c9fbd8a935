"""`finetune`: train a ranker on judgments, so that an encoder becomes a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.passes.contract import Need, PlanError, Supply
from compressor.passes.training_pass import TrainingPass
from compressor.ranker.spec import RankerSpec
from compressor.registry import register
from compressor.training.loss_settings import LabelLosses

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("finetune")
class Finetune(TrainingPass):
    """Train on the judgments of the training data; no teacher is asked.

    ``losses``: on labels, by name with weights; RankT5's softmax by default. For tiny rankers without a teacher,
    ``{gbce_labels: 1}`` with many negatives (shallow cross-encoders, arXiv 2403.20222).
    ``lists``: each relevant document with ``list_size`` - 1 others, from the sources named there; ``curriculum`` weighs
    easy lists more at first.
    """

    losses: LabelLosses = LabelLosses.model_validate({"softmax_labels": 1.0})

    def needs(self) -> frozenset[Need]:
        return super().needs() | {"train"}

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        if not self.losses:
            raise PlanError("nothing to learn from", allowed="one loss or more", setting="losses")
        self.refuse_short_lists(self.losses.terms(), "losses")
        return spec

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.training.objective import Objective

        if self.epochs == 0:
            return ranker.changed()
        data = supply.data("train")
        if not data.qrels:
            fix = "name a split with judgments, or use distill, which learns from a teacher"
            raise self.fault("losses", f"no judgments in {data.name}", fix=fix)
        objective = Objective(
            labels=tuple(self.losses.terms()),
            exits=self.exits_weight(ranker.spec),
            on_exits=tuple(self.exit_losses.terms()),
            heads=self.scorer_heads(ranker.spec, supply.seed),
        )
        return self.train(ranker, supply, data, objective, by_positive=True)
