"""sparsify: exact counts in every pattern, zeros that stay, errors made up for, and what makes no sense refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.algorithms import weight_gradients
from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.sparsify import Sparsify
from compressor.ranker.sparsity import densified, prunable_linears, sparse_linears
from tests import tiny
from tests.passes.students import QUICK, applied, distilled, score_rmse
from tests.ranker.cases import SPECS

ONE_SHOT = ("magnitude", "wanda", "sparsegpt", "fisher_diagonal", "obert")
BY_MATRIX = {"scope": "per_matrix"}


def step_of(**settings: Any) -> Sparsify:
    return Sparsify.model_validate(settings)


def matrices(ranker) -> dict[str, torch.Tensor]:
    return {name: ranker.weights[f"{name}.weight"] for name in prunable_linears(ranker.spec)}


@pytest.fixture(scope="module")
def whole():
    return tiny.build_ranker(seed=3)


@pytest.mark.parametrize("method", ONE_SHOT)
@pytest.mark.parametrize("sparsity", [0.3, 0.75])
def test_the_share_of_zeros_is_met_in_every_matrix(whole, tiny_data, method, sparsity):
    scope = {} if method == "wanda" else BY_MATRIX
    sparse = applied(step_of(method=method, sparsity=sparsity, **scope), whole, tiny_data)
    for name, weight in matrices(sparse).items():
        count = weight.shape[0] * round(sparsity * weight.shape[1]) if method == "wanda" else sparsity * weight.numel()
        assert int((weight == 0).sum()) == round(count), name
    untouched = {name for name in whole.weights if torch.equal(whole.weights[name], sparse.weights[name])}
    assert untouched == set(whole.weights) - {f"{name}.weight" for name in matrices(whole)}
    assert sparse_linears(sparse.spec).keys() == matrices(whole).keys()
    assert densified(sparse.spec) == whole.spec


@pytest.mark.parametrize("method", ONE_SHOT)
def test_blocks_go_as_a_whole(whole, tiny_data, method):
    sparse = applied(step_of(method=method, sparsity=0.5, pattern="block_4", **BY_MATRIX), whole, tiny_data)
    for name, weight in matrices(sparse).items():
        zeros = (weight == 0).unflatten(1, (-1, 4)).sum(dim=2)
        assert set(zeros.unique().tolist()) == {0, 4}, name
        assert int((zeros == 4).sum()) == zeros.numel() // 2


@pytest.mark.parametrize("method", ONE_SHOT)
@pytest.mark.parametrize(("pattern", "kept", "size"), [("2:4", 2, 4), ("1:8", 1, 8)])
def test_n_of_m_stay_in_every_group(whole, tiny_data, method, pattern, kept, size):
    sparse = applied(step_of(method=method, pattern=pattern), whole, tiny_data)
    for weight in matrices(sparse).values():
        assert ((weight != 0).unflatten(1, (-1, size)).sum(dim=2) == kept).all()


def test_magnitude_keeps_the_largest_everywhere(whole):
    sparse = applied(step_of(method="magnitude", sparsity=0.6, scope="global"), whole)
    sizes = torch.cat([weight.abs().flatten() for weight in matrices(whole).values()])
    limit = sizes.sort().values[round(0.6 * len(sizes)) - 1]
    for name, weight in matrices(whole).items():
        torch.testing.assert_close(matrices(sparse)[name], weight * (weight.abs() > limit), rtol=0, atol=0)
    rows = applied(step_of(method="magnitude", sparsity=0.5, scope="per_row"), whole)
    for weight in matrices(rows).values():
        assert ((weight == 0).sum(dim=1) == weight.shape[1] // 2).all()


@pytest.mark.parametrize("name", ["bert", "modernbert", "gated_silu", "low_rank"])
@pytest.mark.parametrize("method", ONE_SHOT)
def test_more_zeros_keep_those_that_are_there(name, method, tiny_data):
    ranker = tiny.build_ranker(SPECS[name], seed=2)
    if not prunable_linears(ranker.spec):
        with pytest.raises(PlanError, match="no matrix to prune"):
            step_of(method=method, sparsity=0.5).plan(ranker.spec)
        return
    some = applied(step_of(method="magnitude", sparsity=0.25), ranker, tiny_data)
    more = applied(step_of(method=method, sparsity=0.5), some, tiny_data)
    assert not any((matrices(more)[name][weight == 0] != 0).any() for name, weight in matrices(some).items())
    counts = [sum(int((one == 0).sum()) for one in matrices(each).values()) for each in (some, more)]
    # Wanda asks for zeros in every row, and rows that have more already keep them.
    assert counts[1] >= 2 * counts[0] if method == "wanda" else counts[1] == 2 * counts[0]


def test_what_reads_nothing_goes_first(whole, tiny_data):
    """Columns that read zeros are worth nothing to methods that look at activations, however large they are."""
    weights = dict(whole.weights)
    weights["layers.0.ffn.up.weight"] = torch.zeros(32, 16)
    weights["layers.0.ffn.up.bias"] = torch.tensor([0.0] * 16 + [1.0] * 16)  # gelu(0) is 0
    weights["layers.0.ffn.down.weight"] = whole.weights["layers.0.ffn.down.weight"].clone()
    weights["layers.0.ffn.down.weight"][:, :16] = 9.0
    idle = whole.changed(weights=weights)
    for method in ("wanda", "sparsegpt"):
        down = applied(step_of(method=method, sparsity=0.5), idle, tiny_data).weights["layers.0.ffn.down.weight"]
        assert (down[:, :16] == 0).all()


def test_making_up_brings_scores_nearer(whole, tiny_data):
    sparse = {method: applied(step_of(method=method, sparsity=0.5), whole, tiny_data) for method in ONE_SHOT}
    loss = {method: score_rmse(one, whole, tiny_data) for method, one in sparse.items()}
    assert loss["sparsegpt"] < loss["wanda"]
    assert loss["sparsegpt"] < loss["magnitude"]
    assert loss["obert"] < loss["fisher_diagonal"]


@pytest.mark.parametrize("method", ["fisher_diagonal", "obert"])
def test_short_memory_finds_the_same_weights(whole, tiny_data, method, monkeypatch):
    found = []
    for memory in (2**34, 0, None):
        monkeypatch.setattr(weight_gradients, "memory_bytes", lambda memory=memory: memory)
        found.append(applied(step_of(method=method, sparsity=0.6), whole, tiny_data))
    for name, weight in found[0].weights.items():
        for one in found[1:]:  # products round by where operands lie in memory; curvature is solved for behind them
            torch.testing.assert_close(one.weights[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["magnitude", "fisher_diagonal", "obert"])
def test_a_global_choice_meets_the_share_over_all(whole, tiny_data, method):
    notes: dict[str, Any] = {}
    sparse = applied(step_of(method=method, sparsity=0.8, scope="global"), whole, tiny_data, notes)
    total = sum(weight.numel() for weight in matrices(sparse).values())
    assert sum(int((weight == 0).sum()) for weight in matrices(sparse).values()) == round(0.8 * total)
    assert notes["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert notes["prunable_weights"] == total == 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert len(set(notes["sparsity_by_matrix"].values())) > 1


def test_recomputations_count_the_same_and_help(whole, tiny_data):
    loss = []
    for n_times in (1, 4):
        step = step_of(method="obert", sparsity=0.75, fisher={"recomputations": n_times})
        sparse = applied(step, whole, tiny_data)
        assert sum(int((weight == 0).sum()) for weight in matrices(sparse).values()) == 3072
        loss.append(score_rmse(sparse, whole, tiny_data))
    assert loss[1] < loss[0]


def test_zeros_stay_under_training_and_are_promised(whole, tiny_data):
    step = step_of(method="magnitude", sparsity=0.7)
    sparse = applied(step, whole)
    trained = distilled(sparse, whole, tiny_data, weight_decay=0.1, ema=0.9, epochs=4)
    [promise] = step.promises(sparse)
    assert promise.check(trained) is None
    for name, weight in matrices(sparse).items():
        assert torch.equal(matrices(trained)[name] == 0, weight == 0)
        assert not torch.equal(matrices(trained)[name], weight)
    assert score_rmse(trained, whole, tiny_data) < score_rmse(sparse, whole, tiny_data)
    loose = Distill.model_validate(QUICK)
    filled = applied(loose, sparse.changed(spec=densified(sparse.spec)), tiny_data)
    assert "of another form" in str(promise.check(filled))
    assert "zeros of" in str(promise.check(filled.changed(spec=sparse.spec)))


def test_masked_equals_sparse(whole, tiny_data):
    """The sparse ranker is the whole one under hooks that take the small weights out of every product."""
    sparse = applied(step_of(method="magnitude", sparsity=0.5), whole)
    module, pairs, hooks = whole.trainable().eval(), tiny_data.texts(tiny_data.pairs()), []
    for name, weight in matrices(whole).items():
        small = weight * (weight.abs() <= weight.abs().median())

        def without(_: object, inputs: Any, result: torch.Tensor, small: torch.Tensor = small) -> torch.Tensor:
            return result - inputs[0] @ small.T

        hooks.append(module.get_submodule(name).register_forward_hook(without))
    encoded = whole.tokenizer.encode_pairs(pairs)
    from compressor.runtime.batching import padded

    inputs = padded(encoded, np.arange(len(pairs)), whole.spec.pad_id)
    with torch.inference_mode():
        scores = module(**{key: torch.from_numpy(value) for key, value in inputs.items()})[:, 0]
    np.testing.assert_allclose(sparse.score(pairs), scores, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "found", "setting"),
    [
        ({}, "no sparsity", "sparsity"),
        ({"sparsity": 0.8, "pattern": "2:4"}, "which is a sparsity of 0.5", "sparsity"),
        ({"pattern": "2:4", "scope": "per_row"}, "a scope with pattern 2:4", "scope"),
        ({"sparsity": 0.5, "method": "sparsegpt", "scope": "global"}, "made within matrices", "scope"),
        ({"sparsity": 0.5, "pattern": "block_5"}, "does not divide", "pattern"),
        ({"sparsity": 0.5, "method": "wanda", "fisher": {"damping": 1}}, "does not use them", "fisher"),
        (
            {"pattern": "2:4", "method": "obert", "fisher": {"block_size": 50}},
            "which crosses them",
            "fisher.block_size",
        ),
    ],
)
def test_what_cannot_be_is_refused(whole, settings, found, setting):
    with pytest.raises(PlanError, match=found) as caught:
        step_of(**settings).plan(whole.spec)
    assert caught.value.setting == setting


@pytest.mark.parametrize("settings", [{"pattern": "4:2"}, {"pattern": "3:99"}, {"pattern": "rows"}, {"sparsity": 1}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=r"pattern|less than 1"):
        step_of(**settings)
