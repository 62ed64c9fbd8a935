"""`merge_tokens`: from some layers on, document tokens that are much alike as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compressor.passes.contract import Pass, Promise, Supply
from compressor.passes.token_rules import (
    Place,
    judged_places,
    refuse_whole_rows,
    ruled_as,
    rules_stay,
    with_rules,
)
from compressor.ranker.spec import MergeRule, RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

Margin = Annotated[float, Field(ge=0, le=0.99)]


@register("merge_tokens")
class MergeTokens(Pass):
    """Merge document tokens that resemble many others of their row, behind one layer or several.

    ``layers``: the share of document tokens that is left behind each layer, by the layer's index from 0 (any but the
    last) or ``middle``: ``{middle: 0.5}``. A share is of the tokens that reach the layer's end; half of them can merge
    into the other half at most, and 1 merges none. Of n tokens ``ceil(share * n)`` are left, a number that the row
    alone decides. The first token, the query and separators stay as they are.
    ``margin``: how alike two tokens are that count as such, as a cosine: tokens merge that have most others of their
    row near them. By default 0.9 in the first layer and less above, down to 0.65, as in its authors' code.
    ``keep_query_terms``: tokens whose id occurs in the query do not merge, so that exact matches are still seen.

    Where such a rule stands already its numbers are set anew, and taken away by a share of 1; see ``token_rules`` of
    `distill` for a training that makes a ranker good at several.

    Nothing is thrown away as in `keep_tokens`, and it is not neighbors that become one as in `pool_tokens`, but what
    the layer's keys hold alike. That takes one more product of keys per row. No step is trained: it costs ranking
    quality unless `distill` or `finetune` follows. Put it behind what cuts layers and widths. Which of two tokens is
    the more alike is a close choice now and then, and rounding may turn it from one runtime to another. Literature:
    PiToMe (arXiv 2405.16148), here with neither padding nor query in a token's energy; ToMe (arXiv 2210.09461).
    """

    layers: Annotated[Mapping[Place, Annotated[float, Field(ge=0.5, le=1)]], Field(min_length=1)] = {"middle": 0.5}
    margin: Margin | None = None
    keep_query_terms: bool = True

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_whole_rows(spec)
        whole = [place for place, share in judged_places(self.layers, spec).items() if share == 1]
        without = dict.fromkeys(whole, MergeRule(share=0.5, margin=0.5))
        return with_rules(spec, self._rules(spec), "layers", without=without)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        spec = self.plan(ranker.spec)
        if spec == ranker.spec:
            return ranker.changed()
        supply.note("layers", {str(place): share for place, share in judged_places(self.layers, spec).items()})
        return ruled_as(ranker, spec, supply, self.verb)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return rules_stay(result, list(self._rules(result.spec)))

    def _rules(self, spec: RankerSpec) -> dict[int, MergeRule]:
        """Return the rule behind each layer where tokens merge."""
        return {
            place: MergeRule(share=share, margin=self._margin(place, spec), keep_query_terms=self.keep_query_terms)
            for place, share in judged_places(self.layers, spec).items()
            if share < 1
        }

    def _margin(self, place: int, spec: RankerSpec) -> float:
        return round(0.9 - 0.25 * place / len(spec.layers), 4) if self.margin is None else self.margin
