"""ONNX files of one ranker, exported, quantized and fused in many ways, give that ranker back."""

from __future__ import annotations

import logging
import random

import numpy as np
import onnx
import pytest

from compressor.families import can_be_stock, load_teacher, peek_teacher, teacher_fingerprint
from tests.families.stock_models import build_stock, export

FAMILIES = ["bert", "bert_tanh_gelu", "bert_one_segment", "tinybert", "electra_projected", "roberta", "distilbert"]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """A stock checkpoint and its export by the TorchScript exporter."""
    folder = tmp_path_factory.mktemp(request.param)
    stock = build_stock(request.param, folder / "stock")
    return stock, export(stock, folder / "onnx" / "model.onnx")


@pytest.fixture(scope="module")
def exported_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    stock = build_stock("bert", folder / "stock")
    return stock, export(stock, folder / "model.onnx", attention="eager")


def assert_same(found, expected, atol=0.0):
    assert found.spec == expected.spec
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], tensor, atol=atol, rtol=0, err_msg=name)


def test_an_export_gives_the_checkpoint_back(exported, tmp_path):
    stock, path = exported
    ranker = load_teacher(str(path), tmp_path)
    assert_same(ranker, load_teacher(str(stock.folder), tmp_path), atol=1e-7)
    assert ranker.history[-1].notes["format"] == "onnx"
    assert peek_teacher(str(path), tmp_path) == ranker.spec
    assert can_be_stock(ranker.spec) is None


def test_single_steps_of_attention_are_recognized(exported_bert, tmp_path):
    stock, path = exported_bert
    assert_same(load_teacher(str(path), tmp_path), load_teacher(str(stock.folder), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_newer_exporter_gives_the_checkpoint_back(name, tmp_path):
    stock = build_stock(name, tmp_path / "stock")
    export(stock, tmp_path / "onnx" / "model.onnx", dynamo=True)
    assert_same(load_teacher("onnx/model.onnx", tmp_path), load_teacher("stock", tmp_path), atol=1e-7)


def _optimized(source, target, level):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _fused(source, target, *, half=False):
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(source), model_type="bert", num_heads=4, hidden_size=16, opt_level=0)
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(target))


def _quantized(source, target, **settings):
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)  # it recommends preprocessing, on the root logger
    quantize_dynamic(source, target, **settings)
    logging.disable(logging.NOTSET)


def _int8(source, target):
    _quantized(source, target)


def _uint8_per_channel(source, target):
    from onnxruntime.quantization import QuantType

    _quantized(source, target, weight_type=QuantType.QUInt8, per_channel=True)


def _fused_int8(source, target):
    _uint8_per_channel(source, target.with_suffix(".step"))
    _optimized(target.with_suffix(".step"), target, "EXTENDED")


REWRITES = {
    "basic": (lambda s, t: _optimized(s, t, "BASIC"), 1e-7),
    "extended": (lambda s, t: _optimized(s, t, "EXTENDED"), 1e-7),
    "fused": (_fused, 1e-7),
    "half": (lambda s, t: _fused(s, t, half=True), 1e-3),
    "int8": (_int8, 0.01),
    "uint8_per_channel": (_uint8_per_channel, 0.01),
    "fused_int8": (_fused_int8, 0.01),
}
OPERATORS = {
    "fused": {"Attention", "SkipLayerNormalization", "BiasGelu", "EmbedLayerNormalization"},
    "extended": {"FusedGemm"},
    "int8": {"MatMulInteger", "DynamicQuantizeLinear", "DequantizeLinear"},
    "fused_int8": {"DynamicQuantizeMatMul"},
}


@pytest.mark.parametrize("kind", REWRITES)
def test_rewritten_files_give_the_checkpoint_back(kind, exported_bert, tmp_path):
    stock, path = exported_bert
    rewrite, atol = REWRITES[kind]
    target = path.with_name(f"{kind}.onnx")
    rewrite(path, target)
    operators = {node.op_type for node in onnx.load(target).graph.node}
    assert operators >= OPERATORS.get(kind, set()), "the rewriting tool no longer makes what this test is about"
    ranker, expected = load_teacher(str(target), tmp_path), load_teacher(str(stock.folder), tmp_path)
    assert_same(ranker, expected, atol=atol)
    assert ("int8" in ranker.history[-1].notes["format"]) == ("int8" in kind)


def test_fused_quantized_operators_are_read(exported_bert, tmp_path):
    from onnxruntime.quantization import QuantType

    stock, path = exported_bert
    fused, target = path.with_name("fused_first.onnx"), path.with_name("then_quantized.onnx")
    _fused(path, fused)
    _quantized(
        fused, target, per_channel=True, weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip
    operators = {node.op_type for node in onnx.load(target).graph.node}
    assert operators >= {"QAttention", "QEmbedLayerNormalization"}
    assert_same(load_teacher(str(target), tmp_path), load_teacher(str(stock.folder), tmp_path), atol=0.01)


def test_graphs_larger_than_a_protobuf_message_are_checked_too(exported_bert, tmp_path, monkeypatch):
    path = exported_bert[1]
    target = path.with_name("large_int8.onnx")
    _int8(path, target)
    monkeypatch.setattr("compressor.families.onnx_import._GRAPH_LIMIT_BYTES", 0)
    ranker = load_teacher(str(target), tmp_path)
    assert ranker.history[-1].notes["largest_difference_to_float_graph"] < 1e-5


def rename_everything(model, seed):
    """Give every inner value, weight and node another name."""
    graph = model.graph
    kept = {value.name for value in [*graph.input, *graph.output]}
    names = {name for node in graph.node for name in [*node.input, *node.output]} - kept - {""}
    codes = list(range(len(names)))
    random.Random(seed).shuffle(codes)
    new = {name: f"v{code}" for name, code in zip(sorted(names), codes, strict=True)}
    for node in graph.node:
        node.name = ""
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    del graph.value_info[:]
    return model


def test_names_say_nothing(exported_bert, tmp_path):
    stock, path = exported_bert
    target = path.with_name("renamed.onnx")
    onnx.save(rename_everything(onnx.load(path), seed=1), target)
    assert_same(load_teacher(str(target), tmp_path), load_teacher(str(stock.folder), tmp_path))


def test_the_family_is_guessed_where_there_is_no_config(exported, tmp_path):
    stock, path = exported
    (tmp_path / "model.onnx").write_bytes(path.read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    ranker = load_teacher("model.onnx", tmp_path)
    assert ranker.spec.family == stock.model.config.model_type
    assert ranker.source_config["architectures"] == [type(stock.model).__name__]
    assert can_be_stock(ranker.spec) is None


def test_weights_beside_the_file_are_read_and_fingerprinted(exported_bert, tmp_path):
    stock, path = exported_bert
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    (tmp_path / "onnx").mkdir()
    external = tmp_path / "onnx" / "model.onnx"
    onnx.save(onnx.load(path), external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert_same(load_teacher("onnx/model.onnx", tmp_path), load_teacher(str(stock.folder), tmp_path))
    assert peek_teacher(".", tmp_path) == peek_teacher("onnx/model.onnx", tmp_path)
    before = teacher_fingerprint(".", tmp_path)
    with (tmp_path / "onnx" / "weights.bin").open("ab") as stream:
        stream.write(b"x")
    assert teacher_fingerprint(".", tmp_path) != before
