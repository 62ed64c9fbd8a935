"""Where packed tokens stand in the padded batch, as graph values; mirrors `ranker/tokens.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from compressor.export.graph import Graph

if TYPE_CHECKING:
    from compressor.export.query_rows import QueryRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Names of the values that describe the layout of T packed tokens in B rows of S columns.

    Attributes:
        name: what the names of values begin with that are made of this layout once.
        columns: int64 ``[1]``: S.
        mask: int64 ``[B, S]``, 1 where a real token stands.
        real: bool ``[B, S]``, the same.
        to_packed: int64 ``[T]``, the padded slot (row * S + column) of each packed token.
        to_padded: int64 ``[B, S]``, the packed token of each padded slot; the row's first for padding.
        column: int64 ``[T]``, the column in which each packed token stands.
        positions: int64 ``[T]``, each token's position in its row before any token was dropped.
        first: int64 ``[B]``, the packed index of each row's first token.
        query_ends: int64 ``[B, 1]``, the column in which each row's query is over; None where queries see everything.
        query_rows: what a query is to others, in graphs that have it apart from its documents.
        shown: where the tokens stand that these may see in place of each other.
    """

    name: str
    columns: str
    mask: str
    real: str
    to_packed: str
    to_padded: str
    column: str
    positions: str
    first: str
    query_ends: str | None = None
    query_rows: QueryRows | None = None
    shown: Layout | None = None


def build_layout(
    graph: Graph, mask: str, name: str = "layout", positions: str | None = None, query_ends: str | None = None
) -> Layout:
    """Lay out a batch from its attention mask, int64 ``[B, S]``; rows are padded on the right.

    Args:
        graph: the graph under construction.
        mask: the mask's name.
        name: what this layout's values are named after.
        positions: int64 ``[T]``, of tokens that stand elsewhere than at their position; by default they do not.
        query_ends: int64 ``[B, 1]``, where queries are isolated.
    """
    shape = graph.node("Shape", [mask], f"{name}.shape")
    columns = graph.node("Gather", [shape, graph.ints(1)], f"{name}.columns")
    flat = graph.reshape(mask, f"{name}.flat_mask", -1)
    zero, one = graph.int_scalar(0), graph.int_scalar(1)
    to_packed = graph.reshape(graph.node("NonZero", [flat], f"{name}.nonzero"), f"{name}.to_packed", -1)
    counts = graph.node("CumSum", [flat, zero], f"{name}.counts")
    places = graph.node("Reshape", [graph.node("Sub", [counts, one], f"{name}.flat_places"), shape], f"{name}.places")
    lengths = graph.node("ReduceSum", [mask, graph.ints(1)], f"{name}.lengths", keepdims=0)
    ends = graph.node("CumSum", [lengths, zero], f"{name}.ends")
    first = graph.node("Sub", [ends, lengths], f"{name}.first")
    real = graph.node("Cast", [mask], f"{name}.real", to=TensorProto.BOOL)
    filling = graph.node("Unsqueeze", [first, graph.ints(1)], f"{name}.filling")  # [B, 1]
    column = graph.node("Mod", [to_packed, columns], f"{name}.column")
    return Layout(
        name=name,
        columns=columns,
        mask=mask,
        to_packed=to_packed,
        real=real,
        to_padded=graph.node("Where", [real, places, filling], f"{name}.to_padded"),
        column=column,
        positions=positions or column,
        first=first,
        query_ends=query_ends,
    )


