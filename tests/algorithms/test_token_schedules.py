"""Token schedules: what dynamic programming finds is what trying every choice finds, at the cost of the shape."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest

from compressor.algorithms.budgets import BudgetError
from compressor.algorithms.token_schedules import MacCosts, best_schedules, share_left, with_more_left
from compressor.ranker.cost import document_tokens, macs
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import KeepShareRule, PageRankScorer, PoolRule, TokenRule
from tests import tiny

N_LAYERS, N_TOKENS = 5, 40
SPEC = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * N_LAYERS)
RULES: list[TokenRule] = [KeepShareRule(share=0.7), KeepShareRule(share=0.4), PoolRule(stride=3, queries_only=True)]


class DrawnCosts:
    """Layers that cost so much a token, and rules that cost something, too."""

    def __init__(self, seed):
        draw = np.random.default_rng(seed)
        self.of_layers, self.of_rules = draw.random(N_LAYERS), draw.random((N_LAYERS, len(RULES)))

    def rest(self):
        return 1.5

    def layer(self, index, n_tokens):
        return self.of_layers[index] * n_tokens

    def rule(self, index, rule, n_tokens):
        return self.of_rules[index, RULES.index(rule)] * (1 + n_tokens / 100)


def drawn_loss(seed, layer, before, after):
    weight, power = np.random.default_rng([seed, layer]).random(2)
    return weight * ((1 - after) ** (0.5 + power) - (1 - before) ** (0.5 + power))


def every_choice(options, most_places):
    for n_places in range(most_places + 1):
        for places in itertools.combinations(sorted(options), n_places):
            for rules in itertools.product(*(options[place] for place in places)):
                yield dict(zip(places, rules, strict=True))


def walked(rules, costs, loss):
    """Return loss and cost of some rules, by walking up the layers."""
    n_document, left, total, lost = document_tokens(N_TOKENS), 1.0, costs.rest(), 0.0
    n_other = N_TOKENS - n_document
    for layer in range(N_LAYERS):
        total += costs.layer(layer, n_other + n_document)
        if rule := rules.get(layer):
            total += costs.rule(layer, rule, n_other + n_document)
            after = left * share_left(rule)
            lost += loss(layer, left, after)
            n_document, left = rule.n_left(n_document), after
    return lost, total


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most_places", [1, 2, 4])
def test_the_best_of_all_choices_are_found(seed, most_places):
    costs, loss = DrawnCosts(seed), partial(drawn_loss, seed)
    options = {0: RULES, 1: RULES[:2], 3: RULES}
    every = [walked(rules, costs, loss) for rules in every_choice(options, most_places)]
    for share in (0.4, 0.6, 0.8, 1.0):
        budget = share * walked({}, costs, loss)[1]
        expected = sorted(lost for lost, cost in every if cost <= budget)
        find = partial(best_schedules, SPEC, N_TOKENS, options, costs, loss, budget=budget, most_places=most_places)
        if not expected:
            with pytest.raises(BudgetError) as caught:
                find()
            assert caught.value.least == pytest.approx(min(cost for _, cost in every))
            continue
        for n_best in (1, 3):
            found = find(n_best=n_best)
            assert [one.loss for one in found] == pytest.approx(expected[:n_best])
            for one in found:
                assert len(one.rules) <= most_places
                assert one.cost <= budget
                assert (one.loss, one.cost) == pytest.approx(walked(one.rules, costs, loss))


@pytest.mark.parametrize("n_tokens", [5, 11, 12, 40, 301])
@pytest.mark.parametrize(
    "rule", [*RULES, KeepShareRule(share=0.4, scorer=PageRankScorer())], ids=lambda rule: rule.kind
)
def test_multiply_adds_are_those_of_the_shape(n_tokens, rule):
    costs = MacCosts(spec=SPEC, n_tokens=n_tokens)
    options = {place: [rule] for place in range(N_LAYERS - 1)}
    whole = macs(SPEC, n_tokens)
    found = best_schedules(
        SPEC, n_tokens, options, costs, lambda *_: 0.0, budget=2 * whole, most_places=3, n_best=6
    )  # fmt: skip  # where nothing is lost, the cheapest come first
    assert all(one.cost == macs(with_token_rules(SPEC, one.rules), n_tokens) for one in found)
    assert any(one.rules for one in found) == (document_tokens(n_tokens) > 1)


@pytest.mark.parametrize("share", [0.75, 0.85, 0.95])
def test_what_is_left_of_a_budget_is_spent_on_shares(share):
    cost = partial(macs, n_tokens=200)
    rules: dict[int, TokenRule] = {0: PoolRule(stride=2), 1: KeepShareRule(share=0.3), 3: KeepShareRule(share=0.6)}
    most = share * cost(SPEC)
    assert cost(with_token_rules(SPEC, rules)) < 0.75 * cost(SPEC)
    more = with_more_left(SPEC, rules, cost, most)
    assert cost(with_token_rules(SPEC, more)) <= most
    assert more[0] == rules[0]
    before, after = ([share_left(each[place]) for place in (1, 3)] for each in (rules, more))
    assert all(new >= old for new, old in zip(after, before, strict=True))
    further = {place: more[place].changed(share=min(0.999, share_left(more[place]) + 0.02)) for place in (1, 3)}
    is_spent = cost(with_token_rules(SPEC, {**more, **further})) > most
    assert is_spent or min(after) > 0.98


def test_rules_that_just_fit_cost_no_more():
    rules = {1: KeepShareRule(share=0.3)}
    cost = partial(macs, n_tokens=200)
    most = cost(with_token_rules(SPEC, rules))
    assert cost(with_token_rules(SPEC, with_more_left(SPEC, rules, cost, most))) == most
