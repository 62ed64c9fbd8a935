"""linearize_layers: a map is exact where a layer is linear, near where it nearly is, and no pass mistakes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compressor.algorithms.importance import score_change
from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.linearize_layers import LinearizeLayers
from compressor.passes.prune_greedily import PruneGreedily
from compressor.passes.prune_widths import PruneWidths
from compressor.passes.quantize import Quantize
from compressor.passes.subclone import Subclone
from compressor.ranker.cost import macs, parameters
from compressor.ranker.spec import DenseForm, LinearMapSpec
from tests import tiny
from tests.laws.masked import without_layers
from tests.passes.students import applied, distilled, score_rmse
from tests.ranker.cases import SPECS

PLACEMENTS = ("post", "pre")
LINEAR = 1


@pytest.fixture(scope="module", params=PLACEMENTS)
def whole(request):
    """A ranker of four layers."""
    layer = tiny.tiny_layer().changed(norm_placement=request.param)
    return tiny.build_ranker(tiny.tiny_spec(layers=(layer,) * 4), seed=3)


@pytest.fixture(scope="module")
def planted(whole):
    """The same, but one layer's attention adds nothing, and its neurons are all in the linear part of their ReLU."""
    layer = whole.spec.layers[0]
    linear = layer.changed(ffn=layer.ffn.changed(activation="relu"))
    spec = whole.spec.changed(layers=tuple(linear if i == LINEAR else layer for i in range(4)))
    weights = dict(whole.weights)
    weights[f"layers.{LINEAR}.attention.output.weight"] = torch.zeros(16, 16)
    weights[f"layers.{LINEAR}.attention.output.bias"] = torch.zeros(16)
    weights[f"layers.{LINEAR}.ffn.up.bias"] = torch.full((32,), 20.0)
    weights[f"layers.{LINEAR}.ffn.down.bias"] = -20 * weights[f"layers.{LINEAR}.ffn.down.weight"].sum(dim=1)
    if layer.norm_placement == "post":  # a norm of what is normed already is nothing only without gain and bias
        for norm in (f"layers.{LINEAR - 1}.ffn_norm", f"layers.{LINEAR}.attention_norm"):
            weights |= {f"{norm}.weight": torch.ones(16), f"{norm}.bias": torch.zeros(16)}
    return whole.changed(spec=spec, weights=weights)


@pytest.mark.parametrize("how", [{"replace": [LINEAR]}, {"replace": {"layers": 1}}], ids=["listed", "chosen"])
def test_a_linear_layer_is_found_and_replaced_without_loss(planted, tiny_data, how):
    notes: dict[str, Any] = {}
    fitted = applied(LinearizeLayers(**how, compensate="none"), planted, tiny_data, notes)
    assert notes["linearized"] == [LINEAR]
    found = {row["layer"]: row for row in notes["layers"]}
    assert found[LINEAR]["missed_by_map"] < 0.002
    assert found[LINEAR]["linearity"] > 0.99
    assert all(row["missed_by_map"] > 0.1 for layer, row in found.items() if layer != LINEAR)
    spread = planted.score(tiny_data.texts(tiny_data.pairs())).std()
    assert score_rmse(fitted, planted, tiny_data) < 0.05 * spread  # a ridge on 48 pairs is not nothing
    kept = {name for name in planted.weights if not name.startswith(f"layers.{LINEAR}.")}
    assert all(torch.equal(fitted.weights[name], planted.weights[name]) for name in kept)


def test_both_ways_of_choosing_find_it(planted, tiny_data):
    notes: dict[str, Any] = {}
    for by in ("scores", "linearity"):
        applied(LinearizeLayers(replace={"layers": 2, "by": by}), planted, tiny_data, notes)
        assert LINEAR in notes["linearized"]
        assert len(notes["linearized"]) == 2
    assert [len(step["score_change"]) for step in notes["choices"]] == [4, 3]


@pytest.mark.parametrize("replace", [(1,), (1, 2)], ids=str)
def test_refitting_what_stands_behind_brings_scores_nearer(whole, tiny_data, replace):
    apart, fitted = (
        applied(LinearizeLayers(replace=replace, compensate=how), whole, tiny_data) for how in ("none", "refit")
    )
    assert fitted.spec == apart.spec
    assert score_rmse(fitted, whole, tiny_data) < 0.9 * score_rmse(apart, whole, tiny_data)
    before = [name for name in whole.weights if name.startswith(("embeddings.", "layers.0.", "head."))]
    assert all(torch.equal(fitted.weights[name], whole.weights[name]) for name in before)


