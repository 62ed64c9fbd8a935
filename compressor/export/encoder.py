"""The whole ranker as an ONNX graph, written from spec and weights; mirrors `ranker/encoder.py`."""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from compressor.export.attention_bias import query_ends
from compressor.export.graph import Dialect, Graph
from compressor.export.heads import head
from compressor.export.layers import layer, norm
from compressor.export.layout import Layout, build_layout, row_means
from compressor.export.linears import Weights, add_bias, linear, table
from compressor.export.token_rules import reduce_tokens, row_parts
from compressor.ranker.dense_sparse import expanded
from compressor.ranker.spec import EmbeddingsSpec, FloatKind, RankerSpec
from compressor.ranker.token_rule_spec import ask_for_query_terms, shows_tokens


def write_graph(spec: RankerSpec, weights: Weights, dialect: Dialect = "ort") -> onnx.ModelProto:
    """Write a ranker as an ONNX model; exits are not part of it.

    Args:
        spec: the shape.
        weights: one tensor per name of the spec, fp32 on the CPU.
        dialect: ``ort`` for ONNX Runtime's fused ops, ``portable`` for standard ops alone.

    Returns:
        A model with inputs ``input_ids``, ``attention_mask`` and, where the spec has two segments, ``token_type_ids``
        (int64 ``[batch, sequence]``), and the float32 output ``logits`` ``[batch, 1]`` or ``embedding``
        ``[batch, width]``.
    """
    # A product with sparse codes would be made of gathers: benchmarks/dense_sparse_speed.py tells what these cost.
    spec, weights = expanded(spec, {name: tensor.detach() for name, tensor in weights.items()})
    graph = Graph(dialect, max_length=spec.max_length)
    layout = build_layout(graph, "attention_mask")
    if spec.isolates_query and spec.separator_id is not None:
        layout = replace(layout, query_ends=query_ends(graph, layout, spec.separator_id))
    values = embeddings(graph, spec.embeddings, weights, layout)
    parts = None
    if spec.rule_layers and spec.separator_id is not None:
        marks_query_terms = ask_for_query_terms(layer.token_rule for layer in spec.layers)
        parts = row_parts(graph, layout, spec.separator_id, marks_query_terms)
    last = len(spec.layers) - 1
    floats: FloatKind = "fp32"
    shown: str | None = None
    for index, layer_spec in enumerate(spec.layers):
        first_only = index == last and spec.reads_first_token_only
        values = graph.cast(values, f"layer.{index}.input", floats, layer_spec.states)
        shown = shown and graph.cast(shown, f"layer.{index}.shown", floats, layer_spec.states)
        floats = layer_spec.states
        with graph.computing_in(floats):
            values = layer(graph, index, layer_spec, weights, values, layout, first_only, shown)
        layout, shown = replace(layout, shown=None), None
        if layer_spec.token_rule and parts:
            left = reduce_tokens(graph, index, layer_spec, weights, values, layout, parts)
            if shows_tokens(layer_spec.token_rule):
                left, shown = replace(left, layout=replace(left.layout, shown=layout)), values
            values, layout, parts = left.values, left.layout, left.parts
    values = graph.cast(values, "layers.output", floats, "fp32")
    values = norm(graph, "final_norm", "final_norm", spec.final_norm, weights, values)
    pooled = values if spec.reads_first_token_only else row_means(graph, layout, values, "pooled")
    head(graph, spec.head, weights, pooled)
    return _model(graph, spec)


def embeddings(graph: Graph, spec: EmbeddingsSpec, weights: Weights, layout: Layout) -> str:
    """Write the embeddings of packed tokens, ``[T, width]``."""
    ids = _packed_ids(graph, layout, "input_ids")
    values = table(graph, "embeddings.tokens", "embeddings.tokens", spec.tokens, weights, ids)
    if spec.positions:
        found = table(
            graph, "embeddings.positions", "embeddings.positions", spec.positions, weights, layout.positions,
            first_row=spec.position_offset,
        )  # fmt: skip
        values = graph.node("Add", [values, found], "embeddings.placed")
    if spec.segments:
        # RoBERTa has one segment, and some consumers give its graph no third input.
        ids = _packed_ids(graph, layout, "token_type_ids") if spec.segments.rows > 1 else graph.int_scalar(0)
        found = table(graph, "embeddings.segments", "embeddings.segments", spec.segments, weights, ids)
        values = graph.node("Add", [values, found], "embeddings.segmented")
    values = norm(graph, "embeddings.norm", "embeddings.norm", spec.norm, weights, values)
    if spec.project:
        product = linear(graph, "embeddings.project", "embeddings.project", spec.project, weights, values)
        values = add_bias(graph, "embeddings.projected", product)
    return values


def input_names(spec: RankerSpec) -> list[str]:
    """Return the names of the graph's inputs; one segment alone needs no third."""
    segments = spec.embeddings.segments
    return ["input_ids", "attention_mask"] + (["token_type_ids"] if segments and segments.rows > 1 else [])


def _packed_ids(graph: Graph, layout: Layout, name: str) -> str:
    flat = graph.reshape(name, f"layout.{name}.flat", -1)
    return graph.node("Gather", [flat, layout.to_packed], f"layout.{name}")


def _model(graph: Graph, spec: RankerSpec) -> onnx.ModelProto:
    shape = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in input_names(spec)]
    width = 1 if spec.output_name == "logits" else spec.width
    output = helper.make_tensor_value_info(spec.output_name, TensorProto.FLOAT, ["batch", width])
    return graph.finish(inputs, [output], "ranker")
