"""`keep_tokens`: from some layers on, only the document tokens that the query looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt

from compressor.passes.contract import Pass, PlanError, Promise, Supply
from compressor.passes.token_rules import place_of, refuse_whole_rows, rules_stay, with_rules, with_separator
from compressor.ranker.spec import AttentionScorer, KeepShareRule, PageRankScorer, RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

Place = NonNegativeInt | Literal["middle"]
KeptShare = Annotated[float, Field(ge=0.001, le=1)]


@register("keep_tokens")
class KeepTokens(Pass):
    """Let the document tokens go that matter least to the query, behind one layer or several.

    ``layers``: the share of document tokens that stays behind each layer, by the layer's index from 0 (any but the
    last) or ``middle``: ``{4: 0.7, 8: 0.5}``. A share is of the tokens that are left there, so these two leave 35 % in
    the end; 1 leaves all. Of n tokens ``ceil(share * n)`` stay, a number that the row alone decides. The first token,
    the query and separators always stay.
    ``scorer``: what tokens are judged by: ``attention``, what the first token and the query's pay to them in the layer;
    or ``pagerank``, a walk over the layer's attention that starts again and again at these tokens.

    Where a share of the same scorer stands already it is set anew, see ``token_rules`` of `distill`.

    Nothing is trained. Early layers know least of what matters: for one place, the middle is a good start. Costs
    ranking quality unless `distill` or `finetune` follows. Put it behind what cuts layers and widths. Which token is
    the last to stay is a close choice now and then, and rounding may turn it from one runtime to another.
    Literature: Learned Token Pruning (arXiv 2107.00910) and ToP (arXiv 2306.14393) for attention as score, Zero-TPrune
    (arXiv 2305.17328) for PageRank.
    """

    layers: Annotated[Mapping[Place, KeptShare], Field(min_length=1)] = {"middle": 0.5}
    scorer: Literal["attention", "pagerank"] = "attention"

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_whole_rows(spec)
        places = self._places(spec)
        blind = [place for place in places if not spec.layers[place].attention]
        if blind:
            raise PlanError(
                f"layer {blind[0]}, which has no attention to judge tokens by",
                allowed="layers with attention",
                fix="choose another layer, or pool_tokens, which judges nothing",
                setting="layers",
            )
        scorer = PageRankScorer() if self.scorer == "pagerank" else AttentionScorer()
        rules = {place: KeepShareRule(share=share, scorer=scorer) for place, share in places.items() if share < 1}
        return with_rules(spec, rules, "layers")

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        spec = self.plan(ranker.spec)
        if spec == ranker.spec:
            return ranker.changed()
        supply.note("layers", {str(place): share for place, share in self._places(spec).items()})
        return with_separator(ranker, spec, self.verb)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return rules_stay(result, [place for place, share in self._places(result.spec).items() if share < 1])

    def _places(self, spec: RankerSpec) -> dict[int, float]:
        """Return the share of each layer by its index.

        Raises:
            PlanError: a layer that the ranker does not have, or the same one twice.
        """
        places = {place_of(layer, spec, "layers"): share for layer, share in self.layers.items()}
        if len(places) < len(self.layers):
            found = f"layer {place_of('middle', spec, 'layers')} by its number and as the middle"
            raise PlanError(found, allowed="each layer once", setting="layers")
        return places
