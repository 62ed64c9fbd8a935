"""`rankpress doctor`: each consumer's rules about graphs, ours and foreign ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from compressor.doctor import examine
from compressor.doctor.examine import OWN_RUNTIME
from compressor.doctor.graph_facts import read_graph
from compressor.export import export_folder
from tests.doctor.changes import (
    READ_ONNX,
    READ_TORCH,
    ST_ONNX,
    TEI,
    TORCH,
    change_graph,
    edit,
    reasons,
    refused,
    verdicts,
)
from tests.ranker.cascades import cascade, cascading
from tests.tiny import tokenizer_files


def graph(
    *, inputs: dict[str, int], output: str = "logits", kind: int = TensorProto.FLOAT, columns: int = 1, axes: Any = None
) -> onnx.ModelProto:
    """Return a graph that scores a pair by the sum of its token ids, as another tool may export it."""
    axes = axes or ["rows", "columns"]
    given = [helper.make_tensor_value_info(name, number, axes) for name, number in inputs.items()]
    wanted = helper.make_tensor_value_info(output, kind, [axes[0], columns])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Expand", ["mean", "shape"], ["wide"]),
        helper.make_node("Cast", ["wide"], [output], to=kind),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, columns])
    whole = helper.make_graph(nodes, "foreign", given, [wanted], [shape])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


LONG = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}


def foreign(path: Path, model: onnx.ModelProto, **config: Any) -> Path:
    """Write a folder as another tool may: a graph in the root, a tokenizer, little else."""
    path.mkdir()
    onnx.save(model, path / "model.onnx")
    for name, content in tokenizer_files().items():
        (path / name).write_bytes(content)
    edit("tokenizer_config.json", model_max_length=512)(path)
    (path / "config.json").write_text(json.dumps({"model_type": "distilbert", "pad_token_id": 0, **config}))
    return path


def own_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    model.graph.node.append(helper.make_node("Polish", ["logits"], ["polished"], domain="my.company"))


def function_of_its_own(model: onnx.ModelProto) -> None:
    own_operator(model)
    inner = helper.make_node("Identity", ["x"], ["y"])
    standard = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("my.company", "Polish", ["x"], ["y"], [inner], [standard]))


def test_operators_that_onnx_runtime_has_not_keep_all_of_its_users_away(folder):
    change_graph(own_operator)(folder)
    assert refused(folder) == READ_ONNX - {TEI}  # which reads the torch checkpoint then
    assert "candle" in reasons(folder, TEI, "note")[0].text
    (folder / "model.safetensors").unlink()
    assert refused(folder) == READ_ONNX | READ_TORCH
    (reason,) = reasons(folder, "Vespa")
    assert reason.key == "my.company"
    assert "Polish" in reason.text


def test_a_function_that_the_file_defines_is_no_such_operator(folder):
    change_graph(function_of_its_own)(folder)
    assert refused(folder) == set()


def in_a_branch(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [
        helper.make_node("Constant", [], ["x"], value_float=1.0),
        helper.make_node("Polish", ["x"], ["y"], domain="my.company"),
    ]
    branch = helper.make_graph(nodes, "branch", [], [value])
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch))


def test_operators_are_found_in_branches(folder):
    change_graph(in_a_branch)(folder)
    assert read_graph(folder, "onnx/model.onnx").operators["my.company"] == ("Polish",)


def move_weights_out(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.convert_model_to_external_data(
        model, all_tensors_to_one_file=True, location="model.onnx_data", size_threshold=512
    )


def two_inputs_of_one_shape(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input.append(model.graph.node[-1].input[0])  # an operator that takes fewer


def test_a_graph_that_onnx_runtime_refuses_is_refused_by_all_of_its_users(folder):
    change_graph(two_inputs_of_one_shape)(folder)
    assert refused(folder) == READ_ONNX - {TEI}
    assert "ONNX Runtime" in reasons(folder, "fastembed")[0].text


def test_weights_outside_of_the_graph(folder):
    change_graph(move_weights_out)(folder)
    assert refused(folder) == {"Vespa", "transformers.js"}
    facts = read_graph(folder, "onnx/model.onnx")
    assert facts.external_files == ("model.onnx_data",)
    assert facts.size_bytes > (folder / "onnx/model.onnx_data").stat().st_size > 0
    edit("config.json", **{"transformers.js_config": {"use_external_data_format": True}})(folder)
    assert refused(folder) == {"Vespa"}
    (folder / "onnx/model.onnx_data").unlink()
    assert refused(folder) == READ_ONNX - {TEI}


def test_weights_outside_of_the_folder_are_not_there(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    model = onnx.load(folder / "onnx/model.onnx")
    move_weights_out(model)
    for entry in (one for tensor in model.graph.initializer for one in tensor.external_data if one.key == "location"):
        entry.value = "../../secret"
    (folder / "onnx/model.onnx").write_bytes(model.SerializeToString())
    assert read_graph(folder, "onnx/model.onnx").missing_files == ("../../secret",)


def test_foreign_folders_load_where_their_rules_are_kept(tmp_path):
    path = foreign(tmp_path / "foreign", graph(inputs=LONG))
    found = verdicts(path)
    # The tokenizer gives type ids of 1, FlashRank feeds them, and this graph has no such input.
    assert refused(path) == READ_TORCH | {"FlashRank", TEI, ST_ONNX, "transformers.js"}
    assert [one.key for one in reasons(path, "FlashRank")] == ["post_processor"]
    assert {one.key for one in reasons(path, TEI)} >= {"architectures", "id2label", "max_position_embeddings"}
    assert reasons(path, TORCH)[0].text == "no weights for torch"
    assert found["optimum-onnx"] == "loads"
    assert "model.onnx" in reasons(path, "transformers.js")[0].text  # in the root, where it does not look


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"inputs": {**LONG, "position_ids": TensorProto.INT64}}, {OWN_RUNTIME, "fastembed", "optimum-onnx"}),
        ({"inputs": dict.fromkeys(LONG, TensorProto.INT32)}, {"fastembed"}),
        ({"inputs": {"input_ids": TensorProto.INT64}}, {OWN_RUNTIME}),
        ({"inputs": LONG, "output": "relevance"}, {"optimum-onnx"}),
        ({"inputs": LONG, "columns": 2}, {OWN_RUNTIME, "fastembed", "optimum-onnx", "Vespa"}),
        ({"inputs": LONG, "axes": [1, 32]}, {OWN_RUNTIME, "fastembed", "optimum-onnx"}),
        ({"inputs": LONG, "kind": TensorProto.FLOAT16}, set()),
    ],
)
def test_graphs_that_some_consumers_cannot_feed_or_read(tmp_path, change, expected):
    path = foreign(tmp_path / "foreign", graph(**change), id2label={"0": "LABEL_0"})
    always = READ_TORCH | {"FlashRank", TEI, "transformers.js"}
    assert refused(path) - always - {ST_ONNX} == expected
    assert (ST_ONNX in refused(path)) == ("optimum-onnx" in expected)


def test_an_input_that_some_feed_to_every_graph_is_missed_by_them(tmp_path):
    path = foreign(tmp_path / "foreign", graph(inputs={"input_ids": TensorProto.INT64}))
    for consumer in ("FlashRank", TEI):
        assert "attention_mask" in {one.key for one in reasons(path, consumer)}, consumer


def test_half_precision_logits_are_refused_by_the_server_that_reads_float32(tmp_path):
    path = foreign(tmp_path / "foreign", graph(inputs=LONG, kind=TensorProto.FLOAT16))
    assert any("float16" in reason.text for reason in reasons(path, TEI))


def test_a_list_ranker_is_scored_pair_by_pair_elsewhere(tmp_path):
    export_folder(cascading(cascade({"behind": 1, "keep": 0.5})), tmp_path / "model", manifest={}, int8_companion=False)
    diagnosis = examine(tmp_path / "model")
    for consumer in READ_ONNX - {OWN_RUNTIME}:
        assert "cascade" in {reason.key for reason in diagnosis.of(consumer).reasons}, consumer
    assert "does_not_load" not in {diagnosis.of(consumer).verdict for consumer in READ_TORCH}
