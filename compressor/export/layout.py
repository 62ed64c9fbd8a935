"""Where packed tokens stand in the padded batch, as graph values; mirrors `ranker/tokens.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.export.graph import Graph
from compressor.ranker.spec import AttentionPattern, WindowPattern

HIDDEN = -10000.0  # added to a score, leaves exactly 0 after the softmax in fp32


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the values that describe the layout of T packed tokens in B rows of S columns.

    Attributes:
        shape: int64 ``[2]``: B, S.
        mask: int64 ``[B, S]``, 1 where a real token stands.
        to_packed: int64 ``[T]``, the padded slot (row * S + column) of each packed token.
        to_padded: int64 ``[B, S]``, the packed token of each padded slot; any for padding.
        positions: int64 ``[T]``, each token's position in its row.
        first: int64 ``[B]``, the packed index of each row's first token.
        lengths: int64 ``[B]``, tokens per row.
    """

    shape: str
    mask: str
    to_packed: str
    to_padded: str
    positions: str
    first: str
    lengths: str
    biases: dict[str, str] = field(default_factory=dict)  # attention biases made so far, by name


def build_layout(graph: Graph, mask: str) -> Layout:
    """Lay out a batch from its attention mask, int64 ``[B, S]``."""
    shape = graph.node("Shape", [mask], "layout.shape")
    columns = graph.node("Gather", [shape, graph.ints(1)], "layout.columns")
    flat = graph.reshape(mask, "layout.flat_mask", -1)
    zero, one = graph.int_scalar(0), graph.int_scalar(1)
    to_packed = graph.reshape(graph.node("NonZero", [flat], "layout.nonzero"), "layout.to_packed", -1)
    counts = graph.node("CumSum", [flat, zero], "layout.counts")
    places = graph.node("Max", [graph.node("Sub", [counts, one], "layout.places"), zero], "layout.flat_to_padded")
    lengths = graph.node("ReduceSum", [mask, graph.ints(1)], "layout.lengths", keepdims=0)
    ends = graph.node("CumSum", [lengths, zero], "layout.ends")
    return Layout(
        shape=shape,
        mask=mask,
        to_packed=to_packed,
        to_padded=graph.node("Reshape", [places, shape], "layout.to_padded"),
        positions=graph.node("Mod", [to_packed, columns], "layout.positions"),
        first=graph.node("Sub", [ends, lengths], "layout.first"),
        lengths=lengths,
    )


def pad(graph: Graph, layout: Layout, value: str, name: str) -> str:
    """Spread packed values ``[T, W]`` to the padded view ``[B, S, W]``."""
    return graph.node("Gather", [value, layout.to_padded], name, axis=0)


def pack(graph: Graph, layout: Layout, value: str, name: str, width: int) -> str:
    """Gather a padded view ``[B, S, W]`` back to packed values ``[T, W]``."""
    flat = graph.reshape(value, f"{name}.flat", -1, width)
    return graph.node("Gather", [flat, layout.to_packed], name, axis=0)


def first_tokens(graph: Graph, layout: Layout, value: str, name: str) -> str:
    """Take each row's first token, ``[T, ...] -> [B, ...]``."""
    return graph.node("Gather", [value, layout.first], name, axis=0)


def row_means(graph: Graph, layout: Layout, value: str, name: str) -> str:
    """Average each row's tokens, ``[T, W] -> [B, W]``: shares of the mask times the padded view."""
    mask = graph.node("Cast", [layout.mask], f"{name}.mask", to=1)
    counts = graph.node("ReduceSum", [mask, graph.ints(1)], f"{name}.counts", keepdims=1)
    shares = graph.node(
        "Unsqueeze", [graph.node("Div", [mask, counts], f"{name}.shares"), graph.ints(1)], f"{name}.row"
    )
    means = graph.node("MatMul", [shares, pad(graph, layout, value, f"{name}.padded")], f"{name}.means")  # [B, 1, W]
    return graph.node("Squeeze", [means, graph.ints(1)], name)


def attention_bias(graph: Graph, layout: Layout, pattern: AttentionPattern, first_only: bool) -> str:
    """Return what is added to the scores ``[B, H, S or 1, S]``: 0 where a query sees a key, `HIDDEN` elsewhere.

    Made once per pattern and shared by the layers that use it; mirrors `ranker.attention.visible`.
    """
    name = "layout.bias." + "_".join(str(part) for part in pattern.model_dump().values())
    if pattern.kind != "full" and first_only:
        name += ".first"
    if name not in layout.biases:
        visible = graph.node("Cast", [layout.mask], f"{name}.real", to=9)
        visible = graph.node("Unsqueeze", [visible, graph.ints(1, 2)], f"{name}.keys")  # [B, 1, 1, S]
        if pattern.kind != "full":
            near = _near(graph, layout, pattern, name, first_only)
            visible = graph.node("And", [visible, near], f"{name}.visible")
        shown, hidden = graph.float_scalar(0.0), graph.float_scalar(HIDDEN)
        layout.biases[name] = graph.node("Where", [visible, shown, hidden], name)
    return layout.biases[name]


def _near(graph: Graph, layout: Layout, pattern: AttentionPattern, name: str, first_only: bool) -> str:
    positions = pad(graph, layout, layout.positions, f"{name}.positions")  # [B, S]
    asking = positions
    if first_only:
        asking = graph.node("Gather", [positions, graph.ints(0)], f"{name}.asking", axis=1)
    rows = graph.node("Unsqueeze", [asking, graph.ints(1, 3)], f"{name}.rows")  # [B, 1, S or 1, 1]
    columns = graph.node("Unsqueeze", [positions, graph.ints(1, 2)], f"{name}.columns")  # [B, 1, 1, S]
    distance = graph.node("Sub", [rows, columns], f"{name}.distance")
    if isinstance(pattern, WindowPattern):
        distance = graph.node("Abs", [distance], f"{name}.magnitude")
        return graph.node("LessOrEqual", [distance, graph.int_scalar(pattern.reach)], f"{name}.near")
    return graph.node("GreaterOrEqual", [distance, graph.int_scalar(0)], f"{name}.near")
