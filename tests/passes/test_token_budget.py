"""keep_tokens and pool_tokens with auto: budgets are met, and what is chosen is what was measured to lose least."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compressor.algorithms import token_damage
from compressor.algorithms.score_shifts import list_places, score_shift
from compressor.algorithms.token_damage import without_rules
from compressor.errors import InputError
from compressor.export import token_times
from compressor.passes import Pass, PlanError
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.pool_tokens import PoolTokens
from compressor.passes.quantize import Quantize
from compressor.passes.token_budget import lists_to_choose_by
from compressor.passes.width_budget import PLANNED_TOKENS
from compressor.ranker.cost import macs
from compressor.ranker.spec import AttentionScorer, KeepShareRule, LearnedScorer, PageRankScorer, PoolRule
from tests import tiny
from tests.passes.students import KilledError, applied, supply_for, unlabelled

PLAIN = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 5)
KEEP: dict[str, Any] = {"layers": "auto", "n_pairs": 16}
POOL: dict[str, Any] = {"layer": "auto", "stride": "auto", "n_pairs": 16}


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of five layers."""
    return tiny.build_ranker(PLAIN, seed=3)


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def keep(**settings):
    return KeepTokens.model_validate({**KEEP, **settings})


def pool(**settings):
    return PoolTokens.model_validate({**POOL, **settings})


def lists_of(step, data, ranker):
    return lists_to_choose_by(supply_for(step, data, ranker), step.n_pairs)


def damage_of(ranker, plain, pairs):
    return score_shift(ranker.score(pairs), plain.score(pairs), list_places([query for query, _ in pairs]))


@pytest.mark.parametrize("settings", [{}, {"scorer": "pagerank", "search": {"shares": [0.5], "most_places": 2}}])
@pytest.mark.parametrize("share", [0.75, 0.9])
def test_the_budget_is_met_by_what_is_planned_and_by_what_is_chosen(ranker, data, share, settings):
    step = keep(budget={"macs": share}, **settings)
    notes: dict[str, Any] = {}
    result = applied(step, ranker, data, notes)
    planned = step.plan(ranker.spec)
    assert planned.rule_layers
    assert macs(planned, PLANNED_TOKENS) <= share * macs(PLAIN, PLANNED_TOKENS)
    kept = macs(result.spec, notes["mean_tokens"]) / macs(PLAIN, notes["mean_tokens"])
    assert share - 0.06 < kept <= share
    assert notes["kept_share"] == pytest.approx(kept, abs=1e-4)
    scorer = PageRankScorer() if settings else AttentionScorer()
    expected = {int(place): KeepShareRule(share=share, scorer=scorer) for place, share in notes["layers"].items()}
    assert {place: result.spec.layers[place].token_rule for place in result.spec.rule_layers} == expected
    assert len(expected) <= step.search.most_places


def test_what_is_chosen_is_the_best_of_what_is_measured_and_is_measured_anew(ranker, data):
    step = keep(budget={"macs": 0.8})
    notes: dict[str, Any] = {}
    result = applied(step, ranker, data, notes)
    pairs, held_out = lists_of(step, data, ranker)
    assert not {query for query, _ in pairs} & {query for query, _ in held_out}
    assert notes["joint"]["score_rmse"] == min(one["score_rmse"] for one in notes["choices"])
    assert notes["joint"] == pytest.approx(damage_of(result, ranker, pairs).as_json(), rel=1e-3, abs=1e-6)
    assert notes["held_out"] == pytest.approx(damage_of(result, ranker, held_out).as_json(), rel=1e-3, abs=1e-6)
    assert notes["predicted"]["score_rmse"] > 0
    middle = notes["choices"][-1]["rules"]
    assert set(middle) == {"1"}  # it can keep the budget alone, so it is among what was measured
    alone = applied(KeepTokens.model_validate({"layers": middle}), ranker)
    n_tokens = notes["mean_tokens"]
    assert macs(alone.spec, n_tokens) == pytest.approx(0.8 * macs(PLAIN, n_tokens), rel=0.04)
    assert notes["joint"]["score_rmse"] <= damage_of(alone, ranker, pairs).score_rmse * (1 + 1e-6)


