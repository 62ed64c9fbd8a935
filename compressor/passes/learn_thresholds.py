"""`learn_thresholds`: from some layers on, only document tokens whose attention exceeds a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from compressor.passes.contract import Need, PlanError, Promise, Supply
from compressor.passes.distill import Distill
from compressor.passes.token_rules import (
    BESIDE_NO_GATES,
    SCORERS,
    KeptShare,
    Place,
    ScorerName,
    judged_places,
    refuse_beside_gates,
    refuse_whole_rows,
    ruled_as,
    rules_stay,
    with_rules,
)
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import KeepThresholdRule, RankerSpec
from compressor.registry import register
from compressor.training.mask_settings import TokenGateSettings

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("learn_thresholds")
class LearnThresholds(Distill):
    """Let document tokens go whose score is below a threshold, so that each row keeps as many as matter to its query.

    All settings of `distill`, and:

    ``layers``: the share of document tokens that stays behind each layer in the mean, by the layer's index from 0 (any
    but the last) or ``middle``, of those that are left there; 1 leaves all. ``scorer``: as of `keep_tokens`.
    ``gates``: ``temperature``, how soft thresholds are while they learn, in mean scores of a row; ``learning_rate``,
    theirs; ``budget_weight``, how much it weighs what they keep beyond the budget, or below it.
    ``n_pairs``: calibration pairs, on which thresholds are set. With ``epochs: 0`` that is all that happens.

    Otherwise thresholds learn along with the weights how to spread what the shares cost over their layers, behind gates
    that let every token through in part; in the end they are set to what was learned, at the cost that the shares have
    together. Put `distill` behind, which trains with tokens that are gone. Thresholds are relative to the mean score of
    a row, so that they mean the same at every length; still, what changes attention moves the share that stays: with
    ``epochs: 0`` this pass sets its thresholds anew. Literature: Learned Token Pruning (arXiv 2107.00910).
    """

    layers: Annotated[Mapping[Place, KeptShare], Field(min_length=1)] = {"middle": 0.5}
    scorer: ScorerName = "attention"
    gates: TokenGateSettings = TokenGateSettings()
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        if self._keeps_all:
            return frozenset()
        calibration: frozenset[Need] = frozenset({"calibration"})
        return calibration | super().needs() if self.epochs else calibration

    @property
    def reads_along(self) -> str:
        return "" if self._keeps_all else super().reads_along

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        refuse_whole_rows(spec)
        shares = judged_places(self.layers, spec)
        if self.epochs:
            self._refuse_unlearnable(spec)
        scorer = SCORERS[self.scorer]
        # What the thresholds will be is known when they are set; shares, which cost, are known before.
        rules = {
            place: KeepThresholdRule(share=share, threshold=0.0, scorer=scorer)
            for place, share in shares.items()
            if share < 1
        }
        return with_rules(spec, rules, "layers")

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        from compressor.algorithms.token_thresholds import (
            kept_shares,
            shares_at_budget,
            thresholds_for_shares,
            token_layers,
        )

        shares = {place: share for place, share in judged_places(self.layers, ranker.spec).items() if share < 1}
        pairs = supply.pairs("calibration", self.n_pairs)
        result = ruled_as(ranker, self.plan(ranker.spec), supply, self.verb)
        rules = thresholds_for_shares(result, pairs, shares)
        if self.epochs:
            from compressor.training.gated_objective import GatedObjective
            from compressor.training.token_gates import TokenGates

            gates = TokenGates(with_token_rules(result.spec, rules), self.gates)
            result = self.learned(result, supply, partial(GatedObjective, gates))
            learned = kept_shares(result, pairs, gates.cpu().learned())
            supply.note("learned_shares", {str(place): share for place, share in learned.items()})
            n_layers = len(ranker.spec.layers)
            balanced = shares_at_budget(learned, token_layers(shares, n_layers), n_layers)
            rules = thresholds_for_shares(result, pairs, balanced)
        supply.note("thresholds", {str(place): round(rule.threshold, 5) for place, rule in rules.items()})
        supply.note("kept_shares", {str(place): rule.share for place, rule in rules.items()})
        return result.changed(spec=with_token_rules(result.spec, rules))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return rules_stay(
            result, [place for place, share in judged_places(self.layers, result.spec).items() if share < 1]
        )

    @property
    def _keeps_all(self) -> bool:
        return all(share == 1 for share in self.layers.values())

    def _refuse_unlearnable(self, spec: RankerSpec) -> None:
        if spec.rule_layers and not self._keeps_all:
            raise PlanError(
                f"a ranker that lets tokens go behind layer {spec.rule_layers[0]}: gates learn where all are there",
                allowed="one without token rules, or epochs: 0",
                fix="set epochs to 0, which sets thresholds and trains nothing",
                setting="epochs",
            )
        refuse_beside_gates({name: getattr(self, name) for name in BESIDE_NO_GATES})