def keep_tokens(graph: Graph, layout: Layout, kept: str, name: str) -> tuple[Layout, str]:
    """Lay out the tokens that stay, in their order.

    Args:
        graph: the graph under construction.
        layout: where the tokens stand.
        kept: bool ``[T]``; true for one token of each row at least, its first where the head reads that.
        name: what the new layout's values are named after.

    Returns:
        The new layout, its positions those of the tokens that stay; and which they are, int64 ``[T']``.
    """
    marks = graph.node("Cast", [kept], f"{name}.marks", to=TensorProto.INT64)
    index = graph.reshape(graph.node("NonZero", [marks], f"{name}.nonzero_kept"), f"{name}.kept", -1)
    padded = graph.node("Mul", [pad(graph, layout, marks, f"{name}.padded_marks"), layout.mask], f"{name}.real_marks")
    counts = graph.node("ReduceSum", [padded, graph.ints(1)], f"{name}.kept_counts", keepdims=1)  # [B, 1]
    positions = graph.node("Gather", [layout.positions, index], f"{name}.positions", axis=0)
    return build_layout(graph, _mask_of(graph, counts, f"{name}.mask"), name, positions, layout.query_ends), index


def keep_rows(graph: Graph, layout: Layout, rows: str, name: str) -> tuple[Layout, str]:
    """Lay out the rows that stay, in the order in which they are named, trimmed to the longest of them.

    Args:
        graph: the graph under construction.
        layout: where the tokens stand.
        rows: int64 ``[B']``, which rows stay.
        name: what the new layout's values are named after.

    Returns:
        The new layout, and which packed tokens its own are, int64 ``[T']``.
    """
    mask = graph.node("Gather", [layout.mask, rows], f"{name}.kept_rows", axis=0)
    counts = graph.node("ReduceSum", [mask, graph.ints(1)], f"{name}.kept_counts", keepdims=1)  # [B', 1]
    trimmed = _mask_of(graph, counts, f"{name}.mask")
    flat = graph.reshape(trimmed, f"{name}.flat_kept", -1)
    slots = graph.reshape(graph.node("NonZero", [flat], f"{name}.nonzero_kept"), f"{name}.slots", -1)
    width = graph.node(
        "Gather", [graph.node("Shape", [trimmed], f"{name}.trimmed_shape"), graph.ints(1)], f"{name}.width"
    )
    row = graph.node("Div", [slots, width], f"{name}.row")
    starts = graph.node(
        "Gather", [layout.first, graph.node("Gather", [rows, row], f"{name}.old_row")], f"{name}.starts"
    )
    index = graph.node("Add", [starts, graph.node("Mod", [slots, width], f"{name}.place")], f"{name}.kept")
    positions = graph.node("Gather", [layout.positions, index], f"{name}.positions", axis=0)
    return build_layout(graph, trimmed, name, positions), index


def _mask_of(graph: Graph, counts: str, name: str) -> str:
    """Write the mask of rows with ``counts`` tokens each, ``[B, 1] -> int64 [B, S]``, S the largest of them."""
    longest = graph.node("ReduceMax", [counts], f"{name}.longest", keepdims=0)
    places = graph.node("Range", [graph.int_scalar(0), longest, graph.int_scalar(1)], f"{name}.places")  # [S]
    return graph.node("Cast", [graph.node("Less", [places, counts], f"{name}.real")], name, to=TensorProto.INT64)


def pad(graph: Graph, layout: Layout, value: str, name: str) -> str:
    """Spread packed values ``[T, ...]`` to the padded view ``[B, S, ...]``."""
    return graph.node("Gather", [value, layout.to_padded], name, axis=0)


def pack(graph: Graph, layout: Layout, padded: str, name: str) -> str:
    """Gather a padded view ``[B, S]`` back to packed values ``[T]``."""
    return graph.node("Gather", [graph.reshape(padded, f"{name}.flat", -1), layout.to_packed], name)


def first_tokens(graph: Graph, layout: Layout, value: str, name: str) -> str:
    """Take each row's first token, ``[T, ...] -> [B, ...]``."""
    return graph.node("Gather", [value, layout.first], name, axis=0)


