"""Damage of token rules: each trial is the ranker with that rule alone, and what is foretold follows from trials."""

from __future__ import annotations

from functools import partial

import pytest

from compressor.algorithms import token_damage
from compressor.algorithms.score_shifts import ScoreShift, list_places, score_shift
from compressor.algorithms.token_damage import TokenDamage, measure_together, measure_token_damage, with_rules_alone
from compressor.errors import RunError
from compressor.passes.token_rules import told_apart
from compressor.ranker.forms import with_token_rules
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import KeepShareRule, LearnedScorer, PageRankScorer, PoolRule, TokenRule
from tests import tiny
from tests.laws.cases import pre_norm

KINDS: dict[str, list[TokenRule]] = {
    "attention": [KeepShareRule(share=0.6), KeepShareRule(share=0.25)],
    "pagerank": [KeepShareRule(share=0.5, scorer=PageRankScorer())],
    "learned": [KeepShareRule(share=0.5, scorer=LearnedScorer())],
    "pool": [PoolRule(stride=2), PoolRule(stride=5)],
}


@pytest.fixture(scope="module")
def pairs(tiny_data):
    return tiny_data.texts(tiny_data.pairs())[:16]


def with_probes(plain, rules):
    """Return a ranker with a rule behind every layer but the last, drawn vectors in learned scorers."""
    spec = with_token_rules(plain.spec, dict.fromkeys(range(len(plain.spec.layers) - 1), rules[0]))
    drawn = tiny.lively_weights(told_apart(plain, spec, "test"), seed=5)
    weights = {**{name: one for name, one in drawn.items() if ".token_rule." in name}, **plain.weights}
    return plain.changed(spec=told_apart(plain, spec, "test"), weights=weights)


def plain_ranker(kind):
    if kind == "pre-norm":
        return pre_norm()
    spec = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 3)
    spec = spec.changed(head=spec.head.changed(pool="mean")) if kind == "mean" else spec
    return tiny.build_ranker(spec, seed=3)


@pytest.mark.parametrize(
    ("kind", "name"), [("post", kind) for kind in KINDS] + [("pre-norm", "pool"), ("mean", "pagerank")]
)
def test_a_trial_is_the_ranker_with_that_rule_alone(kind, name, pairs):
    plain, rules = plain_ranker(kind), KINDS[name]
    ranker = with_probes(plain, rules)
    trials = dict.fromkeys(range(len(plain.spec.layers) - 1), rules)
    found = measure_token_damage(ranker, pairs, trials)
    exact, lists = plain.score(pairs), list_places([query for query, _ in pairs])
    for layer in trials:
        for rule, (share, shift) in zip(rules, found.measured[layer].items(), strict=True):
            alone = with_rules_alone(ranker, {layer: rule})
            assert alone.spec.rule_layers == (layer,)
            expected = score_shift(alone.score(pairs), exact, lists)
            assert shift.score_rmse == pytest.approx(expected.score_rmse, rel=1e-3, abs=1e-6)
            assert shift.score_rmse > 0
            assert found.of(layer, share) >= shift.squared
    together = dict.fromkeys(trials, rules[0])
    (shift,) = measure_together(ranker, pairs, [together])
    assert shift == score_shift(with_rules_alone(ranker, together).score(pairs), exact, lists)


def test_a_killed_measurement_goes_on(pairs, tmp_path, monkeypatch):
    ranker, store = with_probes(plain_ranker("post"), KINDS["pool"]), tmp_path / "scratch" / "found.json"
    trials = dict.fromkeys(range(2), KINDS["pool"])
    whole = measure_token_damage(ranker, pairs, trials)
    calls: list[int] = []

    def dying(*arguments, survive):
        calls.append(1)
        if len(calls) > survive:
            raise KeyboardInterrupt
        return score_shift(*arguments)

    monkeypatch.setattr(token_damage, "score_shift", partial(dying, survive=3))
    with pytest.raises(KeyboardInterrupt):
        measure_token_damage(ranker, pairs, trials, store=store)
    calls.clear()
    monkeypatch.setattr(token_damage, "score_shift", partial(dying, survive=100))
    assert measure_token_damage(ranker, pairs, trials, store=store) == whole
    assert len(calls) == 1
    calls.clear()
    measure_token_damage(ranker, pairs[:8], trials, store=store)
    assert len(calls) == 4  # of other pairs, nothing is known


def test_a_ranker_without_a_separator_has_no_documents(pairs):
    with pytest.raises(RunError, match="no documents"):
        measure_token_damage(tiny.build_ranker(), pairs, {0: KINDS["pool"]})


def shift(rmse):
    return ScoreShift(score_rmse=rmse, raw_score_rmse=rmse, kendall_tau=0.5, ndcg_loss=0.1)


TABLE = TokenDamage(measured={0: {0.5: shift(2.0), 0.25: shift(1.0), 0.1: shift(3.0)}, 2: {0.5: shift(1.0)}})


def test_less_left_never_loses_less_and_all_left_loses_nothing():
    assert [TABLE.of(0, share) for share in (1.0, 0.75, 0.5, 0.25, 0.1, 0.01)] == [0, 2, 4, 4, 9, 9]


def test_a_cut_loses_what_cutting_further_at_its_place_loses():
    keep = {share: KeepShareRule(share=share) for share in (0.5, 0.2)}
    assert TABLE.foretold({0: keep[0.5]}) == 4
    assert TABLE.foretold({0: PoolRule(stride=2)}) == 4
    assert TABLE.foretold({0: keep[0.5], 2: keep[0.5]}) == 4  # behind layer 2, nothing more is lost below a half
    assert TABLE.foretold({0: keep[0.2]}) == pytest.approx(TABLE.loss(0, 1, 0.5) + TABLE.loss(0, 0.5, 0.2))


def test_a_ranker_with_rules_keeps_its_separator_no_longer_than_them():
    ranker = with_probes(plain_ranker("post"), KINDS["learned"])
    bare = with_rules_alone(ranker, {})
    assert isinstance(bare, Ranker)
    assert bare.spec == plain_ranker("post").spec
    assert not any(".token_rule." in name for name in bare.weights)
