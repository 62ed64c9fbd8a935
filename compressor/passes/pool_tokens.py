"""`pool_tokens`: from one layer on, windows of document tokens as one token each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt

from compressor.passes.contract import Pass, Promise, Supply
from compressor.passes.token_rules import place_of, refuse_whole_rows, ruled_as, rules_stay, with_rules
from compressor.ranker.spec import PoolRule, RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker


@register("pool_tokens")
class PoolTokens(Pass):
    """Average windows of document tokens behind a layer; the layers above it run on fewer tokens.

    ``layer``: the index from 0 of the layer behind which it happens, any but the last; or ``middle``, so that half of
    the layers see all tokens.
    ``stride``: tokens of a window; 1 pools nothing. Windows start with the document. The first token, the query
    and separators stay as they are, and a window stands where its first token stood.

    Where a pool stands already its stride is set anew, and 1 takes it away: a training with ``token_rules`` makes a
    ranker good at several.

    Nothing is chosen and nothing measured, so it is the cheapest way to let tokens go. Costs ranking quality unless
    `distill` or `finetune` follows; attention learns to read means. Put it behind what cuts layers and widths.
    Literature: LTC, layer-wise token compression for rerankers (arXiv 2605.20683); Funnel-Transformer (arXiv
    2006.03236).
    """

    layer: NonNegativeInt | Literal["middle"] = "middle"
    stride: Annotated[int, Field(ge=1, le=64)] = 2

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_whole_rows(spec)
        place = place_of(self.layer, spec, "layer")
        if self.stride == 1:
            return with_rules(spec, {}, "layer", without={place: PoolRule(stride=2)})
        return with_rules(spec, {place: PoolRule(stride=self.stride)}, "layer")

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        spec = self.plan(ranker.spec)
        if spec == ranker.spec:
            return ranker.changed()
        supply.note("layer", place_of(self.layer, spec, "layer"))
        return ruled_as(ranker, spec, supply, self.verb)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return [] if self.stride == 1 else rules_stay(result, [place_of(self.layer, result.spec, "layer")])
