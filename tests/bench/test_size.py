from __future__ import annotations

import json

import numpy as np
import pytest

from compressor.bench.rows import RowSpec
from compressor.bench.size import cost_of

LENGTHS = np.array([10, 20])


@pytest.fixture
def graph_folder(tmp_path):
    """A graph with a float and an int8 linear per token, a Gemm per pair, an embedding table, a norm and a constant."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "table": np.zeros((100, 8), np.float32),
        "up": np.zeros((8, 32), np.float32),
        "down": np.zeros((32, 8), np.int8),
        "norm": np.zeros(8, np.float32),
        "pooler": np.zeros((8, 8), np.float32),
        "scale": np.array(0.1, np.float32),
        "shape": np.array([0, -1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "up"], ["h"]),
        helper.make_node("DequantizeLinear", ["down", "scale"], ["down_f"]),
        helper.make_node("MatMul", ["h", "down_f"], ["y"]),
        helper.make_node("MatMul", ["y", "y"], ["attention"]),
        helper.make_node("Gemm", ["y", "pooler"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return tmp_path


def test_a_foreign_graph_is_counted_from_its_initializers(graph_folder):
    row = RowSpec(name="foreign", folder=graph_folder)
    cost = cost_of(row, graph_folder / "model.onnx", LENGTHS)
    assert cost.parameters == 800 + 256 + 256 + 8 + 64
    assert cost.macs_per_pair == (256 + 256) * 15 + 64
    assert cost.macs_scope == "linear layers only"
    assert cost.size_bytes == (graph_folder / "model.onnx").stat().st_size


def test_attention_is_added_where_the_config_tells(graph_folder):
    (graph_folder / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "hidden_size": 8}))
    cost = cost_of(RowSpec(name="foreign", folder=graph_folder), graph_folder / "model.onnx", LENGTHS)
    assert cost.macs_per_pair == 512 * 15 + 64 + 2 * 3 * 8 * (100 + 400) / 2
    assert cost.macs_scope == "linear layers and attention, every layer at every token"


def test_external_data_count(graph_folder):
    (graph_folder / "model.onnx.data").write_bytes(b"x" * 5000)
    cost = cost_of(RowSpec(name="foreign", folder=graph_folder), graph_folder / "model.onnx", LENGTHS)
    assert cost.size_bytes == (graph_folder / "model.onnx").stat().st_size + 5000


def test_the_weights_of_openvino_files_count(tmp_path):
    (tmp_path / "model.xml").write_bytes(b"x" * 30)
    (tmp_path / "model.bin").write_bytes(b"x" * 4000)
    cost = cost_of(RowSpec(name="nncf", folder=tmp_path, engine="openvino"), tmp_path / "model.xml", LENGTHS)
    assert cost.size_bytes == 4030


def test_an_own_folder_is_counted_from_its_spec(tiny_ranker, tmp_path):
    from compressor.ranker.cost import macs, parameters

    (tmp_path / "spec.json").write_text(tiny_ranker.spec.model_dump_json())
    (tmp_path / "model.onnx").write_bytes(b"x" * 70)
    cost = cost_of(RowSpec(name="own", folder=tmp_path), tmp_path / "model.onnx", LENGTHS)
    assert cost.parameters == parameters(tiny_ranker.spec)
    assert cost.macs_per_pair == (macs(tiny_ranker.spec, 10) + macs(tiny_ranker.spec, 20)) / 2
    assert cost.size_bytes == 70
    assert cost.packed_bytes is None


def test_a_sparse_ranker_is_packed_to_tell_its_size(tiny_ranker, tmp_path):
    from compressor.export import write_graph
    from compressor.export.packing import packed_bytes
    from compressor.ranker.cost import macs
    from compressor.ranker.sparsity import sparsified

    spec = sparsified(tiny_ranker.spec)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    (tmp_path / "model.onnx").write_bytes(write_graph(spec, tiny_ranker.weights, "ort").SerializeToString())
    cost = cost_of(RowSpec(name="own", folder=tmp_path), tmp_path / "model.onnx", LENGTHS)
    assert cost.packed_bytes == packed_bytes(tmp_path / "model.onnx")
    assert cost.macs_per_pair == (macs(tiny_ranker.spec, 10) + macs(tiny_ranker.spec, 20)) / 2, "zeros are multiplied"


def test_a_checkpoint_agrees_with_the_spec_it_came_from(tmp_path):
    from safetensors.numpy import save_file

    width, ffn = 8, 32
    shapes = {
        "bert.embeddings.word_embeddings.weight": (100, width),
        "bert.embeddings.position_ids": (1, 512),
        "bert.encoder.layer.0.attention.self.query.weight": (width, width),
        "bert.encoder.layer.0.output.dense.weight": (width, ffn),
        "bert.encoder.layer.0.output.dense.bias": (width,),
        "bert.pooler.dense.weight": (width, width),
        "classifier.weight": (1, width),
    }
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    row = RowSpec(name="torch_fp32_padded", folder=tmp_path, engine="torch_fp32_padded")
    cost = cost_of(row, tmp_path / "model.safetensors", LENGTHS)
    assert cost.parameters == 800 + 64 + 256 + 8 + 64 + 8
    assert cost.macs_per_pair == (64 + 256) * 15 + 64 + 8


def test_what_cannot_be_told_is_none(tmp_path):
    cost = cost_of(RowSpec(name="x", folder=tmp_path), tmp_path / "pytorch_model.bin", LENGTHS)
    assert (cost.size_bytes, cost.parameters, cost.macs_per_pair, cost.macs_scope) == (None, None, None, None)
