"""Token rules as graph: which packed tokens go on behind a layer; mirrors `ranker/token_rules.py`.

No control flow and no shape that a row's neighbors decide: how many tokens stay is counted row by row, the padded view
is as wide as the longest row, and one gather packs what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import TensorProto

from compressor.export.graph import Graph
from compressor.export.layout import Layout, keep_tokens, pack, pad
from compressor.export.linears import Weights
from compressor.export.token_merges import merge
from compressor.export.token_scores import RowParts, learned_scores, token_scores
from compressor.ranker.spec import (
    KeepShareRule,
    KeepThresholdRule,
    LayerSpec,
    LearnedScorer,
    MergeRule,
    PoolRule,
    TokenScorer,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """What is left behind a rule: packed states ``[T', width]``, where they stand, and what they are."""

    values: str
    layout: Layout
    parts: RowParts


def row_parts(graph: Graph, layout: Layout, separator_id: int, marks_query_terms: bool = False) -> RowParts:
    """Tell query and document apart by the first separator of each row."""
    name = "parts"
    is_separator = graph.node("Equal", ["input_ids", graph.int_scalar(separator_id)], f"{name}.is_separator")
    separates = graph.node("And", [is_separator, layout.real], f"{name}.separates")
    counted = graph.node("Cast", [separates], f"{name}.counted", to=TensorProto.INT64)
    seen = graph.node("CumSum", [counted, graph.int_scalar(1)], f"{name}.seen")
    behind = graph.node("Greater", [seen, graph.int_scalar(0)], f"{name}.behind")
    inside = graph.node("And", [behind, graph.node("Not", [separates], f"{name}.inside")], f"{name}.text_behind")
    document = graph.node("And", [inside, layout.real], f"{name}.padded_document")
    before = graph.node("And", [graph.node("Not", [behind], f"{name}.not_behind"), layout.real], f"{name}.before")
    n_before = graph.node(
        "ReduceSum",
        [graph.node("Cast", [before], f"{name}.marks_before", to=TensorProto.INT64), graph.ints(1)],
        f"{name}.n_before",
        keepdims=1,
    )
    columns = graph.node("Range", [graph.int_scalar(0), _scalar(graph, layout), graph.int_scalar(1)], f"{name}.columns")
    starts = graph.node("Where", [document, columns, layout.columns], f"{name}.starts")
    n_asking = graph.node("Max", [n_before, graph.int_scalar(1)], f"{name}.n_asking")
    return RowParts(
        document=pack(graph, layout, document, f"{name}.document"),
        n_asking=n_asking,
        start=graph.node("ReduceMin", [starts], f"{name}.start", axes=[1], keepdims=0),
        query_terms=_query_terms(graph, layout, document, columns, n_asking) if marks_query_terms else None,
    )


def _query_terms(graph: Graph, layout: Layout, document: str, columns: str, n_asking: str) -> str:
    """Return which tokens of the document have an id of what asks, bool ``[T]``."""
    name = "parts.query_terms"
    most = graph.reshape(graph.node("ReduceMax", [n_asking], f"{name}.most", keepdims=0), f"{name}.width", 1)
    wanted = graph.node("Slice", ["input_ids", graph.ints(0), most, graph.ints(1)], f"{name}.wanted")  # [B, Q]
    own = graph.node("Unsqueeze", ["input_ids", graph.ints(2)], f"{name}.own")  # [B, S, 1]
    same = graph.node("Equal", [own, graph.node("Unsqueeze", [wanted, graph.ints(1)], f"{name}.row")], f"{name}.same")
    places = graph.node("Slice", [columns, graph.ints(0), most, graph.ints(0)], f"{name}.places")
    asks = graph.node("Less", [places, n_asking], f"{name}.asks")  # [B, Q]
    found = graph.node("And", [same, graph.node("Unsqueeze", [asks, graph.ints(1)], f"{name}.asking")], f"{name}.found")
    counts = graph.node("Cast", [found], f"{name}.marks", to=TensorProto.INT64)
    times = graph.node("ReduceSum", [counts, graph.ints(2)], f"{name}.times", keepdims=0)  # [B, S]
    occurs = graph.node("Greater", [times, graph.int_scalar(0)], f"{name}.occurs")
    return pack(graph, layout, graph.node("And", [occurs, document], f"{name}.padded"), name)


def reduce_tokens(
    graph: Graph, index: int, spec: LayerSpec, weights: Weights, values: str, layout: Layout, parts: RowParts
) -> Reduced:
    """Write what the token rule of a layer leaves of the packed states that the layer gave, ``[T, width]``."""
    name, rule = f"layer.{index}.token_rule", spec.token_rule
    merged = None
    if isinstance(rule, MergeRule):
        merged = merge(graph, name, f"layer.{index}.attention", rule, values, layout, parts)
        kept = merged.kept
    elif isinstance(rule, PoolRule):
        kept = _opens_window(graph, name, rule, layout, parts)
    elif isinstance(rule, KeepShareRule | KeepThresholdRule):
        scores = _scores(graph, index, spec, rule.scorer, weights, values, layout, parts)
        if isinstance(rule, KeepThresholdRule):
            kept = _reaches_threshold(graph, name, rule, scores, layout, parts)
        else:
            kept = _is_among_best(graph, name, rule, scores, layout, parts)
    else:
        raise TypeError(f"no way to write the token rule {rule!r}")
    left, chosen = keep_tokens(graph, layout, kept, f"{name}.layout")
    if isinstance(rule, PoolRule):
        values = _means(graph, name, rule.stride, values, chosen)
    elif merged:
        places = graph.node("Gather", [merged.places, chosen], f"{name}.places")
        values = graph.node("Gather", [merged.values, places], f"{name}.values", axis=0)
    else:
        values = graph.node("Gather", [values, chosen], f"{name}.values", axis=0)
    return Reduced(values=values, layout=left, parts=parts.of_kept(graph, chosen, name))


def _opens_window(graph: Graph, name: str, rule: PoolRule, layout: Layout, parts: RowParts) -> str:
    """Return which tokens begin a window, bool ``[T]``; each token that stays by itself does."""
    row = graph.node("Div", [layout.to_packed, layout.columns], f"{name}.row")
    starts = graph.node("Gather", [parts.start, row], f"{name}.starts")
    place = graph.node("Sub", [layout.column, starts], f"{name}.place")
    phase = graph.node("Mod", [place, graph.int_scalar(rule.stride)], f"{name}.phase")
    at_start = graph.node("Equal", [phase, graph.int_scalar(0)], f"{name}.at_start")
    # No row begins with a document token, so the token before one is of the same row.
    n_tokens = graph.node("Squeeze", [graph.node("Shape", [parts.document], f"{name}.shape")], f"{name}.n_tokens")
    places = graph.node("Range", [graph.int_scalar(0), n_tokens, graph.int_scalar(1)], f"{name}.places")
    back = graph.node("Sub", [places, graph.int_scalar(1)], f"{name}.back")
    before = graph.node("Max", [back, graph.int_scalar(0)], f"{name}.before")
    goes_on = graph.node("Gather", [parts.document, before], f"{name}.goes_on")
    within = graph.node("And", [parts.document, goes_on], f"{name}.within")
    return graph.node("Or", [graph.node("Not", [within], f"{name}.apart"), at_start], f"{name}.opens")


def _means(graph: Graph, name: str, stride: int, values: str, chosen: str) -> str:
    """Average windows that begin with the chosen tokens and end before the next one, ``[T, W] -> [T', W]``."""
    n_tokens = graph.node(
        "Gather", [graph.node("Shape", [values], f"{name}.values_shape"), graph.ints(0)], f"{name}.end"
    )
    after = graph.node("Slice", [chosen, graph.ints(1), graph.ints(2**62), graph.ints(0)], f"{name}.after")
    ends = graph.node("Concat", [after, n_tokens], f"{name}.ends", axis=0)
    sizes = graph.node("Sub", [ends, chosen], f"{name}.sizes")
    furthest = graph.node("Sub", [sizes, graph.int_scalar(1)], f"{name}.furthest")
    sums = graph.node("Gather", [values, chosen], f"{name}.sums", axis=0)
    for step in range(1, stride):
        reach = graph.node("Min", [furthest, graph.int_scalar(step)], f"{name}.reach.{step}")
        found = graph.node(
            "Gather", [values, graph.node("Add", [chosen, reach], f"{name}.member.{step}")], f"{name}.found.{step}",
            axis=0,
        )  # fmt: skip
        inside = graph.node("Equal", [reach, graph.int_scalar(step)], f"{name}.inside.{step}")
        column = graph.node("Unsqueeze", [inside, graph.ints(1)], f"{name}.is_inside.{step}")
        part = graph.node("Where", [column, found, graph.float_scalar(0.0)], f"{name}.part.{step}")
        sums = graph.node("Add", [sums, part], f"{name}.sums.{step}")
    counts = graph.node("Cast", [sizes], f"{name}.counts", to=TensorProto.FLOAT)
    return graph.node(
        "Div", [sums, graph.node("Unsqueeze", [counts, graph.ints(1)], f"{name}.divisor")], f"{name}.values"
    )


def _scores(
    graph: Graph, index: int, spec: LayerSpec, scorer: TokenScorer, weights: Weights, values: str, layout: Layout,
    parts: RowParts,
) -> str:  # fmt: skip
    """Return what a scorer gives all tokens, ``[B, S]``."""
    name, key = f"layer.{index}.token_rule.scores", f"layers.{index}.token_rule.scorer"
    if isinstance(scorer, LearnedScorer):
        direction, match = (weights[f"{key}.{part}"].numpy() for part in ("direction", "match"))
        return learned_scores(graph, name, direction, match, values, layout, parts)
    if spec.attention is None:
        raise TypeError(f"layer {index} has no attention, by which its token rule judges tokens")
    return token_scores(graph, name, f"layer.{index}.attention", spec.attention, scorer, layout, parts)


def _is_among_best(graph: Graph, name: str, rule: KeepShareRule, scores: str, layout: Layout, parts: RowParts) -> str:
    """Return which tokens stay, bool ``[T]``: all that are no document's, and of each document's the best."""
    padded = _eligible(graph, name, layout, parts)
    marks = graph.node("Cast", [padded], f"{name}.marks", to=TensorProto.INT64)
    n_document = graph.node("ReduceSum", [marks, graph.ints(1)], f"{name}.n_document", keepdims=1)  # [B, 1]
    part, whole = rule.fraction
    parted = graph.node("Mul", [n_document, graph.int_scalar(part)], f"{name}.parted")
    raised = graph.node("Add", [parted, graph.int_scalar(whole - 1)], f"{name}.raised")
    n_kept = graph.node("Div", [raised, graph.int_scalar(whole)], f"{name}.n_kept")  # [B, 1]
    most = graph.node("ReduceMax", [n_kept], f"{name}.most", keepdims=0)
    n_ranked = graph.node("Max", [most, graph.int_scalar(1)], f"{name}.n_ranked")
    judged = graph.node("Where", [padded, scores, graph.float_scalar(-math.inf)], f"{name}.judged")
    _, ranked = graph.nodes(
        "TopK", [judged, graph.reshape(n_ranked, f"{name}.k", 1)], [f"{name}.best_scores", f"{name}.best"],
        name=f"{name}.rank", axis=1, largest=1, sorted=1,
    )  # fmt: skip  # of equal ones it puts the lower index first
    ranks = graph.node("Range", [graph.int_scalar(0), n_ranked, graph.int_scalar(1)], f"{name}.ranks")
    stays = graph.node(
        "Cast", [graph.node("Less", [ranks, n_kept], f"{name}.stays")], f"{name}.stays_marks", to=TensorProto.INT64
    )
    none = graph.node("Sub", [marks, marks], f"{name}.none")
    chosen = graph.node("ScatterElements", [none, ranked, stays], f"{name}.chosen_marks", axis=1)
    packed = pack(graph, layout, chosen, f"{name}.packed_marks")
    is_chosen = graph.node("Cast", [packed], f"{name}.chosen", to=TensorProto.BOOL)
    return graph.node("Or", [is_chosen, graph.node("Not", [parts.document], f"{name}.protected")], f"{name}.keeps")


def _reaches_threshold(
    graph: Graph, name: str, rule: KeepThresholdRule, scores: str, layout: Layout, parts: RowParts
) -> str:
    """Return which tokens stay, bool ``[T]``: all that are no document's, and those that score high enough."""
    eligible = _eligible(graph, name, layout, parts)
    lengths = graph.node("ReduceSum", [layout.mask, graph.ints(1)], f"{name}.lengths", keepdims=1)  # [B, 1]
    counts = graph.node("Cast", [lengths], f"{name}.counts", to=TensorProto.FLOAT)
    relative = graph.node("Mul", [scores, counts], f"{name}.relative")
    judged = graph.node("Where", [eligible, relative, graph.float_scalar(-math.inf)], f"{name}.judged")
    best = graph.node("ReduceMax", [judged], f"{name}.best", axes=[1], keepdims=1)
    least = graph.node("Min", [best, graph.float_scalar(rule.threshold)], f"{name}.least")
    reaches = graph.node(
        "And", [graph.node("GreaterOrEqual", [judged, least], f"{name}.reaches"), eligible], f"{name}.stays"
    )
    packed = pack(graph, layout, reaches, f"{name}.chosen")
    return graph.node("Or", [packed, graph.node("Not", [parts.document], f"{name}.protected")], f"{name}.keeps")


def _eligible(graph: Graph, name: str, layout: Layout, parts: RowParts) -> str:
    """Return which slots are document tokens, bool ``[B, S]``."""
    return graph.node("And", [pad(graph, layout, parts.document, f"{name}.padded"), layout.real], f"{name}.eligible")


def _scalar(graph: Graph, layout: Layout) -> str:
    return graph.once(f"{layout.name}.n_columns", lambda at: graph.node("Squeeze", [layout.columns], at))
