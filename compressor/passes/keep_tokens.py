"""`keep_tokens`: from some layers on, only the document tokens that the query looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.refusals import refuse_quantized, refuse_token_rules
from compressor.passes.token_budget import (
    TokenChoice,
    TokenSearch,
    check_budget,
    lists_to_choose_by,
    note_held_out,
    shares_to_try,
    shown,
)
from compressor.passes.token_rules import (
    SCORERS,
    KeptShare,
    Place,
    judged_places,
    place_of,
    refuse_whole_rows,
    ruled_as,
    rules_stay,
    told_apart,
    with_rules,
)
from compressor.passes.width_budget import Budget
from compressor.ranker.forms import with_token_rules
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

    ``layers: auto``: layers and shares are chosen so that scores move least within lists within a ``budget``: the share
    that stays of the ranker's ``macs``, or of its measured ``latency``. Tokens are cut behind one layer at a time, to
    several shares, on ``n_pairs`` calibration pairs, whole lists of 8; what is lost is taken to add up over places, and
    dynamic programming finds what loses least of ``search``: ``shares`` behind up to ``most_places`` layers. Shares are
    raised until the budget is spent. The best few choices, and one rule in the middle at the same cost, are measured as
    they are, and the best of these stands; the notes say what was foretold, and how it does for other queries.

    No step is trained. Early layers know least of what matters: for one place, the middle is a good start. Costs
    ranking quality unless `distill` or `finetune` follows. Put it behind what cuts layers and widths. Which token is
    the last to stay is a close choice now and then, and rounding may turn it from one runtime to another.
    Literature: Learned Token Pruning (arXiv 2107.00910) and ToP (arXiv 2306.14393) for attention as score, Zero-TPrune
    (arXiv 2305.17328) for PageRank; Token Cropr (arXiv 2412.00965) for a scorer without attention, ToP for the order
    that it is fitted to.
    """

    layers: Annotated[Mapping[Place, KeptShare], Field(min_length=1)] | Literal["auto"] = {"middle": 0.5}
    scorer: Literal["attention", "pagerank", "learned"] = "attention"
    budget: Budget | None = None
    search: TokenSearch = TokenSearch()
    n_pairs: PositiveInt = 256

    @model_validator(mode="after")
    def _chosen_by_a_budget(self) -> Self:
        check_budget(self.budget, is_auto=self.layers == "auto", setting="layers")
        if self.layers != "auto" and self.search != TokenSearch():
            raise ValueError("search is what layers: auto tries: name layers: auto, or take search away")
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"}) if self._is_fitted or self._is_chosen else frozenset()

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_whole_rows(spec)
        if self.layers == "auto":
            return with_rules(spec, self._choice(spec).planned(spec), "layers") if self._is_chosen else spec
        places = self._places(spec)
        if self._is_fitted and (late := [place for place in places if not _attends_above(spec, place)]):
            raise PlanError(
                f"layer {late[0]}, above which no layer has an attention for a learned scorer to foresee",
                allowed="layers below one with attention",
                fix="choose a lower layer, or another scorer",
                setting="layers",
            )
        rules = {place: self._rule(share) for place, share in places.items() if share < 1}
        whole = {place: self._rule(0.5) for place, share in places.items() if share == 1}
        return with_rules(spec, rules, "layers", without=whole)

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.layers == "auto":
            return self._with_chosen(ranker, supply) if self._is_chosen else ranker.changed()
        spec = self.plan(ranker.spec)
        if spec == ranker.spec and not self._is_fitted:
            return ranker.changed()
        places = self._places(spec)
        supply.note("layers", {str(place): share for place, share in places.items()})
        if self._is_fitted:
            places = {place: share for place, share in places.items() if share < 1}
            return self._fitted(ranker, spec, list(places), supply)
        return ruled_as(ranker, spec, supply, self.verb)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        if self.layers == "auto":
            return rules_stay(result, result.spec.rule_layers if self._is_chosen else ())
        return rules_stay(result, [place for place, share in self._places(result.spec).items() if share < 1])

    @property
    def _is_chosen(self) -> bool:
        return self.budget is not None and self.budget.share < 1

    @property
    def _is_fitted(self) -> bool:
        return self.layers != "auto" and self.scorer == "learned" and any(share < 1 for share in self.layers.values())

    def _rule(self, share: float) -> KeepShareRule:
        scorer: TokenScorer = LearnedScorer() if self.scorer == "learned" else SCORERS[self.scorer]
        return KeepShareRule(share=share, scorer=scorer)

    def _places(self, spec: RankerSpec) -> dict[int, float]:
        if self.layers == "auto":
            return {}
        return judged_places(self.layers, spec, by_attention=self.scorer != "learned")

    def _choice(self, spec: RankerSpec) -> TokenChoice:
        """Return what is to be chosen among.

        Raises:
            PlanError: tokens go already, the ranker is rounded, or no layer can judge tokens.
        """
        refuse_quantized(spec, self.verb)
        refuse_token_rules(spec, self.verb, "layers")
        can_judge = _attends_above if self.scorer == "learned" else _attends
        places = [place for place in range(len(spec.layers) - 1) if can_judge(spec, place)]
        if not places:
            found = "a ranker without an attention to judge tokens by"
            raise PlanError(found, fix="take pool_tokens, which judges nothing", setting="layers")
        middle, search, budget = place_of("middle", spec, "layers"), self.search, self.budget
        assert budget is not None  # noqa: S101  # the record has one
        tried = [self._rule(share) for share in shares_to_try(search.shares, search.most_places)]
        return TokenChoice(
            verb=self.verb, budget=budget, most_places=search.most_places,
            options={place: [self._rule(share) for share in search.shares] for place in places},
            trials=dict.fromkeys(places, tried),
            plain=[{middle: self._rule(0.001)}] if middle in places else [],
        )  # fmt: skip

    def _with_chosen(self, ranker: Ranker, supply: Supply) -> Ranker:
        """Return the ranker with the rules that are found to lose least."""
        refuse_whole_rows(ranker.spec)
        choice = self._choice(ranker.spec)
        pairs, held_out = lists_to_choose_by(supply, self.n_pairs)
        judged = with_rules(ranker.spec, {place: rules[0] for place, rules in choice.options.items()}, "layers")
        probe = told_apart(ranker, judged, self.verb)
        rules = choice.chosen(self._fitted_alone(ranker, probe, supply), pairs, supply)
        supply.note("layers", shown(rules))
        spec = told_apart(ranker, with_token_rules(ranker.spec, rules), self.verb)
        is_learned = self.scorer == "learned"
        result = self._fitted(ranker, spec, list(rules), supply) if is_learned else ranker.changed(spec=spec)
        note_held_out(result, held_out, supply)
        return result

    def _fitted_alone(self, ranker: Ranker, spec: RankerSpec, supply: Supply) -> Ranker:
        """Return the ranker in a shape with rules, learned scorers fitted with no rule before them at work."""
        if self.scorer != "learned":
            return ranker.changed(spec=spec)
        weights = dict(ranker.weights)
        for place in spec.rule_layers:
            alone = told_apart(ranker, with_token_rules(ranker.spec, {place: self._rule(0.5)}), self.verb)
            weights |= self._fitted(ranker, alone, [place], supply).weights
        return ranker.changed(spec=spec, weights=weights)

    def _fitted(self, ranker: Ranker, spec: RankerSpec, places: Sequence[int], supply: Supply) -> Ranker:
        """Return the ranker in a shape with learned scorers, each of these fitted with those before it at work."""
        from compressor.algorithms.token_score_fits import fitted_scorer

        pairs = supply.pairs("calibration", self.n_pairs)
        result = ruled_as(ranker, spec, supply, self.verb)
        explained = {}
        for place in sorted(places):
            fit = fitted_scorer(result, pairs, place)
            result = result.changed(weights={**result.weights, **fit.weights})
            explained[str(place)] = round(fit.explained, 4)
        supply.note("explained", explained)
        return result


def _attends(spec: RankerSpec, layer: int) -> bool:
    return spec.layers[layer].attention is not None


def _attends_above(spec: RankerSpec, layer: int) -> bool:
    return any(one.attention for one in spec.layers[layer + 1 :])
