"""Exits at the door: no graph, folder or stock checkpoint has them, and a cut ranker leaves like any other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from compressor.baselines import baseline_rows, refuse_without_stock
from compressor.errors import InputError, RunError
from compressor.export import export_folder, write_graph
from compressor.families import can_be_stock, load_teacher, stock_checkpoint
from compressor.passes.add_exits import AddExits
from compressor.passes.cut_at_exit import CutAtExit
from compressor.ranker.spec import RankerSpec
from compressor.ranker.store import save_ranker
from compressor.runtime.ranker import OnnxRanker
from tests.laws.masked import at_exit
from tests.passes.students import supply_for
from tests.ranker.cases import SPECS
from tests.tiny import batch_of, build_ranker, tiny_layer, tiny_spec

WITH_EXITS = [name for name, spec in SPECS.items() if spec.exit_layers]
TOLERANCE = 1e-5  # fp32 sums in another order


@pytest.fixture(scope="module")
def ranker():
    """A BERT of three layers with an exit behind the second, trained elsewhere than the head."""
    step = AddExits(layers=(1,))
    plain = build_ranker(tiny_spec(layers=(tiny_layer(),) * 3), seed=4)
    result = step.apply(plain, supply_for(step, None, plain))
    name = "layers.1.exit.output.weight"
    return result.changed(weights={**result.weights, name: -result.weights[name]})


def cut_at(ranker, layer):
    step = CutAtExit(layer=layer)
    return step.apply(ranker, supply_for(step, None, ranker))


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", WITH_EXITS)
def test_a_graph_is_the_same_with_and_without_exits(name, dialect):
    whole = build_ranker(SPECS[name])
    plain = whole.without_exits()
    written = write_graph(whole.spec, whole.weights, dialect)
    assert written.SerializeToString() == write_graph(plain.spec, plain.weights, dialect).SerializeToString()
    assert not [node.name for node in written.graph.node if "exit" in node.name]


def test_a_folder_describes_its_graph(ranker, tiny_pairs, tmp_path):
    report = export_folder(ranker, tmp_path / "model", manifest={}, int8_companion=False, portable=True)
    spec = RankerSpec.model_validate_json((tmp_path / "model" / "spec.json").read_text())
    assert spec == ranker.spec.without_exits() != ranker.spec
    assert report.manifest["fingerprint"] == ranker.without_exits().fingerprint
    for file in (None, "onnx/model_portable.onnx"):
        found = OnnxRanker.load(tmp_path / "model", file=file, threads=1).score(tiny_pairs)
        np.testing.assert_allclose(found, ranker.score(tiny_pairs), atol=TOLERANCE)
    again = load_teacher(str(tmp_path / "model"), tmp_path)  # model.safetensors, a stock checkpoint
    np.testing.assert_array_equal(again.score(tiny_pairs), ranker.score(tiny_pairs))


def test_a_cut_leaves_as_a_stock_ranker_that_scores_as_the_exit_did(ranker, tiny_pairs, tmp_path):
    from transformers import AutoModelForSequenceClassification

    cut = cut_at(ranker, 1)
    export_folder(
        cut, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs, int8_companion=False, portable=True
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    expected = at_exit(1)(ranker, tiny_pairs)
    for file in (None, "onnx/model_portable.onnx"):
        found = OnnxRanker.load(tmp_path / "model", file=file, threads=1).score(tiny_pairs)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    batch = batch_of(ranker.spec, [9, 30])
    with torch.inference_mode():
        scores = ranker.module.trace(**batch).exits[1]
        torch.testing.assert_close(model(**batch).logits, scores, atol=TOLERANCE, rtol=0)
        assert (ranker.module(**batch) - scores).abs().max() > 0.01


def test_exits_have_no_stock_form(ranker, tmp_path):
    assert str(can_be_stock(ranker.spec)).startswith("layers.1.exit is {")
    with pytest.raises(RunError, match=r"no stock form: layers.1.exit"):
        stock_checkpoint(ranker, tmp_path / "stock")
    assert can_be_stock(cut_at(ranker, 1).spec) is None


def test_a_teacher_with_exits_has_baselines(ranker, tiny_pairs, tmp_path):
    refuse_without_stock(ranker.spec)
    _, stock = baseline_rows(tmp_path / "baselines", lambda: ranker, lambda line: None)
    found = OnnxRanker.load(stock.folder, threads=1).score(tiny_pairs)
    np.testing.assert_allclose(found, ranker.score(tiny_pairs), atol=TOLERANCE)
    save_ranker(ranker, tmp_path / "teacher")
    assert load_teacher(str(tmp_path / "teacher"), tmp_path).spec == ranker.spec
    narrow = ranker.spec.layers[0].ffn
    narrow = narrow.changed(up=narrow.up.changed(outputs=5), down=narrow.down.changed(inputs=5))
    layers = (ranker.spec.layers[0].changed(ffn=narrow), *ranker.spec.layers[1:])
    with pytest.raises(InputError, match="without a stock form"):
        refuse_without_stock(ranker.spec.changed(layers=layers))
