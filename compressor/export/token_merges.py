"""Merging of document tokens as graph; mirrors `ranker/token_merges.py`.

No sum is scattered, which runtimes do in any order or not at all: a small matrix per row says what merges into what,
and one product with it sums the states up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import TensorProto

from compressor.export.attention import keys_before_rotation
from compressor.export.graph import FUSED, Graph
from compressor.export.layout import Layout, pack, pad
from compressor.export.token_scores import RowParts
from compressor.ranker.spec import MergeRule
from compressor.ranker.token_merges import FURTHEST, GRID, NO_LENGTH


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """Names of the values that say what merging makes of T packed tokens.

    Attributes:
        kept: bool ``[T]``, which of them stay.
        values: ``[T + B * R, W]``, the states as they were and behind them the means, R of each row.
        places: int64 ``[T]``, where among them each token that stays has its new state.
    """

    kept: str
    values: str
    places: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """Names of the values that say who merges: the first r by energy go, the next r take them.

    Attributes:
        n_gone: int64 ``[B, 1]``: r.
        columns: int64 ``[B, S]``, columns of the padded view from the highest energy to the lowest.
        ranks: int64 ``[B, S]``, at which place there each column is.
        goes: bool ``[B, S]``.
        takes: bool ``[B, S]``.
    """

    n_gone: str
    columns: str
    ranks: str
    goes: str
    takes: str


def merge(
    graph: Graph, name: str, attention: str, rule: MergeRule, values: str, layout: Layout, parts: RowParts
) -> Merged:
    """Write which tokens merge, and the states of what has merged.

    Args:
        graph: the graph under construction.
        name: what the rule is called.
        attention: what the layer's attention is called, whose keys tell tokens alike.
        rule: how many merge, and which.
        values: packed states ``[T, W]``.
        layout: where the tokens stand.
        parts: what they are.
    """
    similarity = _similarities(graph, name, attention)
    order = _order(graph, name, rule, similarity, layout, parts)
    seen = graph.node("Unsqueeze", [order.takes, graph.ints(1)], f"{name}.takers")  # [B, 1, S]
    judged = graph.node("Where", [seen, similarity, graph.float_scalar(-math.inf)], f"{name}.choices")
    into = graph.node("ArgMax", [judged], f"{name}.into", axis=2, keepdims=0)  # [B, S]; of equal ones the first
    means, n_means = _means(graph, name, into, order, values, layout)

    n_tokens = graph.node("Squeeze", [graph.node("Shape", [layout.to_packed], f"{name}.shape")], f"{name}.n_tokens")
    row = graph.node("Div", [layout.to_packed, layout.columns], f"{name}.row")
    row_start = graph.node("Mul", [row, n_means], f"{name}.row_start")
    before = graph.node("Gather", [graph.reshape(order.n_gone, f"{name}.flat_gone", -1), row], f"{name}.before")
    within = graph.node("Sub", [pack(graph, layout, order.ranks, f"{name}.rank"), before], f"{name}.within")
    behind = graph.node("Add", [row_start, within], f"{name}.behind")
    new_place = graph.node("Add", [behind, n_tokens], f"{name}.new_place")
    own_place = graph.node("Range", [graph.int_scalar(0), n_tokens, graph.int_scalar(1)], f"{name}.own_place")
    takes = pack(graph, layout, order.takes, f"{name}.is_mean")
    return Merged(
        kept=graph.node("Not", [pack(graph, layout, order.goes, f"{name}.is_gone")], f"{name}.keeps"),
        values=graph.node("Concat", [values, means], f"{name}.states_and_means", axis=0),
        places=graph.node("Where", [takes, new_place, own_place], f"{name}.place"),
    )


def _similarities(graph: Graph, name: str, attention: str) -> str:
    """Write the cosines between all tokens' keys, summed over heads, ``[B, S, S]``."""
    keys = graph.node(
        "ReduceSum", [keys_before_rotation(graph, attention), graph.ints(1)], f"{name}.keys", keepdims=0
    )  # [B, S, d]
    length = graph.node("ReduceL2", [keys], f"{name}.length", axes=[2], keepdims=1)
    divisor = graph.node("Max", [length, graph.float_scalar(NO_LENGTH)], f"{name}.divisor")
    units = graph.node("Div", [keys, divisor], f"{name}.units")
    if graph.fused:
        cosines = graph.node("FusedMatMul", [units, units], f"{name}.cosines", domain=FUSED, transB=1)
    else:
        turned = graph.node("Transpose", [units], f"{name}.turned", perm=[0, 2, 1])
        cosines = graph.node("MatMul", [units, turned], f"{name}.cosines")
    return _on_grid(graph, cosines, f"{name}.similarity")


