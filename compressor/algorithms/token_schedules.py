"""Where tokens go, and how many, so that what is lost is least within a budget: dynamic programming over the layers."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import NamedTuple, Protocol

from compressor.algorithms.budgets import BudgetError
from compressor.ranker.cost import QUERY_TOKENS, document_tokens, layer_macs, rest_macs, scorer_macs, shown_macs
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import PoolRule, RankerSpec, TokenRule

_STEPS = 16  # of a bisection: shares have three digits
_ROUNDING = 1e-9  # of sums in another order

Loss = Callable[[int, float, float], float]  # of cutting behind a layer, from one share of the document to another


class TokenCosts(Protocol):
    """What parts of a ranker cost by the tokens that reach them; of all parts it adds up."""

    def rest(self) -> float:
        """Return what no layer costs."""

    def layer(self, index: int, n_tokens: int) -> float:
        """Return what a layer costs that so many tokens reach."""

    def rule(self, index: int, rule: TokenRule, n_tokens: int) -> float:
        """Return what a rule behind a layer costs that so many tokens reach."""


@dataclass(frozen=True, kw_only=True)
class MacCosts:
    """Multiply-adds of a pair of ``n_tokens``, as `compressor.ranker.cost.macs` counts them."""

    spec: RankerSpec
    n_tokens: int

    def rest(self) -> float:
        return rest_macs(self.spec, self.n_tokens)

    def layer(self, index: int, n_tokens: int) -> float:
        return layer_macs(self.spec, index, n_tokens)

    def rule(self, index: int, rule: TokenRule, n_tokens: int) -> float:
        layer = self.spec.layers[index].changed(token_rule=rule)
        n_other = self.n_tokens - document_tokens(self.n_tokens)
        shown = shown_macs(self.spec, index, rule, n_tokens, n_other + rule.n_left(n_tokens - n_other))
        return shown + scorer_macs(layer, self.spec.width, n_tokens, min(n_tokens, QUERY_TOKENS + 1))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Token rules that go together.

    Attributes:
        rules: by layer.
        loss: what is lost by them, as foretold.
        cost: of a pair.
    """

    rules: Mapping[int, TokenRule]
    loss: float
    cost: float


class _Path(NamedTuple):
    """A way through the layers so far; ``left`` is the share of the document, ``n_document`` its tokens, left by it."""

    loss: float
    cost: float
    left: float
    n_document: int
    rules: tuple[tuple[int, TokenRule], ...]


