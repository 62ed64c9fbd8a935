"""keep_tokens with a learned scorer: it foresees the last attention, reads nothing else, and stays what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.fold_norms import FoldNorms
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.pool_tokens import PoolTokens
from compressor.ranker.cost import macs, parameters
from compressor.ranker.spec import KeepShareRule, LearnedScorer
from compressor.ranker.sub_network import SubNetwork, running
from tests import tiny
from tests.laws.cases import pre_norm
from tests.passes.students import QUICK, applied, supply_for, unlabelled

STEP = KeepTokens(layers={1: 0.5}, scorer="learned")


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


@pytest.fixture(scope="module")
def learned(ranker, data):
    return applied(STEP, ranker, data)


def looked_at(ranker, pairs, layer):
    """Return which share of what the last layer's first token pays to a whole document goes to tokens that stay."""
    attention: Any = ranker.module.layers[-1].attention
    found = []
    for pair in pairs:
        encoded = ranker.tokenizer.encode_pairs([pair])
        ids, types = (torch.from_numpy(one[0])[None] for one in (encoded.input_ids, encoded.type_ids))
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            with running(ranker.module, SubNetwork(token_rules={layer: None})):
                states = ranker.module.trace(ids, mask, types).states[-2]
            query, key = (part(states).unflatten(1, (tiny.HEADS, -1)) for part in (attention.query, attention.key))
            paid = (torch.einsum("hd,khd->hk", query[0], key) * query.shape[2] ** -0.5).softmax(1).mean(0)
            kept = ranker.module.trace(ids, mask, types).reductions[layer].kept
        separators = (ids[0] == ranker.spec.separator_id).nonzero()[:, 0]
        document = torch.zeros(ids.shape[1], dtype=torch.bool)
        document[int(separators[0]) + 1 : int(separators[-1])] = True
        stays = torch.zeros_like(document).index_fill(0, kept, True)
        found.append((paid[document & stays].sum() / paid[document].sum()).item())
    return np.mean(found)


def test_what_stays_is_what_the_last_layer_looks_at(ranker, learned, data):
    notes: dict[str, Any] = {}
    assert applied(STEP, ranker, data, notes).fingerprint == learned.fingerprint
    assert learned.spec.layers[1].token_rule == KeepShareRule(share=0.5, scorer=LearnedScorer())
    assert 0.2 < notes["explained"]["1"] < 1
    pairs = data.texts(data.pairs())[::3]
    turned = {name: -one if ".token_rule." in name else one for name, one in learned.weights.items()}
    best, worst = looked_at(learned, pairs, 1), looked_at(learned.changed(weights=turned), pairs, 1)
    assert best > looked_at(applied(KeepTokens(layers={1: 0.5}), ranker), pairs, 1)
    assert best > worst + 0.15


def test_each_is_fitted_with_those_before_it_at_work(ranker, data):
    both = applied(KeepTokens(layers={0: 0.6, 2: 0.5}, scorer="learned"), ranker, data)
    one = applied(KeepTokens(layers={0: 0.6}, scorer="learned"), ranker, data)
    other = applied(KeepTokens(layers={2: 0.5}, scorer="learned"), ranker, data)
    scorer = "layers.{}.token_rule.scorer.direction"
    assert torch.equal(both.weights[scorer.format(0)], one.weights[scorer.format(0)])
    assert not torch.allclose(both.weights[scorer.format(2)], other.weights[scorer.format(2)], atol=1e-4)
    again = applied(KeepTokens(layers={2: 0.5}, scorer="learned"), one, data)
    assert again.fingerprint == both.fingerprint


def test_a_pool_before_it_is_heeded(ranker, data):
    both = applied(STEP, applied(PoolTokens(layer=0), ranker), data)
    assert both.spec.rule_layers == (0, 1)
    assert np.isfinite(both.score(data.texts(data.pairs()))).all()


def test_it_costs_two_vectors_and_no_attention(ranker, learned):
    assert parameters(learned.spec) == parameters(ranker.spec) + 2 * tiny.WIDTH
    by_attention = applied(KeepTokens(layers={1: 0.5}), ranker)
    assert macs(learned.spec, 30) - macs(by_attention.spec, 30) == (30 + 9) * tiny.WIDTH - 9 * 30


def test_training_leaves_the_scorer_as_it_is(ranker, learned, data):
    settings = {**QUICK, "epochs": 1, "weight_decay": 0.1, "token_rules": {"shares": [1, 0.5]}}
    step = Distill.model_validate(settings)
    trained = step.apply(learned, supply_for(step, data, ranker))
    still = {name for name, one in trained.weights.items() if torch.equal(one, learned.weights[name])}
    assert {"layers.1.token_rule.scorer.direction", "layers.1.token_rule.scorer.match"} <= still
    assert "layers.1.attention.key.weight" not in still


def test_states_without_their_means_are_judged_alike(tiny_data):
    whole = applied(KeepTokens(layers={0: 0.5}, scorer="learned"), pre_norm(), tiny_data)
    folded = applied(FoldNorms(), whole)
    pairs = tiny_data.texts(tiny_data.pairs())
    np.testing.assert_allclose(folded.score(pairs), whole.score(pairs), atol=1e-4, rtol=0)


def test_what_makes_no_sense_is_refused():
    blind = tiny.tiny_spec(layers=(tiny.tiny_layer(), tiny.tiny_layer(attention=None)))
    with pytest.raises(PlanError, match="above which no layer has an attention") as refused:
        KeepTokens(layers={0: 0.5}, scorer="learned").plan(blind)
    assert refused.value.setting == "layers"
    without = tiny.tiny_spec(layers=(tiny.tiny_layer(attention=None), tiny.tiny_layer()))
    assert KeepTokens(layers={0: 0.5}, scorer="learned").plan(without).rule_layers == (0,)
    assert KeepTokens(layers={0: 1}, scorer="learned").needs() == KeepTokens().needs() == set()
    assert STEP.needs() == {"calibration"}