def reading_in(plain, layer):
    """Return the ranker that mixes tokens in one layer alone, and passes on what each holds in the others."""
    weights = dict(plain.weights)
    for index in range(len(plain.spec.layers)):
        if index != layer:
            name = f"layers.{index}.attention.output.weight"
            weights[name] = 0 * weights[name]
    return plain.changed(weights=weights)


def test_tokens_go_behind_the_layer_that_reads_them(ranker, data):
    """Behind layer 2 documents are read, and nothing is lost; the middle, layer 1, would lose much at the same cost."""
    one = reading_in(ranker, 2)
    step = keep(budget={"macs": 0.92})
    notes: dict[str, Any] = {}
    result = applied(step, one, data, notes)
    assert min(result.spec.rule_layers) >= 2
    assert notes["joint"]["score_rmse"] < 1e-5
    middle = notes["choices"][-1]
    assert set(middle["rules"]) == {"1"}
    alone = applied(KeepTokens.model_validate({"layers": middle["rules"]}), one)
    n_tokens = notes["mean_tokens"]
    assert macs(alone.spec, n_tokens) == pytest.approx(macs(result.spec, n_tokens), rel=0.1)
    held_out = lists_of(step, data, one)[1]
    assert damage_of(alone, one, held_out).score_rmse > 0.01 > 100 * damage_of(result, one, held_out).score_rmse


@pytest.mark.parametrize(
    ("settings", "places", "strides"),
    [
        ({}, range(4), (2, 3, 4, 6, 8)),
        ({"layer": 1}, [1], (2, 3, 4, 6, 8)),
        ({"layer": "middle"}, [1], (2, 3, 4, 6, 8)),
        ({"stride": 3}, range(4), (3,)),
    ],
)
def test_the_pool_that_loses_least_within_the_budget_is_chosen(ranker, data, settings, places, strides):
    step = pool(budget={"macs": 0.85}, **settings)
    notes: dict[str, Any] = {}
    result = applied(step, ranker, data, notes)
    assert step.plan(ranker.spec).rule_layers
    pairs, n_tokens = lists_of(step, data, ranker)[0], notes["mean_tokens"]
    damages = {}
    for layer in places:
        for stride in strides:
            other = applied(PoolTokens(layer=layer, stride=stride), ranker)
            if macs(other.spec, n_tokens) <= 0.85 * macs(PLAIN, n_tokens):
                damages[layer, stride] = damage_of(other, ranker, pairs).score_rmse
    (layer,) = result.spec.rule_layers
    rule = result.spec.layers[layer].token_rule
    assert isinstance(rule, PoolRule)
    assert (notes["layer"], notes["stride"]) == (layer, rule.stride)
    assert damages[layer, rule.stride] == pytest.approx(min(damages.values()), rel=1e-4)
    assert notes["joint"]["score_rmse"] == pytest.approx(notes["predicted"]["score_rmse"], rel=1e-3)


