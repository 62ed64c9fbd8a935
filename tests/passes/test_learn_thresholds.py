"""learn_thresholds: shares that stay, gates that close as tokens go, what is learned, exact resume, and faults."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compressor.algorithms.token_thresholds import kept_shares, shares_at_budget, token_layers
from compressor.errors import RunError
from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.learn_thresholds import LearnThresholds
from compressor.passes.pool_tokens import PoolTokens
from compressor.ranker.spec import KeepThresholdRule, PageRankScorer
from compressor.training.gated_objective import GatedObjective
from compressor.training.mask_settings import TokenGateSettings
from compressor.training.token_gates import TokenGates
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, cut, distilled, score_rmse, supply_for, unlabelled

SCORES: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}}
LAYERS: dict[Any, float] = {0: 0.7, 2: 0.4}


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def rules_of(ranker):
    return {place: ranker.spec.layers[place].token_rule for place in ranker.spec.rule_layers}


def calibrated(ranker, data, layers=LAYERS, **settings):
    notes: dict[str, Any] = {}
    return applied(LearnThresholds(layers=layers, epochs=0, **settings), ranker, data, notes), notes


def test_thresholds_alone_keep_the_shares_on_calibration_pairs(ranker, data):
    result, notes = calibrated(ranker, data)
    rules = rules_of(result)
    assert result.weights.keys() == ranker.weights.keys()
    assert all(tensor is ranker.weights[name] for name, tensor in result.weights.items())
    assert {place: rule.share for place, rule in rules.items()} == pytest.approx(LAYERS, abs=0.03)
    step = LearnThresholds(layers=LAYERS, epochs=0)
    pairs = supply_for(step, data, ranker).pairs("calibration", step.n_pairs)
    reached = np.zeros(3)
    for query, document in pairs:  # counted one by one, from what reaches the layers behind
        encoded = result.tokenizer.encode_pairs([(query, document), (query, "")])
        ids, types = (torch.from_numpy(one[0])[None] for one in (encoded.input_ids, encoded.type_ids))
        trace = result.module.trace(ids, torch.ones_like(ids), types)
        reached += [len(trace.layouts[state].to_packed) - len(encoded.input_ids[1]) for state in (1, 2, 4)]
    assert reached[1] / reached[0] == pytest.approx(rules[0].share, abs=1e-3)
    assert reached[2] / reached[1] == pytest.approx(rules[2].share, abs=1e-3)
    assert notes["kept_shares"] == {str(place): rule.share for place, rule in rules.items()}
    assert notes["thresholds"]["0"] == pytest.approx(rules[0].threshold, abs=1e-5)


def test_rows_keep_as_many_tokens_as_matter(ranker, data):
    result, _ = calibrated(ranker, data, {1: 0.5})
    plain = applied(KeepTokens(layers={1: 0.5}), ranker)
    pairs = data.texts(data.pairs())

    def shares(one):
        found = []
        for query, document in pairs:
            encoded = one.tokenizer.encode_pairs([(query, document)])
            ids = torch.from_numpy(encoded.input_ids[0])[None]
            reduction = one.module.trace(ids, torch.ones_like(ids)).reductions[1]
            n_document = ids.shape[1] - len(one.tokenizer.encode_pairs([(query, "")]).input_ids[0])
            found.append(1 - (ids.shape[1] - len(reduction.kept)) / n_document)
        return np.array(found)

    assert np.std(shares(result)) > 3 * np.std(shares(plain))  # shares rounded up to whole tokens differ a little


def test_closed_gates_are_tokens_that_are_gone(ranker, data):
    """At a low temperature the scores behind gates are those of the cut, in all layers behind: train equals test."""
    result, _ = calibrated(ranker, data)
    gates = TokenGates(result.spec, TokenGateSettings(temperature=1e-6))
    module = result.trainable().eval()
    batch = tiny.batch_of(result.spec, [30, 12, 40])
    with torch.no_grad():
        hard = module.trace(**batch)
        assert min(one.margins.min() for one in hard.reductions.values()) > 5e-5
        gates.install(module, 1)
        soft = module.trace(**batch)
    torch.testing.assert_close(soft.logits, hard.logits, atol=1e-4, rtol=0)
    assert len(soft.layouts[-1].to_packed) == 82 > len(hard.layouts[-1].to_packed)
    document = 82 - 3 * 5
    gone = [len(hard.layouts[layer + 1].to_packed) - len(hard.reductions[layer].kept) for layer in (0, 2)]
    kept = [1 - gone[0] / document, 1 - sum(gone) / document]
    budget = token_layers({place: rule.share for place, rule in gates.rules.items()}, 4)
    expected = gates.settings.budget_weight * ((2 * kept[0] + kept[1]) / 3 - budget) ** 2
    assert gates.penalty().item() == pytest.approx(expected, abs=1e-4)


def test_gradients_reach_thresholds_and_the_attention_that_judges(ranker, data):
    result, _ = calibrated(ranker, data)
    gates = TokenGates(result.spec, TokenGateSettings())
    module = result.trainable().eval()
    gates.install(module, 1)
    module(**tiny.batch_of(result.spec, [30, 12])).sum().backward(retain_graph=True)
    of_scores = gates.thresholds.grad
    assert of_scores is not None
    assert (of_scores.abs() > 0).all()
    module.zero_grad()
    gates.penalty().backward()
    judging, behind = (module.layers[layer].attention.key.weight.grad for layer in (2, 3))
    assert judging.abs().sum() > 0
    assert behind is None


def test_learning_beats_thresholds_alone_at_the_same_cost(ranker, data):
    layers: dict[Any, float] = {0: 0.7, 1: 0.5}
    student = cut(ranker, [0, 2, 3])
    settings = {**QUICK, **SCORES, "layers": layers, "gates": {"learning_rate": 0.03}}
    step = LearnThresholds.model_validate(settings)
    supply = supply_for(step, data, ranker)
    learned = step.apply(student, supply)
    alone, _ = calibrated(student, data, layers)
    assert score_rmse(learned, ranker, data) < 0.7 * score_rmse(alone, ranker, data)
    found = token_layers({place: rule.share for place, rule in rules_of(learned).items()}, 3)
    assert found == pytest.approx(token_layers(layers, 3), abs=0.03)
    assert supply.notes["learned_shares"] != supply.notes["kept_shares"]
    hard = distilled(learned, ranker, data, **SCORES, epochs=2)
    assert rules_of(hard) == rules_of(learned)
    again, _ = calibrated(hard, data, layers)  # thresholds set anew for the weights as they are now
    pairs = supply.pairs("calibration", step.n_pairs)
    assert kept_shares(again, pairs, rules_of(again)) == pytest.approx(layers, abs=0.03)


def test_a_killed_training_goes_on_to_the_same_bits(ranker, data, monkeypatch):
    settings = {**QUICK, "layers": {1: 0.5}, "epochs": 2, "checkpoint_every_s": 1e-9, "dropout": True}
    step = LearnThresholds.model_validate({**settings, "representations": {"hidden": 1, "relations": 1}})
    check_exact_resume(step, ranker, ranker, data, monkeypatch, call=5, kind=GatedObjective)


def test_budgets_are_shared_out_as_learned():
    assert token_layers({1: 0.5}, 4) == 0.5
    assert token_layers({0: 0.5, 2: 0.5}, 4) == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    for budget in (0.2, 0.4, 0.9):
        found = shares_at_budget({0: 0.8, 2: 0.5}, budget, 4)
        assert token_layers(found, 4) == pytest.approx(budget, abs=1e-6)
        assert math.log(found[2]) / math.log(found[0]) == pytest.approx(math.log(0.5) / math.log(0.8))


REFUSED: dict[str, Any] = {
    "the last layer": ({"layers": {3: 0.5}}, (), "layer 3 of a ranker of 4 layers", "layers"),
    "dev data": ({"evaluate_every": 2}, (), "evaluate_every with gates", "evaluate_every"),
    "layers left out": ({"layer_drop": 0.2}, (), "layer_drop with gates", "layer_drop"),
    "tokens gone already": ({}, (PoolTokens(layer=0),), "a ranker that lets tokens go behind layer 0", "epochs"),
    "another rule": ({"epochs": 0}, (PoolTokens(layer=1),), "layer 1, behind which tokens go already", "layers"),
    "a share": ({"epochs": 0}, (KeepTokens(layers={1: 0.5}),), "layer 1, behind which tokens go", "layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name, ranker):
    settings, before, found, setting = REFUSED[name]
    for step in before:
        ranker = applied(step, ranker)
    with pytest.raises(PlanError, match=found) as refused:
        LearnThresholds.model_validate(settings).plan(ranker.spec)
    assert refused.value.setting == setting
    assert refused.value.fix or refused.value.allowed


def test_data_without_documents_sets_no_threshold(ranker, tiny_data):
    empty = replace(tiny_data, documents=dict.fromkeys(tiny_data.documents, ""))
    with pytest.raises(RunError, match="no document tokens"):
        calibrated(ranker, empty)


def test_needs_follow_from_what_is_done():
    assert LearnThresholds(layers={"middle": 1}).needs() == set()
    assert LearnThresholds(epochs=0).needs() == {"calibration"}
    assert LearnThresholds().needs() == {"calibration", "teacher", "train"}
    assert LearnThresholds(data="in_domain").needs() == {"calibration", "teacher", "in_domain"}


def test_a_pool_before_a_threshold_is_heeded(ranker, data):
    both, _ = calibrated(applied(PoolTokens(layer=0), ranker), data, {1: 0.5}, scorer="pagerank")
    (_, rule) = rules_of(both).values()
    assert isinstance(rule, KeepThresholdRule)
    assert rule.scorer == PageRankScorer()
    assert rule.share == pytest.approx(0.5, abs=0.04)
    trained = Distill.model_validate({**QUICK, **SCORES, "epochs": 1})
    assert rules_of(applied(trained, both, data)) == rules_of(both)
