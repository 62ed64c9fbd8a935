"""Where tokens go and how many, chosen within a budget: what passes that set token rules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compressor.algorithms.budgets import BudgetError
from compressor.algorithms.score_shifts import ScoreShift, digits, list_places, score_shift
from compressor.algorithms.token_schedules import Loss, MacCosts, Schedule, TokenCosts, best_schedules, with_more_left
from compressor.errors import Fault, InputError
from compressor.passes.contract import PlanError, Supply
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.width_budget import PLANNED_TOKENS, Budget
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import PoolRule, RankerSpec, TokenRule
from compressor.records import Record

if TYPE_CHECKING:
    from compressor.algorithms.token_damage import TokenDamage
    from compressor.export.token_times import TokenTimes
    from compressor.ranker.ranker import Ranker

_MEASURED_TOGETHER = 3  # choices: losses of several rules only about add up
_HELD_OUT = 0.5  # as many lists again, of other queries, by which nothing is chosen

Rules = Mapping[int, TokenRule]
Pairs = list[tuple[str, str]]


class TokenSearch(Record):
    """What is tried where layers and shares are chosen.

    ``shares``: of the tokens that reach a rule. ``most_places``: so many rules at most.
    """

    shares: Annotated[tuple[Annotated[float, Field(ge=0.05, le=0.95)], ...], Field(min_length=1, max_length=8)] = (
        0.75, 0.5, 0.35, 0.25,
    )  # fmt: skip
    most_places: Annotated[int, Field(ge=1, le=6)] = 3


def check_budget(budget: Budget | None, *, is_auto: bool, setting: str) -> None:
    """Refuse a choice without a budget, a budget without a choice, and one that token rules cannot help to meet.

    Raises:
        ValueError: names the setting that can be ``auto``.
    """
    if is_auto and budget is None:
        raise ValueError(f"{setting}: auto goes by a budget: name one, budget: {{macs: 0.6}} or {{latency: 0.6}}")
    if budget is not None and not is_auto:
        raise ValueError(f"a budget is what auto goes by: name {setting}: auto, or take budget away")
    if budget is not None and budget.parameters is not None:
        raise ValueError("a budget in parameters, of which token rules take none: name macs or latency")


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """A choice of rules within a budget.

    Attributes:
        verb: of the pass.
        budget: what may stay of a ranker's cost.
        options: rules that may stand behind a layer, by layer.
        trials: rules whose damage alone is measured, by layer; by default the options themselves.
        plain: choices that nobody needs a search for, measured beside the best ones; they are given as much of the
            budget as they can spend.
        most_places: so many rules at most.
    """

    verb: str
    budget: Budget
    options: Mapping[int, Sequence[TokenRule]]
    trials: Mapping[int, Sequence[TokenRule]] | None = None
    plain: Sequence[Rules] = ()
    most_places: int = 1

    def planned(self, spec: RankerSpec) -> Rules:
        """Return about the rules that the budget leaves, in multiply-adds, where early tokens matter most.

        Raises:
            PlanError: no choice is cheap enough.
        """
        try:
            return self._first(spec, PLANNED_TOKENS, MacCosts(spec=spec, n_tokens=PLANNED_TOKENS)).rules
        except BudgetError as error:
            raise self._too_small(error.least / self.budget.cost(spec, PLANNED_TOKENS), PLANNED_TOKENS) from None

    def chosen(self, ranker: Ranker, pairs: Pairs, supply: Supply) -> Rules:
        """Measure, choose and note.

        Args:
            ranker: has rules of these kinds behind these layers, whose scorers judge.
            pairs: of lists by which to choose.
            supply: takes the notes, and keeps what is measured.

        Raises:
            InputError: no choice is cheap enough for pairs of this length.
        """
        from compressor.algorithms.token_damage import measure_together, measure_token_damage, without_rules

        spec = without_rules(ranker).spec
        n_tokens = max(1, round(float(ranker.tokenizer.encode_pairs(pairs).lengths.mean())))
        times = self._times(spec, n_tokens)
        costs: TokenCosts = times or MacCosts(spec=spec, n_tokens=n_tokens)
        cost: Callable[[RankerSpec], float] = times.of if times else self.budget.costing(n_tokens)
        whole = cost(spec)
        most = self.budget.share * whole
        try:
            self._first(spec, n_tokens, costs, most)
        except BudgetError as error:  # planned for pairs of another length, or for multiply-adds in place of times
            found = self._too_small(error.least / whole, n_tokens)
            raise InputError(
                Fault(source=self.verb, where="budget", found=found.found, allowed=found.allowed, fix=found.fix)
            ) from None
        trials = self.options if self.trials is None else self.trials
        damage = measure_token_damage(ranker, pairs, trials, store=supply.scratch / "token_damage.json")
        schedules = self._best(spec, n_tokens, costs, damage.loss, most, _MEASURED_TOGETHER)
        choices = [with_more_left(spec, one.rules, cost, most) for one in schedules]
        plain = [one for one in self.plain if cost(with_token_rules(spec, one)) <= most]
        choices += [with_more_left(spec, one, cost, most) for one in plain]
        shifts = measure_together(ranker, pairs, choices, store=supply.scratch / "token_choices.json")
        best = min(range(len(choices)), key=lambda place: shifts[place].squared)
        rules = choices[best]
        small = with_token_rules(spec, rules).changed(separator_id=ranker.spec.separator_id)
        supply.note("damage", {str(layer): _shown(found) for layer, found in damage.measured.items()})
        supply.note("choices", [
            {"rules": shown(one), **_foretold(damage, one), **shift.as_json()}
            for one, shift in zip(choices, shifts, strict=True)
        ])  # fmt: skip
        supply.note("predicted", {"score_rmse": digits(damage.foretold(rules) ** 0.5)})
        supply.note("joint", shifts[best].as_json())
        supply.note("mean_tokens", n_tokens)
        supply.note("kept_share", round(cost(small) / whole, 4))
        if times is not None:
            supply.note("token_times", times.as_json())
            supply.note("measured_share", round(times.measured_share(spec, small), 4))
        return rules

    def _times(self, spec: RankerSpec, n_tokens: int) -> TokenTimes | None:
        """Time what a budget in latency has to know, on this machine; None for other budgets."""
        if self.budget.latency is None:
            return None
        from compressor.export.token_times import measure_token_times

        options = dict.fromkeys(rule for rules in self.options.values() for rule in rules)
        pools = [rule for rule in options if isinstance(rule, PoolRule)]
        kept = [rule for rule in options if not isinstance(rule, PoolRule)]
        # How many tokens stay is next to nothing in what a choice takes, and a stride is much in what a pool does.
        rules: Sequence[TokenRule] = pools or [kept[len(kept) // 2]]
        return measure_token_times(spec, n_tokens, rules, threads=self.budget.threads, precision=self.budget.precision)

    def _first(self, spec: RankerSpec, n_tokens: int, costs: TokenCosts, most: float | None = None) -> Schedule:
        """Return a choice before anything is measured: of equal shares the earlier one loses more."""
        n_layers = len(spec.layers)

        def loss(layer: int, before: float, after: float) -> float:
            return ((1 - after) ** 2 - (1 - before) ** 2) * (n_layers - 1 - layer)

        most = self.budget.share * self.budget.cost(spec, n_tokens) if most is None else most
        return self._best(spec, n_tokens, costs, loss, most, 1)[0]

    def _best(
        self, spec: RankerSpec, n_tokens: int, costs: TokenCosts, loss: Loss, most: float, n_best: int
    ) -> list[Schedule]:
        return best_schedules(
            spec, n_tokens, self.options, costs, loss, budget=most, most_places=self.most_places, n_best=n_best
        )  # fmt: skip

    def _too_small(self, least: float, n_tokens: int) -> PlanError:
        """Return what is to be said of a budget below the least share that any choice costs."""
        fix = "name a larger share, or have more tokens go: smaller shares or larger strides"
        return self.budget.too_small(least, "by the cheapest choice", f"{n_tokens} tokens", fix=fix)


def lists_to_choose_by(supply: Supply, n_pairs: int) -> tuple[Pairs, Pairs]:
    """Return pairs of lists by which to choose, and half as many of other queries, which have no say.

    Raises:
        InputError: no list has two candidates.
    """
    drawn = supply.pairs("calibration", math.ceil(n_pairs * (1 + _HELD_OUT)), per_query=CANDIDATES_OF_A_LIST)
    lists: dict[str, Pairs] = {}
    for query, document in drawn:
        lists.setdefault(query, []).append((query, document))
    ranked = [one for one in lists.values() if len(one) > 1]
    if not ranked:
        source, fix = supply.data("calibration").name, "name other data.calibration"
        raise InputError(Fault(source=source, found="no query with two candidates, which have an order", fix=fix))
    n_chosen_by = max(1, round(len(ranked) / (1 + _HELD_OUT)))
    return list(chain(*ranked[:n_chosen_by])), list(chain(*ranked[n_chosen_by:]))


def note_held_out(result: Ranker, held_out: Pairs, supply: Supply) -> None:
    """Note how far the rules of a ranker move scores of lists by which they were not chosen, if there are any."""
    from compressor.algorithms.token_damage import without_rules

    if held_out:
        lists = list_places([query for query, _ in held_out])
        exact = without_rules(result).score(held_out)
        supply.note("held_out", score_shift(result.score(held_out), exact, lists).as_json())


def shares_to_try(shares: Iterable[float], most_places: int) -> list[float]:
    """Return shares of a document at which damage is measured: what one rule leaves, and down to what all can leave."""
    least = min(shares)
    deep = [max(0.001, round(least**power, 3)) for power in range(2, most_places + 1)]
    return sorted({*shares, *deep}, reverse=True)


def shown(rules: Rules) -> dict[str, float]:
    """Return the stride or share of each rule, by layer."""
    return {
        str(layer): rule.stride if isinstance(rule, PoolRule) else rule.share for layer, rule in sorted(rules.items())
    }


def _shown(found: Mapping[float, ScoreShift]) -> dict[str, float]:
    return {f"{share:.3g}": digits(shift.score_rmse) for share, shift in found.items()}


def _foretold(damage: TokenDamage, rules: Rules) -> dict[str, float]:
    return {"predicted_score_rmse": digits(damage.foretold(rules) ** 0.5)}