def best_schedules(
    spec: RankerSpec,
    n_tokens: int,
    options: Mapping[int, Sequence[TokenRule]],
    costs: TokenCosts,
    loss: Loss,
    *,
    budget: float,
    most_places: int,
    n_best: int = 1,
) -> list[Schedule]:
    """Return the choices of rules with the least losses in all that cost no more than a budget, best first.

    Layer by layer, of all ways to the same number of tokens left with as many rules, those are followed to which fewer
    than ``n_best`` others are equal or better in loss and in cost, which can still meet the budget, and which lose no
    more than choices that are known to. Tokens are counted, not binned, so that the result is what trying all choices
    would give.

    Args:
        spec: a shape without token rules.
        n_tokens: of the pair whose cost counts.
        options: rules that may stand behind a layer, one at most, by layer.
        costs: of parts of a pair.
        loss: of a cut, never below 0; losses of all cuts add up.
        budget: most that a pair may cost.
        most_places: so many rules at most.
        n_best: how many choices; fewer are returned where there are fewer.

    Raises:
        BudgetError: no choice is cheap enough.
    """
    n_other, n_layers = n_tokens - document_tokens(n_tokens), len(spec.layers)
    layer_cost, rule_cost = cache(costs.layer), cache(costs.rule)

    @cache
    def above(index: int, n_document: int, n_places: int) -> float:
        """Return the least that layers from one on can cost, if so many rules may come."""
        if index == n_layers:
            return 0.0
        n_reading = n_other + n_document
        ways = [above(index + 1, n_document, n_places)]
        for rule in options.get(index, ()) if n_places else ():
            if (n_left := rule.n_left(n_document)) < n_document:
                ways.append(rule_cost(index, rule, n_reading) + above(index + 1, n_left, n_places - 1))
        return layer_cost(index, n_reading) + min(ways)

    start = _Path(0.0, costs.rest(), 1.0, document_tokens(n_tokens), ())
    least = start.cost + above(0, start.n_document, most_places)
    allowed = budget * (1 + _ROUNDING)
    if least > allowed:
        raise BudgetError(least)
    paths, complete = [start], [0.0] if start.cost + above(0, start.n_document, 0) <= budget else []
    for index in range(n_layers):
        reached = []
        for path in paths:
            n_reading, n_more = n_other + path.n_document, most_places - len(path.rules)
            cost = path.cost + layer_cost(index, n_reading)
            if cost + above(index + 1, path.n_document, n_more) <= allowed:
                reached.append(_Path(path.loss, cost, path.left, path.n_document, path.rules))
            for rule in options.get(index, ()) if n_more else ():
                n_left, left = rule.n_left(path.n_document), path.left * share_left(rule)
                spent = cost + rule_cost(index, rule, n_reading)
                if n_left == path.n_document or spent + above(index + 1, n_left, n_more - 1) > allowed:
                    continue
                lost = path.loss + loss(index, path.left, left)
                reached.append(_Path(lost, spent, left, n_left, (*path.rules, (index, rule))))
                if spent + above(index + 1, n_left, 0) <= budget:
                    insort(complete, lost)
        del complete[n_best:]
        most_lost = complete[-1] if len(complete) == n_best else math.inf
        paths = _worth_following([path for path in reached if path.loss <= most_lost], n_best)
    found = sorted((path for path in paths if path.cost <= budget), key=_by_loss)[:n_best]
    if not found:
        raise BudgetError(least)
    return [Schedule(rules=dict(path.rules), loss=path.loss, cost=path.cost) for path in found]


_by_loss = itemgetter(0, 1)


def _worth_following(paths: Sequence[_Path], n_best: int) -> list[_Path]:
    """Return the paths that can still be among the best: to each fewer than so many are equal or better."""
    groups: dict[tuple[int, float, int], list[_Path]] = {}
    for path in paths:
        groups.setdefault((path.n_document, round(path.left, 9), len(path.rules)), []).append(path)
    kept = []
    for group in groups.values():
        costs: list[float] = []
        for path in sorted(group, key=_by_loss):
            if bisect_right(costs, path.cost) < n_best:
                insort(costs, path.cost)
                kept.append(path)
    return kept


def share_left(rule: TokenRule) -> float:
    """Return about which share of a document a rule leaves."""
    return 1 / rule.stride if isinstance(rule, PoolRule) else rule.share


def with_more_left(
    spec: RankerSpec, rules: Mapping[int, TokenRule], cost: Callable[[RankerSpec], float], budget: float
) -> dict[int, TokenRule]:
    """Return rules that spend what is left of a budget: one power, up to 1, of all shares, as small as it allows.

    Args:
        spec: a shape without token rules.
        rules: within the budget; such as have no share to raise stay.
        cost: of a shape.
        budget: most that it may be.
    """

    def raised(power: float) -> dict[int, TokenRule]:
        return {
            place: rule if isinstance(rule, PoolRule) else rule.changed(share=_written(rule.share**power))
            for place, rule in rules.items()
        }

    def fits(power: float) -> bool:
        return cost(with_token_rules(spec, raised(power))) <= budget

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return raised(high) if high < 1 and fits(high) else dict(rules)


def _written(share: float) -> float:
    """Return a share below 1 of three digits, rounded down."""
    return min(0.999, max(0.001, int(share * 1000) / 1000))
