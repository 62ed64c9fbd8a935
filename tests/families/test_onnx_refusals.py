"""ONNX files that are not a BERT-shaped ranker are refused, saying what was found and what was looked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import InputError
from compressor.families import load_teacher, peek_teacher
from compressor.families.onnx_import import NotRecognizedError, read_onnx
from tests import tiny
from tests.families.stock_models import build_stock, export


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A graph that the import reads: our own portable dialect is not torch's, and has no padding."""
    folder = tmp_path_factory.mktemp("good")
    return export(build_stock("bert", folder / "stock"), folder / "model.onnx", attention="eager")


@pytest.fixture
def spoil(good, tmp_path):
    """Change the good graph and return the message of its refusal."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((good.parent / name).read_bytes())

    def _spoil(change, load=peek_teacher):
        model = onnx.load(good)
        change(model.graph)
        onnx.save(model, tmp_path / "model.onnx")
        with pytest.raises(NotRecognizedError) as caught:
            load("model.onnx", tmp_path)
        assert "give the safetensors checkpoint instead" in str(caught.value)
        return str(caught.value)

    return _spoil


def nodes(graph, op):
    return [node for node in graph.node if node.op_type == op]


def constant(graph, name):
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def replace_constant(graph, name, array):
    constant(graph, name).CopyFrom(numpy_helper.from_array(array, name))


def test_two_logits(spoil):
    def change(graph):
        weight, bias = nodes(graph, "Gemm")[-1].input[1:]
        replace_constant(graph, weight, np.ones((2, 16), np.float32))
        replace_constant(graph, bias, np.ones(2, np.float32))

    message = spoil(change)
    assert "output logits: found a head of 2 logits; allowed: one logit" in message


def test_another_activation(spoil):
    def change(graph):
        for node in nodes(graph, "Erf"):
            node.op_type = "Sin"

    assert "the last layer, feed-forward: found" in spoil(change)


def test_no_softmax(spoil):
    def change(graph):
        nodes(graph, "Softmax")[1].op_type = "Sigmoid"

    message = spoil(change)
    assert "layer 2 from the last, attention: found a product of two computed values without a softmax" in message
    assert "allowed: softmax(Q Kᵀ) V" in message


def test_a_norm_of_something_else(spoil):
    def change(graph):
        norm = nodes(graph, "LayerNormalization")[2]
        norm.op_type = "Softplus"
        del norm.input[1:], norm.attribute[:]

    assert "found" in (message := spoil(change))
    assert "made by Softplus; allowed: a layer norm of a linear plus a residual" in message


def test_mean_pooling(spoil):
    def change(graph):
        gather = next(n for n in nodes(graph, "Gather") if any(a.name == "axis" and a.i == 1 for a in n.attribute))
        gather.op_type = "ReduceMean"
        del gather.input[1:], gather.attribute[:]
        gather.attribute.extend([helper.make_attribute("axes", [1]), helper.make_attribute("keepdims", 0)])

    assert "made by ReduceMean; allowed: the first token of the sequence" in spoil(change)


def test_inputs_of_another_kind(spoil):
    def change(graph):
        graph.input[1].name = "mask"
        for node in graph.node:
            node.input[:] = ["mask" if name == "attention_mask" else name for name in node.input]

    message = spoil(change)
    assert "inputs: found input_ids, mask, token_type_ids; allowed: input_ids, attention_mask" in message


def test_a_foreign_quantization(spoil):
    def change(graph):
        graph.node.append(helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft"))

    assert "quantization: found MatMulNBits" in spoil(change)


def test_the_same_shape_with_another_scale_is_caught_by_its_scores(spoil):
    """Recognition alone cannot see a wrong factor; the comparison with ONNX Runtime does."""

    def change(graph):
        softmax = nodes(graph, "Softmax")[0]
        graph.initializer.append(numpy_helper.from_array(np.float32(3).reshape(()), "three"))
        scaled = helper.make_node("Mul", [softmax.input[0], "three"], ["sharper"])
        softmax.input[0] = "sharper"
        graph.node.insert(list(graph.node).index(softmax), scaled)

    message = spoil(change, load_teacher)
    assert "scores: found logits that differ by" in message


def test_a_fixed_length(spoil):
    def change(graph):
        for value in graph.input:
            for dimension, size in zip(value.type.tensor_type.shape.dim, (1, 8), strict=True):
                dimension.dim_value = size

    message = spoil(change)
    assert "input_ids, attention_mask, token_type_ids: found a fixed shape; allowed: free batch and sequence" in message


def test_a_length_that_was_baked_in(spoil):
    """Older exporters traced the example's length into a constant while the axes look free."""

    def change(graph):
        reshape = nodes(graph, "Reshape")[-1]
        graph.initializer.append(numpy_helper.from_array(np.array([1, 8, 16]), "baked"))
        reshape.input[1] = "baked"

    assert "a graph that does not run on rows of up to 17 tokens" in spoil(change, load_teacher)


def test_a_graph_of_something_else(tmp_path):
    value = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])
    result = helper.make_tensor_value_info("kind", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["kind"])], "g", [value], [result])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    for name, content in tiny.tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NotRecognizedError, match=r"inputs: found pixels; allowed: input_ids, attention_mask"):
        load_teacher(".", tmp_path)


@pytest.mark.parametrize(("content", "words"), [(b"", "without an ONNX graph"), (b"no protobuf", "a broken ONNX file")])
def test_a_broken_file(tmp_path, content, words):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_onnx(tmp_path / "model.onnx")


def test_no_tokenizer_beside_the_file(good, tmp_path):
    (tmp_path / "model.onnx").write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"no tokenizer.json"):
        load_teacher("model.onnx", tmp_path)


def test_weights_outside_the_folder(good, tmp_path):
    model = onnx.load(good)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="names inside the folder"):
        read_onnx(tmp_path / "inner" / "model.onnx")


def test_lost_weights(good, tmp_path):
    onnx.save(
        onnx.load(good), tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights in 'weights.bin', which does not lie beside the file"):
        read_onnx(tmp_path / "model.onnx")
