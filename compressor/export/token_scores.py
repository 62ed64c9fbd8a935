"""Scores by which a token rule chooses, as graph; mirrors `ranker/token_scores.py`.

The layer's attention stands in the graph by its parts, so that its shares, or its queries and keys, are only looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from compressor.export.attention import attention_shares, queries_and_keys
from compressor.export.graph import Graph
from compressor.export.layout import Layout, pad
from compressor.ranker.spec import AttentionSpec, FullPattern, PageRankScorer
from compressor.ranker.token_rule_spec import AttentionShares
from compressor.ranker.token_scores import STANDARDIZED_EPSILON


@dataclass(frozen=True, kw_only=True, slots=True)
class RowParts:
    """Names of the values that say what the tokens of a batch are in their rows.

    Attributes:
        document: bool ``[T]``, true for tokens that may go.
        n_asking: int64 ``[B, 1]``, a row's tokens before its first separator, at least one.
        start: int64 ``[B]``, the column in which its document starts.
        query_terms: bool ``[T]``, document tokens whose id is one of what asks; None where nobody wants to know.
    """

    document: str
    n_asking: str
    start: str
    query_terms: str | None = None

    def of_kept(self, graph: Graph, kept: str, name: str) -> RowParts:
        """Write the parts of the tokens that stay, int64 ``[T']``."""
        document = graph.node("Gather", [self.document, kept], f"{name}.document")
        terms = self.query_terms and graph.node("Gather", [self.query_terms, kept], f"{name}.query_terms")
        return replace(self, document=document, query_terms=terms)


def token_scores(
    graph: Graph,
    name: str,
    attention: str,
    spec: AttentionSpec,
    scorer: AttentionShares,
    layout: Layout,
    parts: RowParts,
) -> str:
    """Write the scores of all tokens, ``[B, S]``.

    Args:
        graph: the graph under construction.
        name: what the scores are called.
        attention: what the layer's attention is called.
        spec: its shape.
        scorer: what judges.
        layout: where the tokens stand.
        parts: what they are.
    """
    is_walk = isinstance(scorer, PageRankScorer)
    n_asking = _most_asking(graph, name, parts)
    paid = _paid(graph, name, attention, spec, layout, None if is_walk else n_asking)  # [B, S or asking, S]
    asking = _asking_shares(graph, name, parts, layout.columns if is_walk else n_asking)  # [B, 1, S or asking]
    if not isinstance(scorer, PageRankScorer):
        scores = graph.node("MatMul", [asking, paid], f"{name}.row")
        return graph.node("Squeeze", [scores, graph.ints(1)], name)
    start = graph.node("Mul", [asking, graph.float_scalar(scorer.restart)], f"{name}.restart")
    scores = asking
    for step in range(scorer.steps):
        moved = graph.node("MatMul", [scores, paid], f"{name}.moved.{step}")
        damped = graph.node("Mul", [moved, graph.float_scalar(1 - scorer.restart)], f"{name}.damped.{step}")
        scores = graph.node("Add", [damped, start], f"{name}.step.{step}")
    return graph.node("Squeeze", [scores, graph.ints(1)], name)


def learned_scores(
    graph: Graph, name: str, direction: np.ndarray, match: np.ndarray, values: str, layout: Layout, parts: RowParts
) -> str:
    """Write what learned vectors make of the states that a layer gave, ``[B, S]``.

    Args:
        graph: the graph under construction.
        name: what the scores are called.
        direction, match: the vectors, float32 ``[W]``.
        values: packed states ``[T, W]``.
        layout: where the tokens stand.
        parts: what they are.
    """
    one, none = np.ones(len(direction), np.float32), np.zeros(len(direction), np.float32)
    inputs = [values, graph.weight(f"{name}.gain", one), graph.weight(f"{name}.bias", none)]
    packed = graph.node("LayerNormalization", inputs, f"{name}.standardized", axis=-1, epsilon=STANDARDIZED_EPSILON)
    states = pad(graph, layout, packed, f"{name}.states")  # [B, S, W]
    n_asking = _most_asking(graph, name, parts)
    first = graph.node("Slice", [states, graph.ints(0), n_asking, graph.ints(1)], f"{name}.asking_states")
    asking = graph.node("MatMul", [_asking_shares(graph, name, parts, n_asking), first], f"{name}.question")
    met = graph.node("Mul", [asking, graph.weight(f"{name}.match", match)], f"{name}.met")
    wanted = graph.node("Add", [met, graph.weight(f"{name}.direction", direction)], f"{name}.wanted")  # [B, 1, W]
    column = graph.node("Transpose", [wanted], f"{name}.column", perm=[0, 2, 1])
    return graph.node("Squeeze", [graph.node("MatMul", [states, column], f"{name}.product"), graph.ints(2)], name)


def _most_asking(graph: Graph, name: str, parts: RowParts) -> str:
    return graph.reshape(
        graph.node("ReduceMax", [parts.n_asking], f"{name}.most_asking", keepdims=0), f"{name}.n_asking", 1
    )


def _paid(graph: Graph, name: str, attention: str, spec: AttentionSpec, layout: Layout, n_asking: str | None) -> str:
    """Write what tokens pay to real tokens, heads averaged: all of a row, or the first so many, ``[B, asking, S]``."""
    if isinstance(spec.pattern, FullPattern):
        shares = f"{attention}.mixed.shares"  # [B, H, S, S]
        shares = shares if n_asking is None else _first(graph, f"{name}.asking_shares", shares, n_asking)
    else:
        query, keys = queries_and_keys(graph, attention, spec)
        is_cut_after = n_asking is not None and layout.query_ends is not None  # who sees what has a row for all tokens
        if n_asking is not None and not is_cut_after:
            query = _first(graph, f"{name}.asking_queries", query, n_asking)
        shares = attention_shares(
            graph, f"{name}.paid", query, keys, FullPattern(), 1 / math.sqrt(spec.head_width), layout, False
        )
        if n_asking is not None and is_cut_after:
            shares = _first(graph, f"{name}.asking_shares", shares, n_asking)
    return graph.node("ReduceMean", [shares], f"{name}.mean_paid", axes=[1], keepdims=0)


def _first(graph: Graph, name: str, by_head: str, n_asking: str) -> str:
    return graph.node("Slice", [by_head, graph.ints(0), n_asking, graph.ints(2)], name)


def _asking_shares(graph: Graph, name: str, parts: RowParts, width: str) -> str:
    """Write equal shares for each row's asking tokens, 0 elsewhere, float32 ``[B, 1, width]``."""
    end = graph.node("Squeeze", [width], f"{name}.width")
    columns = graph.node("Range", [graph.int_scalar(0), end, graph.int_scalar(1)], f"{name}.columns")
    marks = graph.node(
        "Cast", [graph.node("Less", [columns, parts.n_asking], f"{name}.asks")], f"{name}.marks", to=TensorProto.FLOAT
    )
    counts = graph.node("Cast", [parts.n_asking], f"{name}.counts", to=TensorProto.FLOAT)
    return graph.node(
        "Unsqueeze", [graph.node("Div", [marks, counts], f"{name}.shares"), graph.ints(1)], f"{name}.asking"
    )