def by_heads(
    graph: Graph, layout: Layout, value: str, name: str, *, columns: int, first: int, heads: int, head_width: int
) -> str:
    """Spread columns ``first : first + heads * head_width`` of ``[T, columns]`` to heads, ``[B, H, S, d]``.

    The value is read as T * columns / d blocks of d numbers; one gather places them.
    """
    blocks, rest = divmod(columns, head_width)
    if rest or first % head_width:  # columns of several linears with other head widths
        value = graph.node(
            "Slice",
            [value, graph.ints(first), graph.ints(first + heads * head_width), graph.ints(1)],
            f"{name}.columns",
        )
        blocks, first = heads, 0
    places = _head_places(graph, layout, blocks, first // head_width, heads)
    return graph.node("Gather", [graph.reshape(value, f"{name}.blocks", -1, head_width), places], name, axis=0)


def _head_places(graph: Graph, layout: Layout, blocks: int, first: int, heads: int) -> str:
    """Return which block stands in each head and slot, int64 ``[B, H, S]``; made once for all layers."""

    def make(name: str) -> str:
        rows = graph.once(
            f"{layout.name}.padded_rows", lambda at: graph.node("Unsqueeze", [layout.to_padded, graph.ints(1)], at)
        )  # [B, 1, S]
        starts = graph.once(
            f"{layout.name}.blocks.{blocks}", lambda at: graph.node("Mul", [rows, graph.int_scalar(blocks)], at)
        )
        offsets = graph.weight(f"{name}.offsets", np.arange(first, first + heads)[:, None])
        return graph.node("Add", [starts, offsets], name)

    return graph.once(f"{layout.name}.heads.{blocks}.{first}.{heads}", make)


def by_tokens(graph: Graph, layout: Layout, value: str, name: str, heads: int, head_width: int) -> str:
    """Gather heads ``[B, H, S, d]`` back to packed tokens ``[T, H * d]``."""

    def make(at: str) -> str:
        # Block of token t and head h: (row * H + h) * S + column, with t's slot = row * S + column.
        slots = graph.node("Mul", [layout.to_packed, graph.int_scalar(heads)], f"{at}.slots")
        back = graph.node("Mul", [layout.column, graph.int_scalar(heads - 1)], f"{at}.back")
        starts = graph.node(
            "Unsqueeze", [graph.node("Sub", [slots, back], f"{at}.flat"), graph.ints(1)], f"{at}.starts"
        )
        steps = graph.node("Mul", [graph.weight(f"{at}.heads", np.arange(heads)), layout.columns], f"{at}.steps")
        return graph.node("Add", [starts, steps], at)  # [T, H]

    places = graph.once(f"{layout.name}.tokens.{heads}", make)
    blocks = graph.reshape(value, f"{name}.blocks", -1, head_width)
    return graph.reshape(graph.node("Gather", [blocks, places], f"{name}.heads", axis=0), name, -1, heads * head_width)


def row_means(graph: Graph, layout: Layout, value: str, name: str) -> str:
    """Average each row's tokens, ``[T, W] -> [B, W]``: shares of the mask times the padded view."""
    mask = graph.node("Cast", [layout.mask], f"{name}.mask", to=1)
    counts = graph.node("ReduceSum", [mask, graph.ints(1)], f"{name}.counts", keepdims=1)
    shares = graph.node(
        "Unsqueeze", [graph.node("Div", [mask, counts], f"{name}.shares"), graph.ints(1)], f"{name}.row"
    )
    means = graph.node("MatMul", [shares, pad(graph, layout, value, f"{name}.padded")], f"{name}.means")  # [B, 1, W]
    return graph.node("Squeeze", [means, graph.ints(1)], name)


def seen_by(layout: Layout) -> Layout:
    """Return where all stands that tokens may see.

    That is their own row's, and those of a query that is run apart; or, behind a pool, the tokens of windows.
    """
    return layout.shown or (layout.query_rows and layout.query_rows.seen) or layout


def padded_positions(graph: Graph, layout: Layout) -> str:
    """Return each slot's position, int64 ``[B, S]``; made once."""
    return graph.once(f"{layout.name}.padded_positions", lambda at: pad(graph, layout, layout.positions, at))
