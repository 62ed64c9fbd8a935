"""factorize: planted ranks are found, budgets kept to the weight, what cannot pay stays or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compressor.algorithms.calibration import calibration_batches
from compressor.algorithms.folding import measure_inputs
from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.factorize import Factorize
from compressor.passes.rank_budget import break_even
from compressor.ranker.cost import linear_weights, macs, parameters
from compressor.ranker.forms import layer_linears
from compressor.ranker.spec import LinearSpec, LowRankForm
from tests import tiny
from tests.passes.students import applied, score_rmse, supply_for
from tests.ranker.cases import SPECS

METHODS = ("activation", "fisher", "svd")


def step_of(**settings: Any) -> Factorize:
    return Factorize.model_validate({"n_pairs": 48, "round_to": 1, **settings})


@pytest.fixture(scope="module")
def whole():
    """A ranker of two layers, width 16 and 32 neurons."""
    return tiny.build_ranker(seed=3)


@pytest.fixture(scope="module")
def planted(whole):
    """The same, with matrices of rank 2 to 6."""
    weights = dict(whole.weights)
    ranks = {name: 2 + place % 5 for place, name in enumerate(layer_linears(whole.spec))}
    for name, rank in ranks.items():
        left, values, right = torch.linalg.svd(weights[f"{name}.weight"], full_matrices=False)
        weights[f"{name}.weight"] = left[:, :rank] * values[:rank] @ right[:rank]
    return whole.changed(weights=weights), ranks


def layer_weights(spec: Any) -> int:
    return sum(map(linear_weights, layer_linears(spec).values()))


@pytest.mark.parametrize("method", METHODS)
def test_planted_ranks_are_found(planted, tiny_data, method):
    ranker, ranks = planted
    linears = layer_linears(ranker.spec)
    needed = sum(ranks[name] * (one.inputs + one.outputs) for name, one in linears.items())
    notes: dict[str, Any] = {}
    step = step_of(budget={"parameters": (needed + 1) / layer_weights(ranker.spec)}, method=method, compensate="none")
    found = applied(step, ranker, tiny_data, notes)
    assert notes["ranks"] == ranks
    assert notes["dense"] == []
    assert score_rmse(found, ranker, tiny_data) < 1e-4


@pytest.mark.parametrize(("kind", "share"), [("macs", 0.75), ("macs", 0.9), ("parameters", 0.3), ("parameters", 0.7)])
def test_a_budget_is_kept_and_used(whole, tiny_data, kind, share):
    notes: dict[str, Any] = {}
    small = applied(step_of(budget={kind: share}), whole, tiny_data, notes)
    if kind == "macs":
        found = macs(small.spec, notes["mean_tokens"]) / macs(whole.spec, notes["mean_tokens"])
    else:
        kept = [t for name, t in small.weights.items() if name.startswith("layers.") and "norm" not in name]
        n_kept = sum(tensor.numel() for tensor in kept if tensor.dim() == 2)
        found = n_kept / layer_weights(whole.spec)
    assert found == pytest.approx(notes["kept_share"], abs=1e-4)
    assert share - 0.02 < found <= share
    assert parameters(small.spec) == sum(tensor.numel() for tensor in small.weights.values())
    assert parameters(small.spec) < parameters(whole.spec)


def test_ranks_are_not_uniform_and_a_linear_that_matters_stays_whole(whole, tiny_data):
    notes: dict[str, Any] = {}
    applied(step_of(budget={"macs": 0.8}), whole, tiny_data, notes)
    assert len(set(notes["ranks"].values())) > 2
    assert notes["dense"]


def test_a_linear_whose_factors_would_be_no_smaller_stays(whole, tiny_data):
    notes: dict[str, Any] = {}
    found = applied(step_of(rank=9), whole, tiny_data, notes)
    assert set(notes["ranks"]) == {f"layers.{i}.ffn.{name}" for i in range(2) for name in ("up", "down")}
    assert parameters(found.spec) < parameters(whole.spec)


def test_a_rank_that_pays_nowhere_is_refused_with_the_ranks_that_do(whole):
    with pytest.raises(PlanError, match="as large as the matrices") as caught:
        step_of(rank=11).plan(whole.spec)
    assert caught.value.allowed == "up to 7 for 16 × 16, 10 for 16 × 32, 10 for 32 × 16"
    assert caught.value.setting == "rank"


@pytest.mark.parametrize(("inputs", "outputs"), [(384, 384), (384, 1536), (5, 3), (2, 2), (768, 3072)])
def test_break_even_is_the_last_rank_with_fewer_weights(inputs, outputs):
    linear = LinearSpec(inputs=inputs, outputs=outputs)
    rank = break_even(linear)
    assert rank * (inputs + outputs) < inputs * outputs <= (rank + 1) * (inputs + outputs)


def test_activations_tell_more_than_weights(whole, tiny_data):
    by = {
        method: applied(step_of(rank=5, method=method, compensate="none"), whole, tiny_data)
        for method in ("activation", "svd")
    }
    batches = calibration_batches(whole, tiny_data.texts(tiny_data.sample_pairs(48, 12, 8)))
    inputs = measure_inputs(whole.module, batches)
    for name in layer_linears(whole.spec):
        second = inputs[name].second(centered=True)
        lost = {
            method: whole.weights[f"{name}.weight"] - one.weights[f"{name}.up"] @ one.weights[f"{name}.down"]
            for method, one in by.items()
        }
        errors = {method: float((one.double() @ second * one.double()).sum()) for method, one in lost.items()}
        assert errors["activation"] < errors["svd"], name
    assert score_rmse(by["activation"], whole, tiny_data) < score_rmse(by["svd"], whole, tiny_data)


def test_what_is_lost_keeps_its_mean(whole, tiny_data):
    thin = applied(step_of(rank=3, linears=["layers.0.attention.key"], compensate="none"), whole, tiny_data)
    batches = calibration_batches(whole, tiny_data.texts(tiny_data.sample_pairs(48, 12, 8)))
    read = torch.cat([batch.embedded for batch in batches])
    means = [one.module.get_submodule("layers.0.attention.key")(read).mean(dim=0) for one in (whole, thin)]
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-5)


def test_refitting_brings_scores_nearer(whole, tiny_data):
    rmse = {
        how: score_rmse(
            applied(step_of(budget={"parameters": 0.5}, compensate=how), whole, tiny_data), whole, tiny_data
        )
        for how in ("refit", "none")
    }
    assert rmse["refit"] < 0.8 * rmse["none"]


@pytest.mark.parametrize(
    ("linears", "expected"),
    [
        ("ffn", {f"layers.{i}.ffn.{name}" for i in range(2) for name in ("up", "down")}),
        ("attention", {f"layers.{i}.attention.{n}" for i in range(2) for n in ("query", "key", "value", "output")}),
        (["layers.*.up", "layers.1.attention.o*"], {"layers.0.ffn.up", "layers.1.ffn.up", "layers.1.attention.output"}),
    ],
)  # fmt: skip
def test_the_named_linears_alone_change(whole, tiny_data, linears, expected):
    found = applied(step_of(rank=4, linears=linears), whole, tiny_data)
    thin = {name for name, one in layer_linears(found.spec).items() if isinstance(one.form, LowRankForm)}
    assert thin == expected


@pytest.mark.parametrize("name", ["modernbert", "similarity_mean", "linear_maps", "exits", "without_blocks"])
def test_every_family_can_be_factorized(name, tiny_data):
    ranker = tiny.build_ranker(SPECS[name], seed=1)
    small = applied(step_of(budget={"parameters": 0.8}), ranker, tiny_data)
    assert layer_weights(small.spec) <= 0.8 * layer_weights(ranker.spec)
    assert score_rmse(small, ranker, tiny_data) < 2.0


@pytest.mark.parametrize(
    ("settings", "found", "setting"),
    [
        ({"budget": {"macs": 0.01}}, "less than what is left at rank 1", "budget"),
        ({"budget": {"macs": 0.5}, "round_to": 16}, "rank 16, at which factors", "round_to"),
        ({"budget": {"latency": 0.5}}, "a budget in latency", "budget"),
        ({"rank": 4, "linears": ["layers.*.ffn.middle"]}, "names no linear", "linears"),
        ({"rank": 4, "linears": ["head.*"]}, "names no linear", "linears"),
    ],
)
def test_what_cannot_be_is_refused(whole, settings, found, setting):
    with pytest.raises(PlanError, match=found) as caught:
        step_of(**settings).plan(whole.spec)
    assert caught.value.setting == setting


def test_what_is_factorized_is_refused():
    with pytest.raises(PlanError, match="all of them factorized already"):
        step_of(rank=2).plan(SPECS["low_rank"])


def test_a_bi_encoder_has_no_scores_to_weigh_by():
    with pytest.raises(PlanError, match="bi-encoder"):
        step_of(rank=2, method="fisher").plan(SPECS["similarity_mean"])


@pytest.mark.parametrize("settings", [{}, {"rank": 3, "budget": {"macs": 0.5}}])
def test_one_of_budget_and_rank_is_named(settings):
    with pytest.raises(ValueError, match="name a budget, or a rank"):
        step_of(**settings)


def test_a_budget_that_only_the_texts_show_to_be_too_small_is_refused(whole, tiny_data):
    step = step_of(budget={"macs": 0.01})
    with pytest.raises(InputError, match="less than what is left at rank 1"):
        step.apply(whole, supply_for(step, tiny_data, whole))