def _on_grid(graph: Graph, values: str, name: str) -> str:
    """Round to steps, so that what is equal is so in every order of sums."""
    steps = graph.node("Mul", [values, graph.float_scalar(GRID)], f"{name}.steps")
    whole = graph.node("Round", [steps], f"{name}.whole_steps")
    return graph.node("Mul", [whole, graph.float_scalar(1 / GRID)], name)


def _order(graph: Graph, name: str, rule: MergeRule, similarity: str, layout: Layout, parts: RowParts) -> _Order:
    """Rank the tokens that may merge by their energies, and count by the row how many do."""
    document = graph.node(
        "And", [pad(graph, layout, parts.document, f"{name}.padded"), layout.real], f"{name}.is_document"
    )
    may_merge = document
    if rule.keep_query_terms and parts.query_terms:
        terms = pad(graph, layout, parts.query_terms, f"{name}.padded_terms")
        may_merge = graph.node("And", [document, graph.node("Not", [terms], f"{name}.no_term")], f"{name}.may_merge")
    n_gone = _merges(graph, name, rule, document, may_merge)

    near = _near(graph, name, rule, similarity, layout)
    marks = graph.node("Cast", [document], f"{name}.document_marks", to=TensorProto.FLOAT)
    counted = graph.node("Unsqueeze", [marks, graph.ints(2)], f"{name}.counted")  # [B, S, 1]
    sums = graph.node("MatMul", [near, counted], f"{name}.near_documents")
    energy = graph.node("Squeeze", [sums, graph.ints(2)], f"{name}.energy")  # times the number of others

    judged = graph.node("Where", [may_merge, energy, graph.float_scalar(-math.inf)], f"{name}.judged")
    _, columns = graph.nodes(
        "TopK", [judged, layout.columns], [f"{name}.energies", f"{name}.order"],
        name=f"{name}.sort", axis=1, largest=1, sorted=1,
    )  # fmt: skip  # of equal ones it puts the lower index first
    none = graph.node("Sub", [columns, columns], f"{name}.none")
    places = graph.node("Add", [none, _steps(graph, layout)], f"{name}.places_in_order")
    ranks = graph.node("ScatterElements", [none, columns, places], f"{name}.ranks", axis=1)
    goes = graph.node("Less", [ranks, n_gone], f"{name}.goes")
    twice = graph.node("Add", [n_gone, n_gone], f"{name}.n_merging")
    merges = graph.node("Less", [ranks, twice], f"{name}.merges")
    takes = graph.node("And", [merges, graph.node("Not", [goes], f"{name}.remains")], f"{name}.takes")
    return _Order(n_gone=n_gone, columns=columns, ranks=ranks, goes=goes, takes=takes)


def _near(graph: Graph, name: str, rule: MergeRule, similarity: str, layout: Layout) -> str:
    """Write how near tokens are to each other by their cosines, and not at all to themselves, ``[B, S, S]``."""
    away = graph.node("Sub", [graph.float_scalar(1.0), similarity], f"{name}.away")
    scaled = graph.node("Mul", [away, graph.float_scalar(math.sqrt(0.5) / (1 - rule.margin))], f"{name}.scaled")
    distance = graph.node("Min", [scaled, graph.float_scalar(FURTHEST)], f"{name}.distance")
    square = graph.node("Mul", [distance, distance], f"{name}.square")
    kernel = graph.node("Exp", [graph.node("Neg", [square], f"{name}.exponent")], f"{name}.kernel")
    near = _on_grid(graph, kernel, f"{name}.nearness")
    steps = _steps(graph, layout)
    rows, columns = (graph.node("Unsqueeze", [steps, graph.ints(axis)], f"{name}.steps_{axis}") for axis in (1, 0))
    itself = graph.node("Equal", [rows, columns], f"{name}.itself")  # [S, S]
    return graph.node("Where", [itself, graph.float_scalar(0.0), near], f"{name}.near")


def _steps(graph: Graph, layout: Layout) -> str:
    """Return the numbers of all columns, int64 ``[S]``."""
    end = graph.once(f"{layout.name}.n_columns", lambda at: graph.node("Squeeze", [layout.columns], at))
    bounds = [graph.int_scalar(0), end, graph.int_scalar(1)]
    return graph.once(f"{layout.name}.steps", lambda at: graph.node("Range", bounds, at))


