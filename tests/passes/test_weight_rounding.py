"""quantize with rounding: gptq and awq: scores move less, and what is exported is what was chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError

from compressor.algorithms.calibration import calibration_batches
from compressor.algorithms.layer_by_layer import Read, changed_layer_by_layer
from compressor.export import write_graph
from compressor.export.rounding import packed_blocks
from compressor.passes import PlanError
from compressor.passes.quantize import Quantize
from compressor.passes.sparsify import Sparsify
from compressor.ranker.cost import linears_of
from compressor.ranker.quantizers import rounded_weight, weight_blocks
from compressor.ranker.spec import DenseSparseForm, Int4Blocks, Int8Dynamic
from tests import tiny
from tests.passes.students import applied, score_rmse
from tests.ranker.cases import SPECS, of_layers

HOW = [("int4_blocks", "gptq"), ("int4_blocks", "awq"), ("int8_static", "gptq")]


@pytest.mark.parametrize(("scheme", "rounding"), HOW)
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_scores_move_less_than_by_rounding_to_the_nearest(name, scheme, rounding, tiny_data):
    ranker = tiny.build_ranker(SPECS[name])

    def error(notes: dict[str, Any], **settings: Any) -> float:
        step = Quantize(scheme=scheme, embeddings=False, **settings)
        return score_rmse(applied(step, ranker, tiny_data, notes), ranker, tiny_data)

    notes: dict[str, Any] = {}
    assert error(notes, rounding=rounding) < 0.9 * error({})
    assert set(notes["output_errors"]) == {
        f"{one}.weight" for one, _ in linears_of(ranker.spec) if one.startswith("layers.")
    }
    before, after = np.array(list(notes["output_errors"].values())).T
    assert after.mean() < 0.9 * before.mean()


@pytest.mark.parametrize("rounding", ["gptq", "awq"])
def test_weights_lie_on_their_grid_and_are_exported_as_they_were_chosen(rounding, tiny_data):
    ranker = tiny.build_ranker(SPECS["electra"])
    found = applied(Quantize(scheme="int4_blocks", rounding=rounding, n_pairs=16), ranker, tiny_data)
    names = [name for name, one in linears_of(found.spec) if one.precision.kind == "int4_blocks"]
    assert "embeddings.project" in names
    for name in names:
        weight = found.weights[f"{name}.weight"]
        assert torch.equal(rounded_weight(weight, Int4Blocks()), weight)
        # Without a norm before them, AWQ has nothing to change about queries and keys.
        is_nearest = torch.equal(weight, rounded_weight(ranker.weights[f"{name}.weight"], Int4Blocks()))
        assert is_nearest == (rounding == "awq" and name.endswith(("query", "key")))
    stored = {one.name: numpy_helper.to_array(one) for one in write_graph(found.spec, found.weights).graph.initializer}
    codes, scales = weight_blocks(found.weights["layers.0.ffn.up.weight"], 4, 32)
    np.testing.assert_array_equal(stored["layer.0.ffn.up.weight"], packed_blocks(codes.numpy(), 4))
    np.testing.assert_array_equal(stored["layer.0.ffn.up.scale"], scales.flatten().numpy())


def test_low_rank_factors_are_both_rounded(tiny_data):
    ranker = tiny.build_ranker(SPECS["low_rank"])
    found = applied(Quantize(scheme="int8_dynamic", rounding="gptq", n_pairs=16), ranker, tiny_data)
    for part in ("up", "down"):
        name = f"layers.1.ffn.gate.{part}"
        assert not torch.equal(found.weights[name], ranker.weights[name])
        assert torch.equal(rounded_weight(found.weights[name], Int8Dynamic()), found.weights[name])


def test_linears_that_are_kept_stay_exact(tiny_data):
    ranker = tiny.build_ranker()
    step = Quantize(scheme="int8_blocks", rounding="gptq", n_pairs=16, keep_fp32=(0,))
    found = applied(step, ranker, tiny_data)
    same = {name for name, one in ranker.weights.items() if torch.equal(one, found.weights[name])}
    assert {name for name in ranker.weights if name.startswith(("layers.0.", "head."))} <= same
    assert "layers.1.ffn.up.weight" not in same


def test_layers_read_what_changed_layers_give(tiny_data):
    ranker = tiny.build_ranker()
    pairs = tiny_data.texts(tiny_data.sample_pairs(16, 0))
    batches = calibration_batches(ranker, pairs)
    names = ["layers.0.ffn.down", "layers.1.attention.key"]

    def reads_of(change: float) -> tuple[dict[str, Read], dict[str, torch.Tensor]]:
        seen: dict[str, Read] = {}

        def see(weights: Any, reads: Any) -> dict[str, torch.Tensor]:
            seen.update(reads)
            return {name: weights[name] * change for name in reads}

        return seen, changed_layer_by_layer(ranker.trainable().eval(), batches, names, see, "Looking")

    plain, _ = reads_of(1.0)
    moved, weights = reads_of(3.0)
    assert set(weights) == {f"{name}.weight" for name in names}
    first, second = (f"{name}.weight" for name in names)
    torch.testing.assert_close(plain[first].mean, moved[first].mean)
    changed = ranker.changed(weights={**ranker.weights, first: weights[first]})
    read = Read()
    with torch.no_grad():
        for batch in batches:
            read.add(changed.module.layers[0](batch.embedded, batch.layout))
    torch.testing.assert_close(moved[second].second(centered=False), read.second(centered=False))
    assert not torch.allclose(plain[second].mean, moved[second].mean, atol=1e-3)


def test_zeros_of_sparse_matrices_survive(tiny_data):
    sparsify = Sparsify(method="magnitude", sparsity=0.5)
    sparse = applied(sparsify, tiny.build_ranker(), tiny_data)
    found = applied(Quantize(scheme="int4_blocks", rounding="gptq", n_pairs=16), sparse, tiny_data)
    assert [promise.check(found) for promise in sparsify.promises(sparse)] == [None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "fp16", "rounding": "gptq"}, "rounding is a setting of int8_dynamic and int8_static and"),
        ({"scheme": "none", "rounding": "gptq"}, "rounding is a setting of"),
        ({"scheme": "int8_static", "rounding": "awq"}, "activations lose more than weights do; put smooth before"),
        ({"scheme": "int8_blocks", "n_pairs": 8}, "n_pairs is a setting of int8_static, and of rounding: gptq"),
    ],
)
def test_roundings_of_other_schemes_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Quantize.model_validate(settings)


def test_shapes_that_cannot_be_fitted_are_refused():
    step = Quantize(scheme="int4_blocks", rounding="gptq")
    assert step.needs() == {"calibration"}
    with pytest.raises(PlanError, match="lets tokens go") as refused:
        step.plan(SPECS["pooled"])
    assert refused.value.setting == "rounding"
    layer = tiny.tiny_layer()
    assert layer.ffn
    codes = layer.ffn.down.changed(form=DenseSparseForm(codes="rows", atoms=8, nonzeros=2))
    spec = of_layers(layer.changed(ffn=layer.ffn.changed(down=codes)))
    with pytest.raises(PlanError, match=r"layers\.0\.ffn\.down, stored as atoms"):
        step.plan(spec)
    Quantize(scheme="int4_blocks").plan(spec)
    Quantize(scheme="int4_blocks", rounding="gptq", keep_fp32=("*.ffn.down",)).plan(spec)
