"""Norms, activations, feed-forwards and whole layers over packed tokens; mirrors `ranker/layers.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from compressor.export.attention import attention, attention_keys
from compressor.export.graph import FUSED, Graph
from compressor.export.layout import Layout, first_tokens
from compressor.export.linears import Product, Weights, add_bias, lifted, linear, lowered
from compressor.ranker.spec import Activation, FeedForwardSpec, LayerSpec, LinearMapSpec, MergeRule, NormSpec


def norm(graph: Graph, name: str, key: str, spec: NormSpec | None, weights: Weights, values: str) -> str:
    """Norm the last axis; None is the identity."""
    if spec is None:
        return values
    gain = graph.weight(f"{name}.weight", weights[f"{key}.weight"].numpy())
    if spec.kind == "layer":
        # Without a bias ONNX Runtime 1.18 aborts the process while it fuses the norm with an addition before it.
        bias = weights[f"{key}.bias"].numpy() if spec.bias else np.zeros(len(weights[f"{key}.weight"]), np.float32)
        inputs = [values, gain, graph.weight(f"{name}.bias", bias)]
        return graph.node("LayerNormalization", inputs, name, axis=-1, epsilon=spec.epsilon)
    if graph.fused:  # ONNX Runtime keeps this op of its own in the standard domain
        return graph.node("SimplifiedLayerNormalization", [values, gain], name, axis=-1, epsilon=spec.epsilon)
    if graph.floats != "fp32":  # squares overflow in half precision, and this is the one norm that is written out
        return _in_fp32(graph, name, values, lambda wide: norm(graph, f"{name}.fp32", key, spec, weights, wide))
    squares = graph.node("Mul", [values, values], f"{name}.squares")
    mean = graph.node("ReduceMean", [squares], f"{name}.mean", axes=[-1], keepdims=1)
    root = graph.node(
        "Sqrt", [graph.node("Add", [mean, graph.float_scalar(spec.epsilon)], f"{name}.sum")], f"{name}.root"
    )
    return graph.node("Mul", [graph.node("Div", [values, root], f"{name}.unit"), gain], name)


def _in_fp32(graph: Graph, name: str, values: str, write: Callable[[str], str]) -> str:
    floats = graph.floats
    wide = graph.cast(values, f"{name}.input", floats, "fp32")
    with graph.computing_in("fp32"):
        result = write(wide)
    return graph.cast(result, name, "fp32", floats)


def activate(graph: Graph, name: str, kind: Activation, product: Product) -> str:
    """Write an activation of ``product + bias``; ``gelu`` is the exact one with the error function."""
    if graph.fused and kind in ("gelu", "gelu_tanh"):
        inputs = [product.value]
        if product.bias is not None:
            inputs.append(graph.weight(f"{name}.bias", product.bias.numpy()))
        op = "FastGelu" if kind == "gelu_tanh" else "Gelu" if product.bias is None else "BiasGelu"
        return graph.node(op, inputs, name, domain=FUSED)
    values = add_bias(graph, f"{name}.biased", product)
    match kind:
        case "gelu":
            scaled = graph.node("Mul", [values, graph.float_scalar(math.sqrt(0.5))], f"{name}.scaled")
            return _half_gate(graph, name, values, graph.node("Erf", [scaled], f"{name}.erf"))
        case "gelu_tanh":
            cube = graph.node("Mul", [graph.node("Mul", [values, values], f"{name}.square"), values], f"{name}.cube")
            bent = graph.node("Mul", [cube, graph.float_scalar(0.044715)], f"{name}.bent")
            inner = graph.node("Add", [values, bent], f"{name}.inner")
            scaled = graph.node("Mul", [inner, graph.float_scalar(math.sqrt(2 / math.pi))], f"{name}.scaled")
            return _half_gate(graph, name, values, graph.node("Tanh", [scaled], f"{name}.tanh"))
        case "silu":
            if graph.fused:
                return graph.node("QuickGelu", [values], name, domain=FUSED, alpha=1.0)
            return graph.node("Mul", [values, graph.node("Sigmoid", [values], f"{name}.sigmoid")], name)
        case "relu":
            return graph.node("Relu", [values], name)
        case "tanh":
            return graph.node("Tanh", [values], name)


def _half_gate(graph: Graph, name: str, values: str, gate: str) -> str:
    half = graph.node("Mul", [values, graph.float_scalar(0.5)], f"{name}.half")
    return graph.node("Mul", [half, graph.node("Add", [gate, graph.float_scalar(1.0)], f"{name}.gate")], name)


def feed_forward(
    graph: Graph, name: str, key: str, spec: FeedForwardSpec | LinearMapSpec, weights: Weights, values: str
) -> Product:
    """Write ``down(act(up(x)))``, ``down(act(gate(x)) * up(x))`` or ``down(x)``, ``[T, width] -> [T, width]``."""
    inner = () if isinstance(spec, LinearMapSpec) else (spec.up, spec.gate)
    parts = [part for part in (*inner, spec.down) if part]
    values = lifted(graph, parts, values)
    if isinstance(spec, LinearMapSpec):
        hidden = values
    elif spec.gate:
        gate = linear(graph, f"{name}.gate", f"{key}.gate", spec.gate, weights, values)
        up = linear(graph, f"{name}.up", f"{key}.up", spec.up, weights, values)
        opened = activate(graph, f"{name}.activation", spec.activation, gate)
        hidden = graph.node("Mul", [opened, add_bias(graph, f"{name}.up.biased", up)], f"{name}.gated")
    else:
        product = linear(graph, f"{name}.up", f"{key}.up", spec.up, weights, values)
        hidden = activate(graph, f"{name}.activation", spec.activation, product)
    return lowered(graph, name, parts, linear(graph, f"{name}.down", f"{key}.down", spec.down, weights, hidden))


def layer(
    graph: Graph, index: int, spec: LayerSpec, weights: Weights, values: str, layout: Layout, first_only: bool,
    shown: str | None = None,
) -> str:  # fmt: skip
    """Write one layer, ``[T, width] -> [T, width]``, or ``-> [B, width]`` with ``first_only``.

    Values come and go in what the layer's states are computed in, and so does the graph meanwhile. ``shown``: packed
    states that attention makes keys and values of, where ``layout.shown`` says; by default the values.
    """
    name, key = f"layer.{index}", f"layers.{index}"
    residual = first_tokens(graph, layout, values, f"{name}.first") if first_only else values

    def normed(block: str, block_norm: NormSpec | None, values: str, when: str, of: str = "") -> str:
        if spec.norm_placement != when:
            return values
        return norm(graph, f"{name}.{block}_norm{of}", f"{key}.{block}_norm", block_norm, weights, values)

    def added(block: str, product: Product, residual: str) -> str:
        """As two ops: ONNX Runtime's SkipLayerNormalization takes five times as long as both together on the CPU."""
        return graph.node("Add", [add_bias(graph, f"{name}.{block}.biased", product), residual], f"{name}.{block}.sum")

    if spec.attention:
        read = normed("attention", spec.attention_norm, values, "pre")
        mixed = attention(
            graph, f"{name}.attention", f"{key}.attention", spec.attention, weights, read, layout, first_only,
            whole_keys=isinstance(spec.token_rule, MergeRule),
            shown=shown and normed("attention", spec.attention_norm, shown, "pre", ".shown"),
        )  # fmt: skip
        residual = added("attention", mixed, residual)
    values = residual = normed("attention", spec.attention_norm, residual, "post")
    if spec.ffn:
        read = normed("ffn", spec.ffn_norm, values, "pre")
        residual = added("ffn", feed_forward(graph, f"{name}.ffn", f"{key}.ffn", spec.ffn, weights, read), values)
    return normed("ffn", spec.ffn_norm, residual, "post")


def layer_keys(
    graph: Graph, index: int, spec: LayerSpec, weights: Weights, values: str, layout: Layout, first_only: bool
) -> None:
    """Write, of a layer with attention, what tokens are to others alone; ``first_only`` says who the others are."""
    name, key = f"layer.{index}.attention", f"layers.{index}.attention"
    if spec.norm_placement == "pre":
        values = norm(graph, f"{name}_norm", f"{key}_norm", spec.attention_norm, weights, values)
    if spec.attention:
        attention_keys(graph, name, key, spec.attention, weights, values, layout, first_only)