def test_learned_scorers_are_fitted_for_every_place_and_again_for_those_chosen(ranker, data):
    notes: dict[str, Any] = {}
    result = applied(keep(budget={"macs": 0.85}, scorer="learned", search={"most_places": 2}), ranker, data, notes)
    rules = [result.spec.layers[place].token_rule for place in result.spec.rule_layers]
    assert rules
    assert all(isinstance(rule, KeepShareRule) and rule.scorer == LearnedScorer() for rule in rules)
    named = {"layers": notes["layers"], "scorer": "learned", "n_pairs": 16}
    assert applied(KeepTokens.model_validate(named), ranker, data).fingerprint == result.fingerprint


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", ["keep", "pool"])
def test_a_budget_in_latency_goes_by_times(ranker, data, monkeypatch, kind, precision):
    """Here the first two layers take all the time, as if they were slow, so tokens go before the second of them."""

    def timed(trials, n_pairs, threads, asked):
        assert (threads, asked) == (1, precision)
        return [sum(n_tokens for _ in spec.layers[:-1]) + 1.0 for spec, n_tokens in trials]

    def whole(specs, n_tokens, threads, asked):
        return [float(macs(spec, n_tokens)) for spec in specs]

    monkeypatch.setattr(token_times, "measure_trials", timed)
    monkeypatch.setattr(token_times, "measure_times", whole)
    step = {"keep": keep, "pool": pool}[kind](budget={"latency": 0.8, "threads": 1, "precision": precision})
    notes: dict[str, Any] = {}
    result = applied(step, ranker, data, notes)
    n_tokens = notes["mean_tokens"]
    assert notes["token_times"]["precision"] == precision
    assert 0.6 < notes["kept_share"] <= 0.8
    assert notes["measured_share"] == pytest.approx(macs(result.spec, n_tokens) / macs(PLAIN, n_tokens), abs=1e-4)


def test_a_killed_search_goes_on_where_it_was(ranker, data, monkeypatch):
    step = keep(budget={"macs": 0.8}, search={"shares": [0.5], "most_places": 2})
    expected = applied(step, ranker, data)
    supply, calls, limits = supply_for(step, data, ranker), [], {4, 11}

    def counting(*arguments):
        calls.append(1)
        if len(calls) in limits:
            raise KilledError
        return score_shift(*arguments)

    monkeypatch.setattr(token_damage, "score_shift", counting)
    for _ in limits:  # first among 8 cuts alone, then among choices: 3 and 9 are measured, and what died is not
        with pytest.raises(KilledError):
            step.apply(ranker, supply)
    assert step.apply(ranker, supply).fingerprint == expected.fingerprint
    choices: Any = supply.notes["choices"]
    n_choices = len({str(one["rules"]) for one in choices})
    assert n_choices > 1
    assert len(calls) == 8 + n_choices + 2


REFUSED_SETTINGS: list[tuple[type[Pass], dict[str, Any], str]] = [
    (KeepTokens, {"layers": "auto"}, "layers: auto goes by a budget"),
    (KeepTokens, {"budget": {"macs": 0.5}}, "name layers: auto, or take budget away"),
    (KeepTokens, {"layers": {1: 0.5}, "budget": {"macs": 0.5}}, "name layers: auto, or take budget away"),
    (KeepTokens, {"layers": {1: 0.5}, "search": {"most_places": 2}}, "search is what layers: auto tries"),
    (KeepTokens, {"layers": "auto", "budget": {"parameters": 0.5}}, "a budget in parameters"),
    (KeepTokens, {"layers": "auto", "budget": {"macs": 0.5, "latency": 0.5}}, "name one budget"),
    (KeepTokens, {"layers": "auto", "budget": {"macs": 0.5}, "search": {"shares": [1.0]}}, "shares"),
    (KeepTokens, {"layers": "auto", "budget": {"macs": 0.5}, "search": {"most_places": 0}}, "most_places"),
    (KeepTokens, {"layers": "automatic", "budget": {"macs": 0.5}}, "auto"),
    (PoolTokens, {"layer": "auto"}, "layer or stride: auto goes by a budget"),
    (PoolTokens, {"stride": "auto"}, "layer or stride: auto goes by a budget"),
    (PoolTokens, {"layer": 1, "budget": {"macs": 0.5}}, "name layer or stride: auto"),
    (PoolTokens, {"layer": "auto", "stride": 1, "budget": {"macs": 0.5}}, "stride 1 leaves all tokens"),
]


@pytest.mark.parametrize(("step", "settings", "said"), REFUSED_SETTINGS)
def test_senseless_settings_are_refused(step, settings, said):
    with pytest.raises(ValueError, match=said):
        step.model_validate(settings)


