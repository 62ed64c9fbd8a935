"""merge_tokens: where rules stand, what is refused, how they are taken away, and that what has merged is trained."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.learn_thresholds import LearnThresholds
from compressor.passes.merge_tokens import MergeTokens
from compressor.passes.pool_tokens import PoolTokens
from compressor.ranker.history import StageRecord
from compressor.ranker.spec import KeepThresholdRule, LearnedScorer, MergeRule, SimilarityHead
from tests import tiny
from tests.passes.students import QUICK, applied, supply_for


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


def rules_of(ranker):
    return {place: ranker.spec.layers[place].token_rule for place in ranker.spec.rule_layers}


def test_rules_stand_where_they_are_put(ranker):
    assert rules_of(applied(MergeTokens(), ranker)) == {1: MergeRule(share=0.5, margin=0.8375)}
    step = MergeTokens.model_validate({"layers": {"0": 0.7, 1: 1, 2: 0.5}, "margin": 0.4, "keep_query_terms": False})
    assert rules_of(applied(step, ranker)) == {
        place: MergeRule(share=share, margin=0.4, keep_query_terms=False) for place, share in ((0, 0.7), (2, 0.5))
    }
    ruled = applied(step, ranker)
    assert rules_of(applied(MergeTokens(layers={0: 0.6}), ruled))[0] == MergeRule(share=0.6, margin=0.9)
    left = ruled.module.trace(**tiny.batch_of(ruled.spec, [30, 9])).layouts[-1]
    assert left.mask.sum(dim=1).tolist() == [5 + 9, 5 + 2]  # of 25 tokens 18, of these 9; of 4 tokens 3, of these 2


PLAIN = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4)
REFUSED = {
    "another rule": (PoolTokens().plan(PLAIN), "layer 1, behind which tokens go", "pool_tokens with stride 1 takes"),
    "a choice": (KeepTokens().plan(PLAIN), "layer 1, behind which tokens go", "keep_tokens with a share of 1 and the"),
    "no attention": (
        PLAIN.changed(layers=(PLAIN.layers[0], tiny.tiny_layer(attention=None), *PLAIN.layers[2:])),
        "layer 1, which has no attention",
        "choose another layer",
    ),
    "a bi-encoder": (PLAIN.changed(head=SimilarityHead(pool="first")), "a bi-encoder", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    spec, found, fix = REFUSED[name]
    with pytest.raises(PlanError, match=found) as refused:
        MergeTokens().plan(spec)
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    "settings", [{"layers": {0: 0.4}}, {"layers": {}}, {"margin": 1}, {"keep_query_terms": "some"}]
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MergeTokens.model_validate(settings)


def test_a_rule_that_nobody_can_take_away_is_not_said_to_be():
    layer = tiny.tiny_layer(token_rule=KeepThresholdRule(threshold=1.0, share=0.5))
    spec = PLAIN.changed(layers=(PLAIN.layers[0], layer, *PLAIN.layers[2:]))
    with pytest.raises(PlanError) as refused:
        MergeTokens().plan(spec)
    assert refused.value.fix == "choose another layer: one rule stands behind each"


@pytest.mark.parametrize(
    ("step", "whole"),
    [
        (MergeTokens(), MergeTokens(layers={"middle": 1})),
        (PoolTokens(), PoolTokens(stride=1)),
        (KeepTokens(), KeepTokens(layers={"middle": 1})),
        (KeepTokens(scorer="learned", n_pairs=8), KeepTokens(layers={1: 1}, scorer="learned")),
    ],
    ids=["merge", "pool", "keep", "learned"],
)
def test_a_number_that_leaves_all_takes_the_rule_away(step, whole, ranker, tiny_data, tiny_pairs):
    ruled = applied(step, ranker, tiny_data)
    assert ruled.spec.rule_layers == (1,)
    notes: dict[str, object] = {}
    free = applied(whole, ruled, tiny_data, notes)
    assert free.spec == ranker.spec
    assert set(free.weights) == set(ranker.weights)
    np.testing.assert_array_equal(free.score(tiny_pairs), ranker.score(tiny_pairs))
    assert notes["taken_away"] == [1]
    (promise,) = step.promises(ruled)
    assert promise.check(free)  # nobody says that this was wanted
    record = StageRecord(verb=whole.verb, notes=notes)
    assert promise.check(free.changed(history=(*free.history, record))) is None


def test_another_rule_is_not_taken_away(ranker):
    pooled = applied(PoolTokens(), ranker)
    for step in (MergeTokens(layers={1: 1}), KeepTokens(layers={1: 1})):
        assert applied(step, pooled).spec == pooled.spec
    kept = applied(KeepTokens(scorer="pagerank"), ranker)
    assert applied(KeepTokens(layers={1: 1}), kept).spec == kept.spec


def test_of_learned_scorers_one_may_go_while_another_comes(ranker, tiny_data):
    first = applied(KeepTokens(layers={0: 0.5}, scorer="learned", n_pairs=8), ranker, tiny_data)
    moved = applied(KeepTokens(layers={0: 1, 1: 0.5}, scorer="learned", n_pairs=8), first, tiny_data)
    assert moved.spec.rule_layers == (1,)
    rule = moved.spec.layers[1].token_rule
    assert getattr(rule, "scorer", None) == LearnedScorer()
    assert moved.weights["layers.1.token_rule.scorer.match"].abs().max() > 0


@pytest.mark.parametrize("step", [MergeTokens(), PoolTokens(), KeepTokens()], ids=["merge", "pool", "keep"])
def test_what_cuts_layers_is_sent_before_the_pass_that_set_the_rule(step):
    with pytest.raises(PlanError) as refused:
        DropLayers(keep=(0, 3)).plan(step.plan(PLAIN))
    assert f"put drop_layers before {step.verb}:" in refused.value.fix


def test_both_rules_are_named_that_stand():
    spec = MergeTokens(layers={0: 0.5}).plan(PoolTokens(layer=1).plan(PLAIN))
    with pytest.raises(PlanError) as refused:
        DropLayers(keep=(0, 3)).plan(spec)
    assert "before merge_tokens and pool_tokens:" in refused.value.fix


def test_shares_of_merges_are_drawn_in_training(ranker, tiny_data):
    student = applied(MergeTokens(), ranker)
    settings = {**QUICK, "epochs": 2, "token_rules": {"shares": [1, 0.75, 0.5]}}
    step = Distill.model_validate(settings)
    result = step.apply(student, supply_for(step, tiny_data, ranker))
    assert rules_of(result) == rules_of(student)
    assert result.fingerprint != student.fingerprint
    with pytest.raises(PlanError, match=r"a share of 0\.3 behind layer 1, where tokens merge"):
        Distill.model_validate({**QUICK, "token_rules": {"shares": [0.5, 0.3]}}).plan(student.spec)


def test_thresholds_are_refused_where_tokens_merge(ranker):
    with pytest.raises(PlanError, match="layer 1, behind which tokens go already"):
        LearnThresholds(epochs=0).plan(applied(MergeTokens(), ranker).spec)
