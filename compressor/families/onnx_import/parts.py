"""Recognizes the parts that rankers are made of in a float graph: linears, norms, sums, activations, lookups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from compressor.families.onnx_import.graph import Graph, attribute
from compressor.ranker.spec import Activation


@dataclass(frozen=True, kw_only=True)
class LinearPart:
    """``y = x W + b`` over the last axis.

    Attributes:
        values: the name of x.
        weight: ``[inputs, outputs]``, in the file's precision.
        bias: ``[outputs]``, or None.
    """

    values: str
    weight: np.ndarray
    bias: np.ndarray | None = None

    def biased(self, bias: np.ndarray | None) -> LinearPart:
        """Return the linear with a bias that another node adds."""
        if bias is None:
            return self
        total = bias.reshape(-1) if self.bias is None else self.bias + bias.reshape(-1)
        return LinearPart(values=self.values, weight=self.weight, bias=total)


@dataclass(frozen=True, kw_only=True)
class NormPart:
    """Layer norm of a sum.

    Attributes:
        values: the names of what is summed; each may be a sum itself, see `terms`.
        bias: what fused operators add to the sum.
        weight: ``[width]``.
        shift: ``[width]``, or None.
        epsilon: added to the variance.
    """

    values: list[str]
    bias: np.ndarray | None
    weight: np.ndarray
    shift: np.ndarray | None
    epsilon: float


def linear(graph: Graph, value: str) -> LinearPart | None:
    """Recognize a value as a linear: MatMul or Gemm with a constant matrix, scaled and biased by constants."""
    node = graph.producer(value)
    if node is None:
        return None
    match node.op_type:
        case "Reshape":  # exporters flatten [B, S, width] to [B * S, width] around a Gemm
            return linear(graph, node.input[0])
        case "MatMul" | "FusedMatMul":
            return _matmul(graph, node)
        case "Gemm":
            return _gemm(graph, node)
        case "Add":
            return _with_bias(graph, node)
        case "Mul":
            return _with_scale(graph, node)
    return None


def is_linear(graph: Graph, node: NodeProto) -> bool:
    """Whether a node's result is a linear."""
    return linear(graph, node.output[0]) is not None


def _matmul(graph: Graph, node: NodeProto) -> LinearPart | None:
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim != 2 or graph.is_constant(node.input[0]):
        return None
    if any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        return None
    return LinearPart(values=unshaped(graph, node.input[0]), weight=_oriented(node, weight))


def _gemm(graph: Graph, node: NodeProto) -> LinearPart | None:
    weight = graph.constant(node.input[1])
    if weight is None or graph.is_constant(node.input[0]) or attribute(node, "transA", 0):
        return None
    part = LinearPart(values=unshaped(graph, node.input[0]), weight=_oriented(node, weight))
    if len(node.input) < 3 or not node.input[2]:
        return part
    bias = graph.constant(node.input[2])
    if bias is None or bias.size != part.weight.shape[1]:
        return None
    return part.biased(bias * np.float32(attribute(node, "beta", 1.0)))


