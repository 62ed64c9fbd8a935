"""Dynamic and static int8 graphs rewritten as float graphs: weight × scale, activations as they were before rounding.

Each node is rewritten by itself, so no pattern over several nodes can be missed:

    DynamicQuantizeLinear(x)          ->  x, scale 1, zero point 0
    QuantizeLinear(x)                 ->  x
    DequantizeLinear(constant)        ->  (values - zero point) × scale
    MatMulInteger(x, W, ., zero)      ->  MatMul(x, W - zero); the Mul by scales that follows stays in the graph

and the same for ONNX Runtime's fused forms. The result runs in ONNX Runtime and is what the import is checked against.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from compressor.families.onnx_import.graph import Graph, NotRecognizedError, attribute

_FOREIGN = {"MatMulNBits", "QLinearMatMul", "QGemm", "MatMulBnb4", "QMoE", "ConvInteger"}


def dequantized(model: ModelProto, path: Path) -> ModelProto:
    """Return a float model that computes what this one rounds; the same object where nothing is quantized.

    Raises:
        NotRecognizedError: it is quantized in a way that is not int8 weight × scale.
    """
    foreign = sorted({node.op_type for node in model.graph.node} & _FOREIGN)
    if foreign:
        allowed = "float weights, or int8 of MatMulInteger, DequantizeLinear and their fused forms"
        raise NotRecognizedError(path, "quantization", " and ".join(foreign), allowed)
    if not any(node.op_type in _REWRITES for node in model.graph.node):
        return model
    rewriter = _Rewriter(Graph(model, path))
    for node in model.graph.node:
        rewriter.add(node)
    return rewriter.model()


class _Rewriter:
    """Collects the rewritten nodes and their constants."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}

    def add(self, node: NodeProto) -> None:
        rewrite = _REWRITES.get(node.op_type)
        if rewrite:
            rewrite(self, node)
        elif not all(name in self.tensors for name in node.output):
            self.nodes.append(node)

    def emit(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: object) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))

    def store(self, name: str, array: np.ndarray) -> str:
        self.tensors[name] = array
        return name

    def weight(self, node: NodeProto, weight: str, zero: str, scale: str = "") -> str:
        """Store the float values of a quantized constant ``[inputs, outputs]`` and return its name."""
        values = self.graph.constant(weight)
        if values is None:
            raise NotRecognizedError(self.graph.path, weight, "a quantized product of two computed values", "a weight")
        return self.store(f"{weight}.float.{node.output[0]}", _float(self.graph, values, scale, zero, axis=1))

    def product(self, node: NodeProto, values: str, weight: str, bias: str) -> None:
        output = node.output[0]
        if bias:
            self.emit("MatMul", [values, weight], f"{output}.product")
            self.emit("Add", [f"{output}.product", bias], output)
        else:
            self.emit("MatMul", [values, weight], output)

    def model(self) -> ModelProto:
        source = self.graph.model
        model = ModelProto()
        model.CopyFrom(ModelProto(ir_version=source.ir_version, opset_import=source.opset_import))
        model.graph.name = "dequantized"
        model.graph.input.extend(source.graph.input)
        model.graph.output.extend(source.graph.output)
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(source.graph.initializer)
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.tensors.items())
        graph = Graph(model, self.graph.path)
        return graph.part([graph.output])


def _float(graph: Graph, values: np.ndarray, scale: str, zero: str, axis: int) -> np.ndarray:
    """Return ``(values - zero) × scale`` in float32; a scale or zero point of many elements lies along ``axis``."""

    def spread(name: str, default: float) -> np.ndarray:
        stored = graph.constant(name)
        array = np.full((), default, np.float32) if stored is None else stored.astype(np.float32)
        if array.size <= 1:
            return array.reshape(())
        shape = [1] * values.ndim
        shape[axis] = array.size
        return array.reshape(shape)

    return ((values.astype(np.float32) - spread(zero, 0)) * spread(scale, 1)).astype(np.float32)


