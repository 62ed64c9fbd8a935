"""`pool_tokens`: from one layer on, windows of document tokens as one token each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_quantized, refuse_token_rules
from compressor.passes.token_budget import TokenChoice, check_budget, lists_to_choose_by, note_held_out
from compressor.passes.token_rules import place_of, refuse_whole_rows, ruled_as, rules_stay, told_apart, with_rules
from compressor.passes.width_budget import Budget
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import PoolRule, RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

_STRIDES = (2, 3, 4, 6, 8)  # that are tried


@register("pool_tokens")
class PoolTokens(Pass):
    """Average windows of document tokens behind a layer; the layers above it run on fewer tokens.

    ``layer``: the index from 0 of the layer behind which it happens, any but the last; or ``middle``, so that half of
    the layers see all tokens.
    ``stride``: tokens of a window; 1 pools nothing. Windows start with the document. The first token, the query
    and separators stay as they are, and a window stands where its first token stood.

    ``queries_only``: in the next layer windows ask and see the tokens that they are made of, not each other: its keys
    and values are made of all tokens, and it costs so much more (Funnel-Transformer's "pool query only").

    Where a pool stands already its stride is set anew, and 1 takes it away: a training with ``token_rules`` makes a
    ranker good at several.

    ``auto`` for ``layer``, ``stride`` or both: what moves scores least within lists and keeps a ``budget``: the share
    that stays of the ranker's ``macs``, or of its measured ``latency``. Strides of 2 to 8 are tried behind every layer
    on ``n_pairs`` calibration pairs, whole lists of 8; the notes say how the choice does for other queries.

    Otherwise nothing is chosen and nothing measured, so it is the cheapest way to let tokens go. Costs ranking quality
    unless `distill` or `finetune` follows; attention learns to read means. Put it behind what cuts layers and widths.
    Literature: LTC, layer-wise token compression for rerankers (arXiv 2605.20683); Funnel-Transformer (arXiv
    2006.03236).
    """

    layer: NonNegativeInt | Literal["middle", "auto"] = "middle"
    stride: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 2
    queries_only: bool = False
    budget: Budget | None = None
    n_pairs: PositiveInt = 256

    @model_validator(mode="after")
    def _chosen_by_a_budget(self) -> Self:
        check_budget(self.budget, is_auto="auto" in (self.layer, self.stride), setting="layer or stride")
        if self.budget and self.stride == 1:
            raise ValueError("stride 1 leaves all tokens, wherever it stands: name another, or stride: auto")
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"}) if self.budget and not self._keeps_all else frozenset()

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_whole_rows(spec)
        if self.budget:
            return spec if self._keeps_all else with_rules(spec, self._choice(spec, self.budget).planned(spec), "layer")
        place = self._places(spec)[0]
        if self._keeps_all:
            return with_rules(spec, {}, "layer", without={place: PoolRule(stride=2)})
        if self.queries_only and spec.reads_first_token_only and place == len(spec.layers) - 2:
            raise PlanError(
                f"queries_only behind layer {place}, above which the first token alone asks, and no window",
                allowed="queries_only behind an earlier layer",
                fix="name one under layer, or leave queries_only out",
                setting="queries_only",
            )
        return with_rules(spec, {place: self._pool(self._strides[0])}, "layer")

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.budget:
            if self._keeps_all:
                return ranker.changed()
            return self._with_chosen(ranker, self._choice(ranker.spec, self.budget), supply)
        spec = self.plan(ranker.spec)
        if spec == ranker.spec:
            return ranker.changed()
        supply.note("layer", self._places(spec)[0])
        return ruled_as(ranker, spec, supply, self.verb)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if self._keeps_all:
            return []
        return rules_stay(result, result.spec.rule_layers if self.budget else self._places(result.spec))

    @property
    def _keeps_all(self) -> bool:
        return self.stride == 1 or (self.budget is not None and self.budget.share == 1)

    @property
    def _strides(self) -> Sequence[int]:
        return _STRIDES if self.stride == "auto" else (self.stride,)

    def _pool(self, stride: int) -> PoolRule:
        return PoolRule(stride=stride, queries_only=self.queries_only)

    def _places(self, spec: RankerSpec) -> Sequence[int]:
        return range(len(spec.layers) - 1) if self.layer == "auto" else [place_of(self.layer, spec, "layer")]

    def _choice(self, spec: RankerSpec, budget: Budget) -> TokenChoice:
        refuse_whole_rows(spec)
        refuse_quantized(spec, self.verb)
        refuse_token_rules(spec, self.verb, "layer")
        pools = [self._pool(stride) for stride in self._strides]
        return TokenChoice(verb=self.verb, budget=budget, options=dict.fromkeys(self._places(spec), pools))

    def _with_chosen(self, ranker: Ranker, choice: TokenChoice, supply: Supply) -> Ranker:
        """Return the ranker with the pool that is found to lose least."""
        pairs, held_out = lists_to_choose_by(supply, self.n_pairs)
        judged = with_rules(ranker.spec, {place: pools[0] for place, pools in choice.options.items()}, "layer")
        probe = ranker.changed(spec=told_apart(ranker, judged, self.verb))
        ((layer, rule),) = choice.chosen(probe, pairs, supply).items()
        supply.note("layer", layer)
        supply.note("stride", rule.stride if isinstance(rule, PoolRule) else 1)
        result = ruled_as(ranker, with_token_rules(ranker.spec, {layer: rule}), supply, self.verb)
        note_held_out(result, held_out, supply)
        return result
