"""Training behind quantize goes through the rounding: scores come nearer to the teacher's, and rounding stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.export import write_graph
from compressor.passes import Pass, PlanError
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.passes.quantize import Quantize
from compressor.ranker.cost import linears_of
from tests.passes.students import QUICK, applied, distilled, score_rmse, supply_for

LOSSES: dict[str, Any] = {"losses": {"mse": 1.0}, "representations": {}, "epochs": 6, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def data(tiny_data):
    return tiny_data


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "int4_blocks", "block_size": 128},
        {"scheme": "int4_blocks", "block_size": 128, "rounding": "gptq"},
        {"scheme": "int8_static", "reduce_range": True},
    ],
    ids=["int4", "int4_gptq", "int8_static"],
)
def test_rounding_stays_and_fixed_ranges_with_it(settings, tiny_ranker, data):
    quantize = Quantize(**settings)
    rounded = applied(quantize, tiny_ranker, data)
    trained = distilled(rounded, tiny_ranker, data, **LOSSES)
    assert trained.spec == rounded.spec
    assert [promise.check(trained) for promise in quantize.promises(rounded)] == [None]
    names = [name for name, one in linears_of(rounded.spec) if one.precision.kind == settings["scheme"]]
    assert all(not torch.equal(trained.weights[f"{name}.weight"], rounded.weights[f"{name}.weight"]) for name in names)
    ranges = [name for name in trained.weights if name.endswith(".input_ranges")]
    assert len(ranges) == (len(names) if settings["scheme"] == "int8_static" else 0)
    assert all(torch.equal(trained.weights[name], rounded.weights[name]) for name in ranges)


def test_scores_come_nearer_to_the_teachers_behind_the_harshest_rounding(tiny_ranker, data):
    rounded = applied(Quantize(scheme="int4_blocks", block_size=128), tiny_ranker, data)
    trained = distilled(rounded, tiny_ranker, data, **LOSSES)
    assert score_rmse(trained, tiny_ranker, data) < 0.9 * score_rmse(rounded, tiny_ranker, data)


def test_the_graph_of_a_trained_ranker_scores_as_it_does(tiny_ranker, data, tiny_pairs):
    import onnxruntime as ort

    from compressor.runtime.batching import padded

    rounded = applied(Quantize(scheme="int4_blocks", block_size=128), tiny_ranker, data)
    trained = distilled(rounded, tiny_ranker, data, **{**LOSSES, "epochs": 1})
    model = write_graph(trained.spec, trained.weights).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = padded(trained.tokenizer.encode_pairs(tiny_pairs), np.arange(len(tiny_pairs)), trained.spec.pad_id)
    found = session.run(["logits"], {one.name: inputs[one.name] for one in session.get_inputs()})[0][:, 0]
    np.testing.assert_allclose(found, trained.score(tiny_pairs), atol=5e-3)


@pytest.mark.parametrize(("scheme", "precision"), [("int8_dynamic", "fp32"), ("bf16", "fp32"), ("none", "auto")])
def test_products_are_exact_where_rounding_is_simulated(scheme, precision, tiny_ranker, data):
    spec = Quantize(scheme=scheme).plan(tiny_ranker.spec)
    assert Distill()._settings(spec).precision == precision
    assert Distill(precision="bf16")._settings(spec).precision == "bf16"


def test_moving_averages_leave_fixed_ranges_alone(tiny_ranker, data):
    rounded = applied(Quantize(scheme="int8_static", n_pairs=16), tiny_ranker, data)
    step = Finetune.model_validate({**QUICK, "epochs": 1, "ema": 0.9})
    assert step.plan(rounded.spec) == rounded.spec
    trained = step.apply(rounded, supply_for(step, data, tiny_ranker))
    name = "layers.0.ffn.down"
    assert torch.equal(trained.weights[f"{name}.input_ranges"], rounded.weights[f"{name}.input_ranges"])
    assert not torch.equal(trained.weights[f"{name}.weight"], rounded.weights[f"{name}.weight"])


@pytest.mark.parametrize(
    "verb",
    ["learn_widths", "nest_widths", "learn_factors", "learn_shares", "learn_thresholds", "dense_sparse", "sparsify"],
)
def test_passes_that_reshape_while_they_train_are_refused(verb, tiny_ranker):
    from compressor.registry import registered
    from tests.laws.cases import CASES

    spec = Quantize(embeddings=False).plan(tiny_ranker.spec)
    step = registered()[verb].model_validate(CASES[verb].active)
    assert isinstance(step, Pass)
    with pytest.raises(PlanError, match="a quantized ranker") as refused:
        step.plan(spec)
    assert f"put {verb} before quantize" in refused.value.fix