def test_a_map_misses_less_than_leaving_the_layer_out(whole, tiny_data):
    notes: dict[str, Any] = {}
    applied(LinearizeLayers(replace=[2]), whole, tiny_data, notes)
    assert [row["layer"] for row in notes["layers"]] == [0, 1, 2, 3]
    for row in notes["layers"]:
        assert 0 <= row["missed_by_map"] < row["missed_by_removal"]
        assert row["missed_by_removal"] >= 1
    # What leaving out does, once more by another way, on the queries that no map was fitted on.
    pairs = tiny_data.texts(tiny_data.sample_pairs(256, 12, 8))
    aside = list(dict.fromkeys(query for query, _ in pairs))[::4]
    pairs = [pair for pair in pairs if pair[0] in aside]
    change = score_change(without_layers(2)(whole, pairs), whole.score(pairs), [query for query, _ in pairs])
    assert notes["layers"][2]["score_change_of_removal"] == pytest.approx(change, rel=1e-3)
    assert notes["score_change"]["of_removal"] == pytest.approx(change, rel=1e-3)
    assert notes["score_change"]["of_maps"] == notes["layers"][2]["score_change_of_map"]


def test_cost_falls_by_the_layer_less_the_map(whole, tiny_data):
    step = LinearizeLayers(replace=[0])
    fitted = applied(step, whole, tiny_data)
    assert fitted.spec == step.plan(whole.spec)
    layer = 4 * (16 * 16 + 16) + (32 * 16 + 32) + (16 * 32 + 16) + 2 * 2 * 16
    assert parameters(whole.spec) - parameters(fitted.spec) == layer - (16 * 16 + 16 + 2 * 16)
    assert parameters(fitted.spec) == sum(tensor.numel() for tensor in fitted.weights.values())
    per_token = 4 * 16 * 16 + 2 * 16 * 32 + 2 * 16 * 10
    assert macs(whole.spec, 10) - macs(fitted.spec, 10) == 10 * (per_token - 16 * 16)


def test_a_pre_norm_map_reads_what_the_first_block_read():
    spec = SPECS["modernbert"]
    first, second = LinearizeLayers(replace=[0, 1], compensate="none").plan(spec).layers[:2]
    assert (first.attention, first.attention_norm, first.ffn_norm) == (None, None, None)  # embeddings are normed
    assert second.ffn_norm == spec.layers[1].attention_norm
    assert isinstance(second.ffn, LinearMapSpec)


@pytest.mark.parametrize("name", SPECS)
def test_layers_of_every_kind_are_replaced(name, tiny_data):
    spec = SPECS[name]
    layer = next(layer for layer in reversed(spec.layers) if layer.attention and layer.ffn_width)
    whole = tiny.build_ranker(spec.changed(layers=(layer.changed(exit=None),) * 3), seed=5)
    step = LinearizeLayers(replace=[1])
    assert layer.attention
    if isinstance(layer.attention.output.form, DenseForm):
        notes: dict[str, Any] = {}
        fitted = applied(step, whole, tiny_data, notes)
        assert score_rmse(fitted, whole, tiny_data) > 0
        assert all(row["missed_by_map"] < row["missed_by_removal"] for row in notes["layers"])
    else:
        with pytest.raises(PlanError, match="factorized") as caught:
            step.plan(whole.spec)
        assert caught.value.setting == "compensate"
        applied(step.changed(compensate="none"), whole, tiny_data)


def test_exits_stay_where_they_are(tiny_data):
    spec = SPECS["exits"]
    whole = tiny.build_ranker(spec, seed=5)
    fitted = applied(LinearizeLayers(replace=[0, 1], compensate="none"), whole, tiny_data)
    assert [layer.exit for layer in fitted.spec.layers] == [layer.exit for layer in spec.layers]
    exits = [name for name in whole.weights if ".exit." in name]
    assert all(torch.equal(fitted.weights[name], whole.weights[name]) for name in exits)


