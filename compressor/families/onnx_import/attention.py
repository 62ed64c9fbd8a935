"""Recognizes multi-head attention: softmax(Q Kᵀ) V from single steps, or one of the fused operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from compressor.families.onnx_import.graph import Graph, attribute
from compressor.families.onnx_import.parts import LinearPart, is_linear, linear, unshaped


@dataclass(frozen=True, kw_only=True)
class AttentionPart:
    """The linears of one attention and its number of heads; all three read ``values``."""

    values: str
    heads: int
    query: LinearPart
    key: LinearPart
    value: LinearPart


def attention(graph: Graph, value: str) -> AttentionPart | str:
    """Recognize a value as the mixed heads ``[B, S, heads * head_width]``, or say what was missing."""
    cores = graph.nearest(value, lambda node: _is_core(graph, node))
    if len(cores) != 1:
        return f"{len(cores)} attention products, expected 1"
    core = cores[0]
    if core.op_type == "MatMul":
        return _stepwise(graph, core)
    if core.op_type == "Attention" and core.domain == "com.microsoft":
        return _packed(graph, core)
    return _projected(graph, core.input[:3], attribute(core, "num_heads") or attribute(core, "q_num_heads"), core)


def _is_core(graph: Graph, node: NodeProto) -> bool:
    if node.op_type in ("Attention", "MultiHeadAttention"):
        return True
    return node.op_type in ("MatMul", "FusedMatMul") and not any(graph.is_constant(name) for name in node.input[:2])


def _stepwise(graph: Graph, mixing: NodeProto) -> AttentionPart | str:
    """``mixing`` is the product of attention weights and values."""
    near = graph.nearest(mixing.input[0], lambda node: node.op_type == "Softmax" or _is_core(graph, node))
    if [node.op_type for node in near] != ["Softmax"]:
        return "a product of two computed values without a softmax before it"
    products = graph.nearest(near[0].input[0], lambda node: _is_core(graph, node))
    if len(products) != 1:
        return f"{len(products)} products of queries and keys, expected 1"
    return _projected(graph, [*products[0].input[:2], mixing.input[1]], None, mixing)


def _projected(graph: Graph, values: list[str], heads: int | None, core: NodeProto) -> AttentionPart | str:
    """Find the three linears behind queries, keys and values."""
    parts = []
    for name, value in zip(("queries", "keys", "values"), values, strict=True):
        linears = graph.nearest(value, lambda node: is_linear(graph, node))
        part = linear(graph, linears[0].output[0]) if len(linears) == 1 else None
        if part is None:
            return f"{len(linears)} linears behind the {name}, expected 1"
        parts.append(part)
    if core.op_type == "MultiHeadAttention" and len(core.input) > 3:
        bias = graph.constant(core.input[3])
        if bias is not None:
            parts = [part.biased(piece) for part, piece in zip(parts, np.split(bias, 3), strict=True)]
    heads = heads or _heads(graph, values[2], parts[2].weight.shape[1])
    if heads is None:
        return "no Reshape to [batch, sequence, heads, head width] behind the values"
    return _checked(heads, parts)


def _packed(graph: Graph, core: NodeProto) -> AttentionPart | str:
    """Split the fused operator's one matrix ``[width, 3 * width]``."""
    weight, bias = graph.constant(core.input[1]), graph.constant(core.input[2])
    if weight is None or bias is None or attribute(core, "qkv_hidden_sizes"):
        return "an Attention operator with computed weights or unequal widths"
    values = unshaped(graph, core.input[0])
    pieces = zip(np.split(weight, 3, axis=1), np.split(bias, 3), strict=True)
    return _checked(attribute(core, "num_heads"), [LinearPart(values=values, weight=w, bias=b) for w, b in pieces])


def _checked(heads: int, parts: list[LinearPart]) -> AttentionPart | str:
    query, key, value = parts
    if not query.values == key.values == value.values:
        return "queries, keys and values of different inputs"
    widths = {part.weight.shape[1] for part in parts}
    if len(widths) != 1 or widths.pop() % heads:
        return f"queries, keys and values whose widths do not make {heads} equal heads"
    return AttentionPart(values=query.values, heads=heads, query=query, key=key, value=value)


def _heads(graph: Graph, value: str, width: int) -> int | None:
    """Read the number of heads from the Reshape that splits a projection."""
    for node in graph.nearest(value, lambda node: node.op_type == "Reshape"):
        tail = _tail(graph, node.input[1], 2)
        if tail is not None and tail[0] > 0:
            return tail[0]
        if tail is not None and tail[1] > 0 and width % tail[1] == 0:
            return width // tail[1]
    return None


def _tail(graph: Graph, shape: str, count: int) -> tuple[int, ...] | None:
    """Return the last entries of a shape whose first entries may be computed."""
    array = graph.constant(shape)
    node = graph.producer(shape)
    entries: list[int] = []
    if array is not None:
        entries = [int(entry) for entry in array.reshape(-1)]
    elif node is not None and node.op_type == "Concat":
        for name in node.input:
            piece = graph.constant(name)
            entries = [] if piece is None else [*entries, *(int(entry) for entry in piece.reshape(-1))]
    return tuple(entries[-count:]) if len(entries) >= count else None
