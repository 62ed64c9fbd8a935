"""token_rules of training passes: every stride and share gets good, draws are repeatable, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.nest_widths import NestWidths
from compressor.passes.pool_tokens import PoolTokens
from compressor.ranker.spec import KeepShareRule, PoolRule
from compressor.ranker.sub_network import WHOLE
from compressor.training.objective import Objective
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, cut, distilled, score_rmse, supply_for, unlabelled

SCORES: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}}
STRIDES = (1, 2, 4)


@pytest.fixture(scope="module")
def teacher():
    """A cross-encoder of three layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 3), seed=3)


@pytest.fixture(scope="module")
def pooled(teacher):
    return applied(PoolTokens(layer=0, stride=4), teacher)


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def test_one_training_makes_every_stride_good(teacher, data, monkeypatch):
    def missed(ranker):
        whole = ranker.changed(spec=student.spec)
        strided = [applied(PoolTokens(layer=0, stride=stride), ranker) for stride in (2, 4)]
        return np.array([score_rmse(one, teacher, data) for one in (whole, *strided)])

    def seeing(self, module, batch):
        seen.append(module.part.token_rules)
        return compute(self, module, batch)

    student = cut(teacher, [0, 2])
    pooled = applied(PoolTokens(layer=0, stride=4), student)
    seen: list[Any] = []
    compute = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", seeing)
    elastic = distilled(pooled, teacher, data, **SCORES, epochs=15, token_rules={"strides": STRIDES})
    assert elastic.spec == pooled.spec
    assert {str(one) for one in seen} == {str({0: rule}) for rule in (None, PoolRule(stride=2), PoolRule(stride=4))}
    assert (missed(elastic) < missed(pooled) / 2).all()


def test_draws_hold_each_rule_as_often_on_its_own(teacher):
    spec = applied(PoolTokens(layer=1), applied(KeepTokens(layers={0: 0.5}), teacher)).spec
    step = Distill.model_validate({"token_rules": {"strides": [1, 2], "shares": [1, 0.7, 0.5]}})
    step.plan(spec)
    parts = step.parts(spec, seed=5)
    found = [parts(number)[0].token_rules for number in range(1500)]
    keeps = [None, KeepShareRule(share=0.7), KeepShareRule(share=0.5)]
    counts = Counter((str(one[0]), str(one[1])) for one in found)
    chances = [counts[str(keep), str(pool)] / 1500 for keep in keeps for pool in (None, PoolRule(stride=2))]
    assert chances == pytest.approx([1 / 6] * 6, abs=0.04)
    again = step.parts(spec, seed=5)
    assert [again(number)[0].token_rules for number in reversed(range(1500))] == found[::-1]
    only_strides = Distill.model_validate({"token_rules": {"strides": [1, 2]}})
    assert set(only_strides.parts(spec, seed=5)(0)[0].token_rules) == {1}


def test_draws_of_layers_and_widths_stay_what_they_were_without_rules(pooled):
    settings: dict[str, Any] = {"layer_drop": 0.4, "shares": [1, 0.5]}
    plain, drawn = (
        NestWidths.model_validate({**settings, **more}) for more in ({}, {"token_rules": {"strides": [2, 4]}})
    )
    for number in range(40):
        (before,), (after,) = plain.parts(pooled.spec, 3)(number), drawn.parts(pooled.spec, 3)(number)
        assert (before.skipped, before.ffn_widths) == (after.skipped, after.ffn_widths)
        assert before.token_rules == {} != after.token_rules


def test_a_killed_training_goes_on_to_the_same_bits(pooled, teacher, data, monkeypatch):
    settings = {
        **QUICK,
        "token_rules": {"strides": STRIDES},
        "layer_drop": 0.3,
        "epochs": 3,
        "checkpoint_every_s": 1e-9,
    }
    step = Distill.model_validate({**settings, "dropout": True, "representations": {"hidden": 1, "relations": 1}})
    check_exact_resume(step, pooled, teacher, data, monkeypatch, call=6)


def test_dev_data_are_ranked_by_the_own_rule(pooled, teacher, tiny_data, monkeypatch):
    seen = []

    def evaluate(module):
        seen.append(module.part)
        return 0.5

    monkeypatch.setattr(Distill, "_evaluation", lambda *_: evaluate)
    distilled(pooled, teacher, tiny_data, token_rules={"strides": STRIDES}, epochs=1, evaluate_every=1)
    assert seen == [WHOLE] * 4


def test_judgments_teach_several_shares(teacher, tiny_data):
    ranker = applied(KeepTokens(layers={0: 0.5}), teacher)
    step = Finetune.model_validate({**QUICK, "epochs": 2, "token_rules": {"shares": [1, 0.5, 0.2]}})
    supply = supply_for(step, tiny_data, ranker)
    result = step.apply(ranker, supply)
    assert result.spec == ranker.spec
    assert result.fingerprint != step.changed(token_rules=None).apply(ranker, supply).fingerprint


POOLED = tiny.tiny_spec(layers=(tiny.tiny_layer(token_rule=PoolRule(stride=4)), tiny.tiny_layer()), separator_id=3)
REFUSED = {
    "no rule": (
        tiny.tiny_spec(),
        {"strides": [1, 2]},
        "strides for a ranker that has no rule with a stride",
        "strides",
    ),
    "another kind": (POOLED, {"shares": [1, 0.5]}, "shares for a ranker that has no rule with a share", "shares"),
    "without its own": (POOLED, {"strides": [1, 2]}, "the stride 4 behind layer 0, by which the result", "strides"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    spec, drawn, found, setting = REFUSED[name]
    with pytest.raises(PlanError, match=found) as refused:
        Distill.model_validate({"token_rules": drawn}).plan(spec)
    assert refused.value.setting == f"token_rules.{setting}"


@pytest.mark.parametrize(
    ("drawn", "found"),
    [
        ({}, "name strides, or shares"),
        ({"strides": [2]}, "one number alone"),
        ({"strides": [2, 2]}, "a number twice"),
        ({"strides": [0, 2]}, "greater than or equal to 1"),
        ({"shares": [0, 0.5]}, "greater than or equal to 0.001"),
        ({"stride": [1, 2]}, "stride"),
    ],
)
def test_senseless_draws_are_refused(drawn, found):
    with pytest.raises(ValueError, match=found):
        Distill.model_validate({"token_rules": drawn})


def test_a_number_is_set_anew_where_the_rule_is_the_same(teacher):
    ruled = applied(KeepTokens(layers={1: 0.5}), applied(PoolTokens(layer=0), teacher))
    step = PoolTokens(layer=0)
    (promise,) = step.promises(ruled)
    again = applied(KeepTokens(layers={1: 0.3}), applied(PoolTokens(layer=0, stride=3), ruled))
    assert [layer.token_rule for layer in again.spec.layers] == [PoolRule(stride=3), KeepShareRule(share=0.3), None]
    assert promise.check(again) is None
    assert promise.check(teacher)
    with pytest.raises(PlanError, match="layer 1, behind which tokens go already"):
        KeepTokens(layers={1: 0.3}, scorer="pagerank").plan(again.spec)