def _merges(graph: Graph, name: str, rule: MergeRule, document: str, may_merge: str) -> str:
    """Write how many tokens of each row merge into another, int64 ``[B, 1]``."""
    n_document, n_able = (
        graph.node(
            "ReduceSum",
            [graph.node("Cast", [marks], f"{name}.{what}_marks_int", to=TensorProto.INT64), graph.ints(1)],
            f"{name}.n_{what}", keepdims=1,
        )
        for what, marks in (("document", document), ("able", may_merge))
    )  # fmt: skip
    part, whole = rule.fraction
    parted = graph.node("Mul", [n_document, graph.int_scalar(part)], f"{name}.parted")
    raised = graph.node("Add", [parted, graph.int_scalar(whole - 1)], f"{name}.raised")
    n_left = graph.node("Div", [raised, graph.int_scalar(whole)], f"{name}.n_left")
    pairs = graph.node("Div", [n_able, graph.int_scalar(2)], f"{name}.n_pairs")
    return graph.node("Min", [graph.node("Sub", [n_document, n_left], f"{name}.wanted"), pairs], f"{name}.n_gone")


def _means(graph: Graph, name: str, into: str, order: _Order, values: str, layout: Layout) -> tuple[str, str]:
    """Write the means of what has merged, ``[B * R, W]``, and R, what most rows have at most, at least one.

    Those behind the r-th of a row are of no use to anyone.
    """
    most = graph.node("ReduceMax", [order.n_gone], f"{name}.most_gone", keepdims=0)
    n_means = graph.node("Max", [most, graph.int_scalar(1)], f"{name}.n_means")
    steps = graph.node("Range", [graph.int_scalar(0), n_means, graph.int_scalar(1)], f"{name}.numbers")  # [R]
    end = graph.reshape(n_means, f"{name}.end", 1)
    sources = graph.node("Slice", [order.columns, graph.ints(0), end, graph.ints(1)], f"{name}.sources")  # [B, R]
    last = graph.node("Sub", [layout.columns, graph.int_scalar(1)], f"{name}.last")
    wanted = graph.node("Add", [order.n_gone, steps], f"{name}.next_ranks")
    next_ranks = graph.node("Min", [wanted, last], f"{name}.target_ranks")
    targets = graph.node("GatherElements", [order.columns, next_ranks], f"{name}.targets", axis=1)  # [B, R]
    chosen = graph.node("GatherElements", [into, sources], f"{name}.chosen", axis=1)  # [B, R]
    same = graph.node(
        "Equal",
        [
            graph.node("Unsqueeze", [targets, graph.ints(2)], f"{name}.target_rows"),
            graph.node("Unsqueeze", [chosen, graph.ints(1)], f"{name}.source_columns"),
        ],
        f"{name}.same",
    )  # [B, R, R]
    real = graph.node("Less", [steps, order.n_gone], f"{name}.is_source")  # [B, R]
    joined = graph.node("And", [same, graph.node("Unsqueeze", [real, graph.ints(1)], f"{name}.are_sources")],
                        f"{name}.joined")  # fmt: skip
    matrix = graph.node("Cast", [joined], f"{name}.matrix", to=TensorProto.FLOAT)
    own, others = (
        graph.node(
            "Gather",
            [values, graph.node("GatherElements", [layout.to_padded, columns], f"{name}.{what}_tokens", axis=1)],
            f"{name}.{what}_states", axis=0,
        )
        for what, columns in (("target", targets), ("source", sources))
    )  # fmt: skip  # [B, R, W]
    sums = graph.node("Add", [graph.node("MatMul", [matrix, others], f"{name}.joined_sums"), own], f"{name}.sums")
    added = graph.node("ReduceSum", [matrix, graph.ints(2)], f"{name}.n_joined", keepdims=1)
    sizes = graph.node("Add", [added, graph.float_scalar(1.0)], f"{name}.sizes")
    means = graph.node("Div", [sums, sizes], f"{name}.means")
    width = graph.node("Slice", [graph.node("Shape", [values], f"{name}.states_shape"), graph.ints(1), graph.ints(2)],
                       f"{name}.width")  # fmt: skip
    shape = graph.node("Concat", [graph.ints(-1), width], f"{name}.flat_shape", axis=0)
    return graph.node("Reshape", [means, shape], f"{name}.flat_means"), n_means
