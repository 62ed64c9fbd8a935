"""`keep_tokens`: from some layers on, only the document tokens that the query looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.token_rules import (
    SCORERS,
    KeptShare,
    Place,
    judged_places,
    refuse_whole_rows,
    ruled_as,
    rules_stay,
    with_rules,
)
from compressor.ranker.spec import KeepShareRule, LearnedScorer, RankerSpec, TokenScorer
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("keep_tokens")
class KeepTokens(Pass):
    """Let the document tokens go that matter least to the query, behind one layer or several.

    ``layers``: the share of document tokens that stays behind each layer, by the layer's index from 0 (any but the
    last) or ``middle``: ``{4: 0.7, 8: 0.5}``. A share is of the tokens that are left there, so these two leave 35 % in
    the end; 1 leaves all. Of n tokens ``ceil(share * n)`` stay, a number that the row alone decides. The first token,
    the query and separators always stay.
    ``scorer``: what tokens are judged by: ``attention``, what the first token and the query's pay to them in the layer;
    ``pagerank``, a walk over the layer's attention that starts again and again at these tokens; or ``learned``, a
    product of the token's own state with vectors that are fitted on ``n_pairs`` calibration pairs, so that tokens come
    in the order in which the last layer's attention goes to them. That costs two vectors and looks at no attention.

    Where a share of the same scorer stands already it is set anew, and 1 takes it away: see ``token_rules`` of
    `distill`.

    No step is trained. Early layers know least of what matters: for one place, the middle is a good start. Costs
    ranking quality unless `distill` or `finetune` follows. Put it behind what cuts layers and widths. Which token is
    the last to stay is a close choice now and then, and rounding may turn it from one runtime to another.
    Literature: Learned Token Pruning (arXiv 2107.00910) and ToP (arXiv 2306.14393) for attention as score, Zero-TPrune
    (arXiv 2305.17328) for PageRank; Token Cropr (arXiv 2412.00965) for a scorer without attention, ToP for the order
    that it is fitted to.
    """

    layers: Annotated[Mapping[Place, KeptShare], Field(min_length=1)] = {"middle": 0.5}
    scorer: Literal["attention", "pagerank", "learned"] = "attention"
    n_pairs: PositiveInt = 256

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"}) if self._is_fitted else frozenset()

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_whole_rows(spec)
        places = self._places(spec)
        if self._is_fitted and (late := [place for place in places if not _attends_above(spec, place)]):
            raise PlanError(
                f"layer {late[0]}, above which no layer has an attention for a learned scorer to foresee",
                allowed="layers below one with attention",
                fix="choose a lower layer, or another scorer",
                setting="layers",
            )
        scorer: TokenScorer = LearnedScorer() if self.scorer == "learned" else SCORERS[self.scorer]
        rules = {place: KeepShareRule(share=share, scorer=scorer) for place, share in places.items() if share < 1}
        whole = {place: KeepShareRule(share=0.5, scorer=scorer) for place, share in places.items() if share == 1}
        return with_rules(spec, rules, "layers", without=whole)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        spec = self.plan(ranker.spec)
        if spec == ranker.spec and not self._is_fitted:
            return ranker.changed()
        places = self._places(spec)
        supply.note("layers", {str(place): share for place, share in places.items()})
        if not self._is_fitted:
            return ruled_as(ranker, spec, supply, self.verb)
        return self._fitted(ranker, spec, supply)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return rules_stay(result, [place for place, share in self._places(result.spec).items() if share < 1])

    @property
    def _is_fitted(self) -> bool:
        return self.scorer == "learned" and any(share < 1 for share in self.layers.values())

    def _places(self, spec: RankerSpec) -> dict[int, float]:
        return judged_places(self.layers, spec, by_attention=self.scorer != "learned")

    def _fitted(self, ranker: Ranker, spec: RankerSpec, supply: Supply) -> Ranker:
        """Return the ranker in a shape with learned scorers, each fitted with those before it at work."""
        from compressor.algorithms.token_score_fits import fitted_scorer

        pairs = supply.pairs("calibration", self.n_pairs)
        result = ruled_as(ranker, spec, supply, self.verb)
        explained = {}
        for place in sorted(place for place, share in self._places(spec).items() if share < 1):
            fit = fitted_scorer(result, pairs, place)
            result = result.changed(weights={**result.weights, **fit.weights})
            explained[str(place)] = round(fit.explained, 4)
        supply.note("explained", explained)
        return result


def _attends_above(spec: RankerSpec, layer: int) -> bool:
    return any(one.attention for one in spec.layers[layer + 1 :])
