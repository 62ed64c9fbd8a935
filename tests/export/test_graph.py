"""The whole written graph: what it computes, what it is made of, and what old runtimes can load."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from compressor.export import write_graph
from compressor.export.graph import Graph
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import FeedForwardSpec, Int4Blocks, Int8Dynamic, Int8Rows, Int8Static, LinearSpec, TableSpec
from compressor.runtime.session import session_options
from tests.export.component import DIALECTS
from tests.ranker.cases import SPECS
from tests.tiny import FFN_WIDTH, WIDTH, build_ranker, lively_weights, tiny_layer, tiny_spec

TOLERANCE = 2e-5
SHAPES = ((1, 16), (7, 33), (3, 40))
# What ONNX Runtime 1.18 has; the default file must load there.
KNOWN_FUSED = {"BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "MatMulIntegerToFloat", "QuickGelu", "RotaryEmbedding"}
OWN_STANDARD = {"SimplifiedLayerNormalization"}  # ONNX Runtime's, in the standard domain
INT8 = round_spec(tiny_spec(), Int8Dynamic(), Int8Rows())


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = session_options(threads=1)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def batch_of(spec, n_rows: int, n_tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(n_tokens)
    lengths = random.integers(1, n_tokens + 1, n_rows)
    lengths[0] = n_tokens
    mask = (np.arange(n_tokens) < lengths[:, None]).astype(np.int64)
    segments = spec.embeddings.segments.rows if spec.embeddings.segments else 1
    return {
        "input_ids": random.integers(0, spec.embeddings.tokens.rows, mask.shape),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, segments, mask.shape),
    }


def run(session: ort.InferenceSession, batch: dict[str, np.ndarray]) -> np.ndarray:
    return session.run(None, {node.name: batch[node.name] for node in session.get_inputs()})[0]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_graph_scores_as_torch_does(spec, dialect):
    ranker = build_ranker(spec)
    session = session_of(write_graph(spec, ranker.weights, dialect))
    for shape in SHAPES:
        batch = batch_of(spec, *shape)
        with torch.inference_mode():
            expected = ranker.module(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
        np.testing.assert_allclose(run(session, batch), expected, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_portable_graph_is_standard_onnx(spec):
    model = write_graph(spec, lively_weights(spec), "portable")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    assert not {node.op_type for node in model.graph.node} & OWN_STANDARD


@pytest.mark.parametrize("spec", [*SPECS.values(), INT8], ids=[*SPECS, "int8"])
def test_old_runtimes_know_all_that_the_default_graph_uses(spec):
    model = write_graph(spec, lively_weights(spec))
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions == {"": 17, "com.microsoft": 1}
    assert model.ir_version == 8
    assert {node.op_type for node in model.graph.node if node.domain == "com.microsoft"} <= KNOWN_FUSED
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert all(len(node.input) == 3 for node in norms)  # version 1.18 aborts on a norm without bias


@pytest.mark.parametrize("dialect", DIALECTS)
def test_inputs_and_output(dialect):
    def described(values):
        return [
            (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        ]

    graph = write_graph(tiny_spec(), lively_weights(tiny_spec()), dialect).graph
    both = ["batch", "sequence"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert described(graph.input) == [(name, TensorProto.INT64, both) for name in names]
    assert described(graph.output) == [("logits", TensorProto.FLOAT, ["batch", 1])]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("segments", [None, TableSpec(rows=1, width=WIDTH)], ids=["no segments", "one segment"])
def test_family_of_one_segment_has_no_segment_input(dialect, segments):
    spec = tiny_spec(embeddings=tiny_spec().embeddings.changed(segments=segments))
    ranker = build_ranker(spec)
    model = write_graph(spec, ranker.weights, dialect)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    batch = batch_of(spec, 3, 9)
    with torch.inference_mode():
        expected = ranker.module(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    np.testing.assert_allclose(run(session_of(model), batch), expected, atol=TOLERANCE)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spec", [tiny_spec(), INT8], ids=["fp32", "int8"])
def test_names_are_stable_and_unique(spec, dialect):
    model = write_graph(spec, lively_weights(spec), dialect)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    expected = {"embeddings.tokens", "layer.0.attention.query_key_value", "layer.0.attention.output", "layer.0.ffn.up",
                "layer.1.ffn.down", "head.dense", "head.output"}  # fmt: skip
    assert expected <= set(names)
    assert model.SerializeToString() == write_graph(spec, lively_weights(spec), dialect).SerializeToString()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_equal_weights_are_stored_once(dialect):
    spec = tiny_spec(layers=(tiny_layer(),) * 3)
    weights = lively_weights(spec)
    tied = {name: weights[name.replace("layers.1.", "layers.0.")] for name in weights}
    apart, together = (write_graph(spec, each, dialect).graph.initializer for each in (weights, tied))
    contents = [(t.data_type, tuple(t.dims), t.raw_data) for t in together]
    assert len(set(contents)) == len(contents)
    matrices = sum(len(t.dims) == 2 and t.dims[0] * t.dims[1] >= WIDTH * WIDTH for t in apart)
    assert sum(len(t.dims) == 2 and t.dims[0] * t.dims[1] >= WIDTH * WIDTH for t in together) == matrices - 4


def test_last_layer_makes_no_keys_or_values_where_only_first_tokens_ask():
    spec = tiny_spec()
    names = {node.name for node in write_graph(spec, lively_weights(spec)).graph.node}
    assert "layer.0.attention.query_key_value" in names
    assert not {name for name in names if name.startswith("layer.1.attention.") and "key_value" in name}
    means = tiny_spec(head=spec.head.changed(pool="mean"))
    names = {node.name for node in write_graph(means, lively_weights(means)).graph.node}
    assert "layer.1.attention.query_key_value" in names


@pytest.mark.parametrize("dialect", DIALECTS)
def test_activations_of_several_int8_linears_are_rounded_once(dialect):
    precise = LinearSpec(inputs=WIDTH, outputs=FFN_WIDTH, precision=Int8Dynamic())
    down = LinearSpec(inputs=FFN_WIDTH, outputs=WIDTH, precision=Int8Dynamic())
    ffn = FeedForwardSpec(activation="silu", up=precise, gate=precise, down=down)
    spec = tiny_spec(layers=(tiny_layer(ffn=ffn),))
    counts = Counter(node.op_type for node in write_graph(spec, lively_weights(spec), dialect).graph.node)
    assert counts["DynamicQuantizeLinear"] == 2  # for gate and up together, and for down


@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_what_standard_ops_round_by_fixed_ranges_has_three_axes(norm_placement):
    """OpenVINO computes the rounding of matrices in a pass of its own, in fp32."""
    layers = tuple(tiny_layer(norm_placement=norm_placement) for _ in range(3))
    spec = round_spec(tiny_spec(layers=layers), Int8Static(), Int8Rows())
    model = onnx.shape_inference.infer_shapes(write_graph(spec, lively_weights(spec), "portable"))
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    rounded = {node.input[0]: axes[node.input[0]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    of_first_tokens = rounded.pop("layer.2.attention.asking")
    assert of_first_tokens == 2
    assert len(rounded) >= 10
    assert set(rounded.values()) == {3}
    assert axes["layer.0.ffn.sum"] == axes["layer.1.ffn.sum"] == 2


def test_what_rounds_by_blocks_reads_matrices_beside_what_has_fixed_ranges():
    up = LinearSpec(inputs=WIDTH, outputs=FFN_WIDTH, precision=Int8Static())
    down = LinearSpec(inputs=FFN_WIDTH, outputs=WIDTH, precision=Int4Blocks())
    ffn = FeedForwardSpec(activation="gelu", up=up, down=down)
    ranker = build_ranker(tiny_spec(layers=(tiny_layer(ffn=ffn), tiny_layer())))
    batch = batch_of(ranker.spec, 3, 20)
    with torch.inference_mode():
        expected = ranker.module(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    found = run(session_of(write_graph(ranker.spec, ranker.weights, "portable")), batch)
    np.testing.assert_allclose(found, expected, atol=0.05 * float(np.abs(expected).max()))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_int8_weights_are_stored_in_8_bits_with_one_scale_per_channel(dialect):
    model = write_graph(INT8, lively_weights(INT8), dialect)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    down = stored["layer.0.ffn.down.weight"]
    assert (down.dtype, down.shape) == (np.int8, (FFN_WIDTH, WIDTH))
    assert np.abs(down).max(axis=0).tolist() == [127] * WIDTH
    assert stored["layer.0.ffn.down.scale"].shape == (WIDTH,)
    assert stored["embeddings.tokens.weight"].dtype == np.int8
    assert stored["head.dense.weight"].dtype == np.float32


def test_graph_refuses_a_name_twice():
    graph = Graph("ort", max_length=8)
    graph.node("Identity", ["x"], "same")
    with pytest.raises(ValueError, match="two values named 'same'"):
        graph.node("Identity", ["x"], "same")
    graph.weight("w", np.zeros(2, np.float32))
    assert graph.weight("other", np.zeros(2, np.float32)) == "w"
    with pytest.raises(ValueError, match="two weights named 'w'"):
        graph.weight("w", np.ones(2, np.float32))