def _oriented(node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """Return the matrix ``[inputs, outputs]`` that a product multiplies with."""
    alpha = attribute(node, "alpha", 1.0)
    oriented = weight.T if attribute(node, "transB", 0) else weight
    return oriented if alpha == 1 else oriented * np.float32(alpha)


def _with_bias(graph: Graph, node: NodeProto) -> LinearPart | None:
    split = graph.constant_operand(node)
    part = linear(graph, split[0]) if split else None
    if split is None or part is None or part.bias is not None or split[1].size != part.weight.shape[1]:
        return None
    return part.biased(split[1])


def _with_scale(graph: Graph, node: NodeProto) -> LinearPart | None:
    split = graph.constant_operand(node)
    part = linear(graph, split[0]) if split else None
    if split is None or part is None or part.bias is not None or split[1].size not in (1, part.weight.shape[1]):
        return None
    return LinearPart(values=part.values, weight=part.weight * split[1].reshape(-1))


def unshaped(graph: Graph, value: str) -> str:
    """Return the value before reshapes."""
    while (node := graph.producer(value)) is not None and node.op_type == "Reshape":
        value = node.input[0]
    return graph.source(value)


def norm(graph: Graph, value: str) -> NormPart | None:
    """Recognize a value as a layer norm: the operator, the fused form with its residual, or its single steps."""
    node = graph.producer(unshaped(graph, value))
    if node is None:
        return None
    if node.op_type == "LayerNormalization":
        weight = graph.constant(node.input[1])
        shift = graph.constant(node.input[2]) if len(node.input) > 2 else None
        if weight is None or attribute(node, "axis", -1) not in (-1, 2):
            return None
        epsilon = attribute(node, "epsilon", 1e-5)
        return NormPart(values=[node.input[0]], bias=None, weight=weight, shift=shift, epsilon=tidy(epsilon))
    if node.op_type == "SkipLayerNormalization":
        weight, shift, bias = (graph.constant(name) for name in [*node.input[2:], "", ""][:3])
        if weight is None:
            return None
        epsilon = attribute(node, "epsilon", 1e-12)
        return NormPart(values=list(node.input[:2]), bias=bias, weight=weight, shift=shift, epsilon=tidy(epsilon))
    return _stepwise_norm(graph, node)


def _stepwise_norm(graph: Graph, node: NodeProto) -> NormPart | None:
    """Recognize ``(x - mean) / sqrt(mean((x - mean)²) + epsilon) × weight + shift``."""
    shift = None
    if node.op_type == "Add":
        split = graph.constant_operand(node)
        scaled = graph.producer(split[0]) if split else None
        if split is None or scaled is None:
            return None
        shift, node = split[1].reshape(-1), scaled
    split = graph.constant_operand(node) if node.op_type == "Mul" else None
    quotient = graph.producer(split[0]) if split else None
    if split is None or quotient is None or quotient.op_type not in ("Div", "Mul"):
        return None
    centered, root = map(graph.producer, quotient.input[:2])
    if centered is None or centered.op_type != "Sub":
        centered, root = root, centered
    if root is not None and root.op_type == "Reciprocal":
        root = graph.producer(root.input[0])
    if centered is None or root is None or (centered.op_type, root.op_type) != ("Sub", "Sqrt"):
        return None
    variance = graph.producer(root.input[0])
    steadied = graph.constant_operand(variance) if variance is not None and variance.op_type == "Add" else None
    if steadied is None or steadied[1].size != 1:
        return None
    return NormPart(
        values=[centered.input[0]],
        bias=None,
        weight=split[1].reshape(-1),
        shift=shift,
        epsilon=tidy(float(steadied[1].reshape(()))),
    )


def tidy(epsilon: float) -> float:
    """Return the short decimal that a float32 attribute stands for: 1e-12 is stored as 9.999999960041972e-13."""
    return float(np.format_float_scientific(np.float32(epsilon), unique=True, trim="-"))


def terms(graph: Graph, *values: str) -> list[str]:
    """Return the summands of values; a linear with its bias is one, and so is a norm with its shift."""
    found = []
    for value in (unshaped(graph, name) for name in values):
        node = graph.producer(value)
        if node is not None and node.op_type == "Add" and _is_plain_sum(graph, node):
            found += terms(graph, *node.input)
        else:
            found.append(value)
    return found


def _is_plain_sum(graph: Graph, node: NodeProto) -> bool:
    split = graph.constant_operand(node)
    if split is None:
        return True
    summed = graph.producer(split[0])  # a constant beside lookups is a folded lookup, elsewhere it is a bias or shift
    return summed is not None and summed.op_type in ("Gather", "Add") and not is_linear(graph, node)


_ACTIVATIONS: dict[str, Activation] = {
    "Erf": "gelu", "Gelu": "gelu", "BiasGelu": "gelu", "FastGelu": "gelu_tanh", "Tanh": "tanh", "Relu": "relu",
    "Sigmoid": "silu",
}  # fmt: skip


def activation(graph: Graph, value: str) -> tuple[Activation, LinearPart] | None:
    """Recognize a value as an activation of a linear; the linear gets the bias that fused activations add."""
    top = graph.producer(unshaped(graph, value))
    if top is None or is_linear(graph, top):
        return None
    if top.op_type == "FusedGemm":
        fused, part = attribute(top, "activation", b"").decode(), _gemm(graph, top)
        return (_ACTIVATIONS[fused], part) if part and fused in ("Relu", "Tanh") else None
    near = graph.nearest(top.output[0], lambda node: node.op_type in _ACTIVATIONS or is_linear(graph, node))
    functions = [node for node in near if node.op_type in _ACTIVATIONS]
    linears = [node.output[0] for node in near if node.op_type not in _ACTIVATIONS]  # GELU is x times a function of x
    if len(functions) != 1:
        return None
    function = functions[0]
    behind = graph.nearest(function.input[0], lambda node: is_linear(graph, node))
    part = linear(graph, behind[0].output[0]) if len(behind) == 1 else None
    if part is None or any(name != behind[0].output[0] for name in linears):
        return None
    if function.op_type in ("BiasGelu", "FastGelu") and len(function.input) > 1:
        part = part.biased(graph.constant(function.input[1]))
    return _function(function, is_inner=top.output[0] != function.output[0]), part


def _function(node: NodeProto, *, is_inner: bool) -> Activation:
    """Name the activation; a tanh inside a product is the approximation of GELU."""
    if node.op_type == "Gelu" and attribute(node, "approximate", b"none") == b"tanh":
        return "gelu_tanh"
    return "gelu_tanh" if node.op_type == "Tanh" and is_inner else _ACTIVATIONS[node.op_type]
