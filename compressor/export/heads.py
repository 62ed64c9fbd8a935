"""Scoring heads; mirrors `ranker/heads.py`."""

from __future__ import annotations

from compressor.export.graph import Graph
from compressor.export.layers import activate, norm
from compressor.export.linears import Product, Weights, add_bias, linear
from compressor.ranker.spec import ClassifierHead, SimilarityHead

_LEAST_LENGTH = 1e-12  # as torch.nn.functional.normalize


def head(graph: Graph, spec: ClassifierHead | SimilarityHead, weights: Weights, pooled: str) -> str:
    """Write the head, ``[B, width] -> logits [B, 1]`` or unit vectors ``embedding [B, width]``."""
    if isinstance(spec, ClassifierHead):
        return _classifier(graph, spec, weights, pooled)
    length = graph.node("ReduceL2", [pooled], "head.length", axes=[-1], keepdims=1)
    bounded = graph.node("Max", [length, graph.float_scalar(_LEAST_LENGTH)], "head.bounded_length")
    return graph.node("Div", [pooled, bounded], "embedding")


def _classifier(graph: Graph, spec: ClassifierHead, weights: Weights, pooled: str) -> str:
    product = Product(value=pooled, columns=spec.output.inputs, width=spec.output.inputs, bias=None)
    if spec.dense:
        product = linear(graph, "head.dense", "head.dense", spec.dense, weights, pooled)
    if spec.activation:
        values = activate(graph, "head.activation", spec.activation, product)
    else:
        values = add_bias(graph, "head.dense.biased", product)
    values = norm(graph, "head.norm", "head.norm", spec.norm, weights, values)
    return graph.node(
        "Identity",
        [add_bias(graph, "head.score", linear(graph, "head.output", "head.output", spec.output, weights, values))],
        "logits",
    )
