"""Which tokens see which, as numbers that are added to attention's scores; mirrors `ranker.attention.visible`."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from compressor.export.graph import Graph
from compressor.export.layout import Layout, padded_positions, seen_by
from compressor.ranker.spec import AttentionPattern, WindowPattern

# Added to the score of a key that must not be seen. Padding repeats its row's first token, so a share of at most 1
# shrinks by e^-40, which is lost far behind fp32's last bit. A larger number would hide no better and cost much: from
# e^-87 on, exponentials are denormal numbers, on which softmax and products run 5 to 70 times as long.
HIDDEN_PADDING = -40.0
HIDDEN_TOKEN = -1e9  # a real token may score far above those that are seen


def attention_bias(graph: Graph, layout: Layout, pattern: AttentionPattern, first_only: bool) -> str:
    """Return what is added to the scores, ``[B, 1, S or 1, S]``: 0 where a query sees a key, much less elsewhere.

    Made once per pattern and shared by the layers that use it; mirrors `ranker.attention.visible`.
    """

    seen = seen_by(layout)
    at = f"{layout.name}.{layout.shown.name}" if layout.shown else layout.name

    def make(name: str) -> str:
        visible = graph.once(f"{seen.name}.keys", lambda at: graph.node("Unsqueeze", [seen.real, graph.ints(1, 2)], at))
        hidden = HIDDEN_PADDING
        if pattern.kind != "full":
            near = _near(graph, layout, pattern, name, first_only)
            visible = graph.node("And", [visible, near], f"{name}.visible")
            hidden = HIDDEN_TOKEN
        if layout.query_ends and not first_only:
            own = graph.once(f"{at}.own_keys", lambda name: _own_keys(graph, layout, name))
            visible = graph.node("And", [visible, own], f"{name}.of_their_own")
            hidden = HIDDEN_TOKEN
        return graph.node("Where", [visible, graph.float_scalar(0.0), graph.float_scalar(hidden)], name)

    name = f"{at}.bias." + "_".join(str(part) for part in pattern.model_dump().values())
    if graph.floats != "fp32":
        name = f"{name}.{graph.floats}"
    is_square = pattern.kind != "full" or layout.query_ends is not None
    return graph.once(f"{name}.first" if is_square and first_only else name, make)


def _near(graph: Graph, layout: Layout, pattern: AttentionPattern, name: str, first_only: bool) -> str:
    asking, short = (_short_positions(graph, each) for each in (layout, seen_by(layout)))
    if first_only:
        asking = graph.node("Gather", [short, graph.ints(0)], f"{name}.asking", axis=1)
    rows = graph.node("Unsqueeze", [asking, graph.ints(1, 3)], f"{name}.rows")  # [B, 1, S or 1, 1]
    columns = graph.node("Unsqueeze", [short, graph.ints(1, 2)], f"{name}.columns")  # [B, 1, 1, S]
    distance = graph.node("Sub", [rows, columns], f"{name}.distance")
    if isinstance(pattern, WindowPattern):
        distance = graph.node("Abs", [distance], f"{name}.magnitude")
        return graph.node("LessOrEqual", [distance, _int32(graph, pattern.reach)], f"{name}.near")
    return graph.node("GreaterOrEqual", [distance, _int32(graph, 0)], f"{name}.near")


def _short_positions(graph: Graph, layout: Layout) -> str:
    """Return each slot's position, int32 ``[B, S]``, of which S² differences are taken; made once."""
    positions = padded_positions(graph, layout)
    return graph.once(f"{layout.name}.short_positions", lambda at: graph.node("Cast", [positions], at, to=6))


def query_ends(graph: Graph, layout: Layout, separator_id: int) -> str:
    """Return in which column each row's query is over, int64 ``[B, 1]``: the one behind its first separator."""
    name = "query"
    is_separator = graph.node("Equal", ["input_ids", graph.int_scalar(separator_id)], f"{name}.is_separator")
    separates = graph.node("And", [is_separator, layout.real], f"{name}.separates")
    counted = graph.node("Cast", [separates], f"{name}.counted", to=TensorProto.INT64)
    n_before = graph.node("CumSum", [counted, graph.int_scalar(1)], f"{name}.n_before", exclusive=1)
    is_before = graph.node("Equal", [n_before, graph.int_scalar(0)], f"{name}.is_before")
    inside = graph.node("And", [is_before, layout.real], f"{name}.inside")
    marks = graph.node("Cast", [inside], f"{name}.marks", to=TensorProto.INT64)
    return graph.node("ReduceSum", [marks, graph.ints(1)], f"{name}.ends", keepdims=1)


def _own_keys(graph: Graph, layout: Layout, name: str) -> str:
    """Return which keys are no secret to an asking token, bool ``[B, 1, S, S]``: to a query's, the query's alone."""
    others = graph.node("Not", [_isolated(graph, layout)], f"{name}.others")
    rows = graph.node("Unsqueeze", [others, graph.ints(1, 3)], f"{name}.rows")  # [B, 1, S, 1]
    seen = _isolated(graph, seen_by(layout))
    keys = graph.node("Unsqueeze", [seen, graph.ints(1, 2)], f"{name}.keys")  # [B, 1, 1, S]
    return graph.node("Or", [rows, keys], name)


def _isolated(graph: Graph, layout: Layout) -> str:
    """Return which slots hold tokens of an isolated query, bool ``[B, S]``; made once."""

    def make(name: str) -> str:
        end = graph.node("Squeeze", [layout.columns], f"{name}.n_columns")
        columns = graph.node("Range", [graph.int_scalar(0), end, graph.int_scalar(1)], f"{name}.columns")
        begun = graph.node("Greater", [columns, graph.int_scalar(0)], f"{name}.begun")
        going_on = graph.node("Less", [columns, layout.query_ends or ""], f"{name}.going_on")
        return graph.node("And", [begun, going_on], name)

    return graph.once(f"{layout.name}.isolated", make)


def _int32(graph: Graph, value: int) -> str:
    return graph.weight(f"int32.{value}", np.array(value, dtype=np.int32))