def test_one_query_alone_is_measured_on_itself(whole, tiny_data):
    from dataclasses import replace

    query = next(iter(tiny_data.candidates))
    alone = replace(tiny_data, candidates={query: tiny_data.candidates[query]})
    fitted = applied(LinearizeLayers(replace=[1]), whole, alone)
    assert np.isfinite(fitted.score(alone.texts(alone.pairs()))).all()


@pytest.fixture(scope="module")
def linear(whole, tiny_data):
    return applied(LinearizeLayers(replace=[1]), whole, tiny_data)


@pytest.mark.parametrize(
    "step",
    [
        PruneWidths(budget={"macs": 0.6}, round_to=4),
        PruneWidths(budget={"macs": 0.6}, round_to=4, importance="fisher", compensate="rescale"),
        PruneGreedily(max_divergence=0.01, n_lists=4, neuron_group=8),
        Quantize(scheme="int8_dynamic"),
        Subclone(ffn_width=8, heads=1),
        Subclone(ffn_width=8, heads=1, weights="subcloned"),
    ],
    ids=lambda step: step.verb,
)
def test_passes_that_cut_neurons_leave_maps_whole(linear, tiny_data, step):
    cut = applied(step, linear, tiny_data)
    found = cut.spec.layers[1].ffn
    assert isinstance(found, LinearMapSpec)
    assert (found.down.inputs, found.down.outputs) == (16, 16)
    assert np.isfinite(cut.score(tiny_data.texts(tiny_data.pairs()))).all()


@pytest.mark.parametrize("weights", ["folded", "subcloned"])
def test_a_narrower_ranker_has_narrower_maps(linear, tiny_data, weights):
    whole = Subclone(width=16, weights=weights)
    narrow = Subclone(width=12, weights=weights)
    assert score_rmse(applied(whole, linear, tiny_data), linear, tiny_data) == 0
    cut = applied(narrow, linear, tiny_data)
    assert cut.weights["layers.1.ffn.down.weight"].shape == (12, 12)
    if weights == "folded":
        assert score_rmse(cut, linear, tiny_data) < score_rmse(
            applied(Subclone(width=6), linear, tiny_data), linear, tiny_data
        )


def test_relations_are_learned_where_there_is_attention(whole, linear, tiny_data):
    seen: list[Any] = []
    quick: dict[str, Any] = {"epochs": 1, "representations": {"relations": {"layers": "kept"}}}
    distilled(linear, whole, tiny_data, on_supply=lambda supply: seen.append(supply.notes["layer_maps"]), **quick)
    assert {int(own) for own in seen[0]["relations"]} == {0, 2, 3}
    quick["representations"] = {"relations": {"layers": {1: 1}}}
    with pytest.raises(InputError, match="layer 1 of the ranker, which has no attention"):
        distilled(linear, whole, tiny_data, **quick)


@pytest.mark.parametrize(
    ("replace", "found", "setting"),
    [
        ((2, 1), r"\[2, 1\] for a ranker of 4 layers", "replace"),
        ((1, 1), r"\[1, 1\] for a ranker of 4 layers", "replace"),
        ((1, 4), r"\[1, 4\] for a ranker of 4 layers", "replace"),
        ({"layers": 5}, "5 layers to replace, of a ranker with 4 that could be", "replace.layers"),
    ],
    ids=str,
)
def test_layers_that_are_not_there_are_refused(whole, replace, found, setting):
    with pytest.raises(PlanError, match=found) as caught:
        LinearizeLayers(replace=replace).plan(whole.spec)
    assert caught.value.setting == setting


def test_a_layer_that_is_cheaper_than_a_map_is_refused(linear, tiny_data):
    with pytest.raises(PlanError, match="layer 1, which has no more parameters than a map") as caught:
        LinearizeLayers(replace=[1]).plan(linear.spec)
    assert caught.value.allowed == "layers that cost more than a map does: 0, 2, 3"
    notes: dict[str, Any] = {}
    applied(LinearizeLayers(replace={"layers": 3}), linear, tiny_data, notes)
    assert notes["linearized"] == [0, 2, 3]


@pytest.mark.parametrize("settings", [{}, {"replace": [-1]}, {"replace": {"layers": 0}}, {"replace": "every_other"}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        LinearizeLayers.model_validate(settings)