def _inputs(node: NodeProto, count: int) -> list[str]:
    return [*node.input, *[""] * (count - len(node.input))]


def _dynamic_quantize(rewriter: _Rewriter, node: NodeProto) -> None:
    values, scale, zero = _inputs_of_outputs(node)
    rewriter.emit("Identity", [node.input[0]], values)
    rewriter.store(scale, np.ones((), np.float32))
    rewriter.store(zero, np.zeros((), np.uint8))


def _inputs_of_outputs(node: NodeProto) -> list[str]:
    return [name or f"{node.output[0]}.unused.{index}" for index, name in enumerate(node.output)]


def _quantize(rewriter: _Rewriter, node: NodeProto) -> None:
    rewriter.emit("Identity", [node.input[0]], node.output[0])


def _dequantize(rewriter: _Rewriter, node: NodeProto) -> None:
    values, scale, zero = _inputs(node, 3)
    graph, output = rewriter.graph, node.output[0]
    array = graph.constant(values)
    source = graph.producer(values)
    if array is not None:
        rewriter.store(output, _float(graph, array, scale, zero, attribute(node, "axis", 1)))
    elif source is not None and source.op_type == "Gather" and graph.is_constant(source.input[0]):
        table = graph.constant(source.input[0])
        assert table is not None  # noqa: S101 - is_constant said so
        float_table = rewriter.store(f"{output}.table", _float(graph, table, scale, zero, axis=table.ndim - 1))
        rewriter.emit("Gather", [float_table, source.input[1]], output, axis=attribute(source, "axis", 0))
    else:
        rewriter.emit("Identity", [values], output)


def _matmul_integer(rewriter: _Rewriter, node: NodeProto) -> None:
    values, weight, _, zero = _inputs(node, 4)
    rewriter.emit("MatMul", [values, rewriter.weight(node, weight, zero)], node.output[0])


def _matmul_integer_to_float(rewriter: _Rewriter, node: NodeProto) -> None:
    values, weight, _, scale, _, zero, bias = _inputs(node, 7)
    rewriter.product(node, values, rewriter.weight(node, weight, zero, scale), bias)


def _dynamic_quantize_matmul(rewriter: _Rewriter, node: NodeProto) -> None:
    values, weight, scale, zero, bias = _inputs(node, 5)
    rewriter.product(node, values, rewriter.weight(node, weight, zero, scale), bias)


def _q_attention(rewriter: _Rewriter, node: NodeProto) -> None:
    values, weight, bias, _, scale, mask, _, zero, _ = _inputs(node, 9)
    inputs = [values, rewriter.weight(node, weight, zero, scale), bias, mask]
    heads = attribute(node, "num_heads")
    rewriter.emit("Attention", inputs, node.output[0], domain="com.microsoft", num_heads=heads)


def _q_embed_layer_normalization(rewriter: _Rewriter, node: NodeProto) -> None:
    ids, segments, *tables = _inputs(node, 18)
    values, scales, zeros = tables[:5], tables[6:11], tables[11:16]
    names = []
    for name, scale, zero in zip(values, scales, zeros, strict=True):
        array = rewriter.graph.constant(name)
        float_name = f"{name}.float.{node.output[0]}" if array is not None else ""
        if array is not None:
            rewriter.store(float_name, _float(rewriter.graph, array, scale, zero, axis=array.ndim - 1))
        names.append(float_name)
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    inputs = [ids, segments, *names, tables[5]]
    while not inputs[-1]:
        inputs.pop()
    rewriter.nodes.append(
        helper.make_node("EmbedLayerNormalization", inputs, node.output, domain="com.microsoft", **attributes)
    )


_REWRITES: dict[str, Callable[[_Rewriter, NodeProto], None]] = {
    "DynamicQuantizeLinear": _dynamic_quantize,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "MatMulInteger": _matmul_integer,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "QAttention": _q_attention,
    "QEmbedLayerNormalization": _q_embed_layer_normalization,
}