NO_ATTENTION = PLAIN.changed(layers=(*(tiny.tiny_layer(attention=None),) * 4, tiny.tiny_layer()))
RULED = PLAIN.changed(layers=(tiny.tiny_layer(token_rule=PoolRule(stride=2)), *PLAIN.layers[1:]))


@pytest.mark.parametrize(
    ("step", "spec", "found", "setting"),
    [
        (keep(budget={"macs": 0.5}), RULED, "lets tokens go behind layer 0", "layers"),
        (pool(budget={"macs": 0.5}), RULED, "lets tokens go behind layer 0", "layer"),
        (keep(budget={"macs": 0.5}), Quantize(scheme="int8_dynamic").plan(PLAIN), "a quantized ranker", ""),
        (pool(budget={"latency": 0.5}), Quantize(scheme="int8_dynamic").plan(PLAIN), "a quantized ranker", ""),
        (keep(budget={"macs": 0.9}), NO_ATTENTION, "without an attention to judge tokens by", "layers"),
        (keep(budget={"macs": 0.5}), PLAIN.changed(layers=PLAIN.layers[:1]), "a ranker of one layer", ""),
        (pool(budget={"macs": 0.5}, layer=4), PLAIN, "layer 4 of a ranker of 5 layers", "layer"),
    ],
)
def test_what_makes_no_sense_on_a_shape_is_refused(step, spec, found, setting):
    with pytest.raises(PlanError, match=found) as refused:
        step.plan(spec)
    assert refused.value.setting == setting
    assert refused.value.fix or refused.value.allowed


@pytest.mark.parametrize("make", [keep, pool])
@pytest.mark.parametrize("of", ["macs", "latency"])
def test_a_budget_out_of_reach_is_refused_with_the_least_that_could_be(make, of):
    with pytest.raises(PlanError, match="less than what is left by the cheapest choice") as refused:
        make(budget={of: 0.1}).plan(PLAIN)
    assert refused.value.setting == "budget"
    least = float(refused.value.allowed.split()[1].removesuffix("%")) / 100
    assert 0.1 < least < 0.6
    assert make(budget={of: least}).plan(PLAIN).rule_layers
    with pytest.raises(PlanError):
        make(budget={of: least - 0.0002}).plan(PLAIN)


def test_a_budget_that_only_the_texts_show_to_be_too_small_is_refused_before_the_work(ranker, data, monkeypatch):
    def nothing(*_, **__):
        raise AssertionError("this takes long")

    monkeypatch.setattr(token_damage, "measure_token_damage", nothing)
    step = keep(budget={"macs": 0.35})
    assert step.plan(PLAIN).rule_layers  # for longer pairs it might have passed
    with pytest.raises(InputError, match=r"keep_tokens: budget: found 35\.000%, which is less") as refused:
        step.apply(ranker, supply_for(step, data, ranker))
    assert "larger share" in str(refused.value)


def test_candidates_without_an_order_are_refused(ranker, data):
    single = replace(data, candidates={query: found[:1] for query, found in data.candidates.items()})
    step = keep(budget={"macs": 0.8})
    with pytest.raises(InputError, match="no query with two candidates"):
        step.apply(ranker, supply_for(step, single, ranker))


def test_one_list_is_chosen_by_and_none_held_out(ranker, data):
    notes: dict[str, Any] = {}
    one = data.only(["q1"])
    applied(pool(budget={"macs": 0.8}), ranker, one, notes)
    assert "joint" in notes
    assert "held_out" not in notes


def test_a_whole_budget_changes_nothing_and_needs_nothing(ranker, tiny_pairs):
    for step in (keep(budget={"macs": 1}), pool(budget={"latency": 1})):
        assert step.needs() == set()
        assert step.plan(PLAIN) == PLAIN
        result = applied(step, ranker)
        np.testing.assert_array_equal(result.score(tiny_pairs), ranker.score(tiny_pairs))
        assert not step.promises(result)
    assert keep(budget={"macs": 0.8}).needs() == pool(budget={"macs": 0.8}).needs() == {"calibration"}
    assert without_rules(ranker).fingerprint == ranker.fingerprint
