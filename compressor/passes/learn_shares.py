"""`learn_shares`: learn, while distilling, behind which layers document tokens go, and how many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from compressor.algorithms.budgets import BudgetError
from compressor.algorithms.share_choice import (
    LEAST_SHARE,
    LearnedShare,
    cost_of_shares,
    n_document_tokens,
    shares_at_budget,
)
from compressor.passes.contract import Need, PlanError, Promise, Supply
from compressor.passes.distill import Distill
from compressor.passes.token_rules import (
    BESIDE_NO_GATES,
    SCORERS,
    ScorerName,
    judged_places,
    refuse_beside_gates,
    refuse_whole_rows,
    ruled_as,
    rules_stay,
    with_rules,
)
from compressor.passes.width_budget import PLANNED_TOKENS, Budget
from compressor.ranker.cost import QUERY_TOKENS
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import KeepShareRule, RankerSpec
from compressor.registry import register
from compressor.training.mask_settings import ShareGateSettings, TokenOrderSettings

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker
    from compressor.training.token_order import TokenOrder

_ANY_SHARE = 0.5  # of rules whose own one is not known yet: nothing reads it


@register("learn_shares")
class LearnShares(Distill):
    """Learn which shares of document tokens stay behind which layers, for a budget in multiply-adds.

    All settings of `distill`, and:

    ``budget``: ``macs``, the share of the ranker's own multiply-adds that stays, on pairs of the lengths that the data
    has, without any padding.
    ``layers``: behind which layers tokens may go, by their indices from 0; ``auto``: all from a sixth to two thirds of
    the depth. ``scorer``: as of `keep_tokens`, what ranks tokens there.
    ``gates``: ``bins``, into how many ranges ranks are cut, each with a mask; ``ramp``, the shares of training between
    which the target falls from the whole to the budget; ``learning_rate``, that of masks.
    ``token_order``: ``weight`` and ``top`` of a loss by which early layers put tokens into the order in which the last
    layer of the ranker, as it comes, attends to them; it fades out as the budget is reached.
    ``n_pairs``: pairs of the training data on whose lengths the budget holds in the end.

    Masks on ranks, and one on each layer, are drawn while weights learn, and a Lagrangian brings what they cost to the
    target. What comes out is a share for each layer whose mask is open, as `keep_tokens` has it, all brought to the
    budget by one power: counts depend on a row alone. Masks were noisy while weights learned: put `distill` behind,
    which trains with tokens that are gone. Literature: ToP (arXiv 2306.14393); hard-concrete masks (arXiv 1712.01312).
    """

    budget: Budget
    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | Literal["auto"] = "auto"
    scorer: ScorerName = "attention"
    gates: ShareGateSettings = ShareGateSettings()
    token_order: TokenOrderSettings = TokenOrderSettings()
    n_pairs: PositiveInt = 256

    @model_validator(mode="after")
    def _each_layer_once(self) -> Self:
        if twice := [layer for layer, count in Counter(self.layers).items() if count > 1]:
            raise ValueError(f"layers has {twice[0]} twice: one rule stands behind each")
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset() if self._keeps_all else super().needs()

    @property
    def reads_along(self) -> str:
        return "" if self._keeps_all else super().reads_along

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        refuse_whole_rows(spec)
        if self.budget.macs is None:
            raise PlanError(
                "a budget in "
                + ("latency" if self.budget.latency else "parameters")
                + ", which shares do not learn by",
                allowed="macs",
                fix="name a share of macs",
                setting="budget",
            )
        if self._keeps_all:
            return spec
        self._refuse_unlearnable(spec)
        ready = self._ready(spec)
        typical = np.array([PLANNED_TOKENS]), np.array([PLANNED_TOKENS - QUERY_TOKENS - 3])
        # Which places will be open, and how far, is known when they have learned: here all are, and alike.
        alike = {place: LearnedShare(share=_ANY_SHARE, gate=1.0) for place in ready.rule_layers}
        try:
            shares = shares_at_budget(alike, cost_of_shares(ready, *typical), self.budget.share)
        except BudgetError as error:
            raise self._too_small(error.least, f"{PLANNED_TOKENS} tokens") from None
        return with_token_rules(ready, self._rules(shares))

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self._keeps_all:
            return ranker.changed()
        from compressor.training.share_gates import ShareGates
        from compressor.training.shares_objective import SharesObjective

        result = ruled_as(ranker, self._ready(ranker.spec), supply, self.verb)
        places = result.spec.rule_layers
        cost = cost_of_shares(result.spec, *self._lengths(result, supply))
        if (least := cost(dict.fromkeys(places, LEAST_SHARE))) > self.budget.share:  # planned for other lengths
            found = self._too_small(least, "the lengths that the data has")
            raise self.fault("budget", found.found, allowed=found.allowed, fix=found.fix)
        gates = ShareGates(result.spec, self.budget.share, self.gates, supply.seed)
        result = self.learned(result, supply, partial(SharesObjective, gates, self._order(ranker)))
        learned = gates.cpu().learned()
        shares = shares_at_budget(learned, cost, self.budget.share)
        supply.note("gates", {str(place): round(one.gate, 4) for place, one in learned.items()})
        supply.note("learned_shares", {str(place): one.share for place, one in learned.items()})
        supply.note("kept_shares", {str(place): share for place, share in shares.items()})
        supply.note("kept_macs", round(cost(shares), 4))
        spec = ranker.spec.changed(separator_id=result.spec.separator_id)
        return result.changed(spec=with_token_rules(spec, self._rules(shares)))

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return () if self._keeps_all else rules_stay(result, result.spec.rule_layers)

    @property
    def _keeps_all(self) -> bool:
        return self.budget.share == 1

    def _places(self, spec: RankerSpec) -> list[int]:
        """Return behind which layers tokens may go."""
        if self.layers != "auto":
            return sorted(judged_places(dict.fromkeys(self.layers, 1.0), spec))
        n_layers = len(spec.layers)
        candidates = range(n_layers // 6, min(2 * n_layers // 3, n_layers - 2) + 1)
        found = [place for place in candidates if spec.layers[place].attention]
        if not found:
            raise PlanError(
                f"no layer with attention among {candidates[0]} to {candidates[-1]}, by which tokens could be judged",
                fix="name layers that have one",
                setting="layers",
            )
        return found

    def _ready(self, spec: RankerSpec) -> RankerSpec:
        """Return the shape with a rule behind each layer behind which tokens may go."""
        return with_rules(spec, self._rules(dict.fromkeys(self._places(spec), _ANY_SHARE)), "layers")

    def _rules(self, shares: Mapping[int, float]) -> dict[int, KeepShareRule]:
        return {place: KeepShareRule(share=share, scorer=SCORERS[self.scorer]) for place, share in shares.items()}

    def _refuse_unlearnable(self, spec: RankerSpec) -> None:
        if self.epochs == 0:
            raise PlanError(
                "no epochs, in which no mask learns how many tokens may go",
                fix="name epochs, or take keep_tokens, which is told shares",
                setting="epochs",
            )
        if spec.rule_layers:
            raise PlanError(
                f"a ranker that lets tokens go behind layer {spec.rule_layers[0]}: masks learn where all are there",
                allowed="one without token rules",
                fix="leave one of the two passes out: learn_shares finds the layers behind which tokens go by itself",
            )
        refuse_beside_gates({name: getattr(self, name) for name in BESIDE_NO_GATES})

    def _too_small(self, least: float, where: str) -> PlanError:
        left, fix = "with one document token behind each layer", "name a larger share, or layers further down"
        return self.budget.too_small(least, left, where, fix=fix)

    def _lengths(self, ranker: Ranker, supply: Supply) -> tuple[np.ndarray, np.ndarray]:
        """Return how many tokens some pairs of the data have, and how many of them are the document's."""
        encoded = ranker.tokenizer.encode_pairs(supply.pairs(self.data, self.n_pairs))
        separator = ranker.spec.separator_id
        return encoded.lengths, np.array([n_document_tokens(row, separator) for row in encoded.input_ids])

    def _order(self, ranker: Ranker) -> TokenOrder | None:
        from compressor.training.token_order import TokenOrder, early_layers

        if not self.token_order.weight or not early_layers(ranker.spec):
            return None
        start = ranker.trainable().requires_grad_(False).eval()
        return TokenOrder(start, SCORERS[self.scorer], self.token_order)
