"""What a query's tokens are to other tokens, as packed rows that one graph hands on and another takes in.

Where queries are isolated, nothing of a document reaches them. So the products that layers make of them, of which keys
and values come, are the same beside every document: they are made once, and stand behind the rows of a batch as if each
of its rows had them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onnx import TensorProto, ValueInfoProto, helper

from compressor.export.graph import Graph
from compressor.export.layout import Layout, seen_by

ROWS = "query.{place}"


@dataclass(frozen=True, kw_only=True)
class QueryRows:
    """The query's rows, in the order in which layers ask for them.

    Attributes:
        seen: where keys stand in the graph that takes rows in: a batch's own, then the query's; None in the graph that
            hands rows on.
        columns: how wide each of them is; grows while layers are written.
        handed: names of what is handed on.
    """

    seen: Layout | None = None
    columns: list[int] = field(default_factory=list)
    handed: list[str] = field(default_factory=list)

    def joined(self, graph: Graph, value: str, columns: int) -> str:
        """Return packed rows ``[T, columns]`` with the query's behind them; in the query's own graph they are these."""
        if self.seen is None:
            if value not in self.handed:
                self.handed.append(value)
                self.columns.append(columns)
            return value

        def make(name: str) -> str:
            self.columns.append(columns)
            rows = ROWS.format(place=len(self.columns) - 1)
            return graph.node("Concat", [value, rows], name, axis=0)

        return graph.once(f"{value}.with_query", make)

    def inputs(self) -> list[ValueInfoProto]:
        """Return the inputs of the graph that takes the rows in, or the outputs of the one that hands them on."""
        return [
            helper.make_tensor_value_info(ROWS.format(place=place), TensorProto.FLOAT, ["query", width])
            for place, width in enumerate(self.columns)
        ]

    def hand_on(self, graph: Graph) -> list[ValueInfoProto]:
        """Write the outputs of the query's graph."""
        for place, value in enumerate(self.handed):
            graph.node("Identity", [value], ROWS.format(place=place))
        return self.inputs()


def keys_of(graph: Graph, layout: Layout, value: str, columns: int) -> tuple[Layout, str]:
    """Return packed rows ``[T, columns]`` with all that their tokens may see, and where it stands."""
    if layout.query_rows is None:
        return seen_by(layout), value
    return seen_by(layout), layout.query_rows.joined(graph, value, columns)


def of_query(graph: Graph, layout: Layout) -> Layout:
    """Return the layout of a query's tokens alone, which stand in a row from the second place on."""
    positions = graph.node("Add", [layout.column, graph.int_scalar(1)], "query.positions")
    return replace(layout, positions=positions, query_rows=QueryRows())


def beside_query(graph: Graph, layout: Layout) -> Layout:
    """Return the layout of rows whose query was taken out: a first token, and what stands behind the query."""
    zero, one = graph.int_scalar(0), graph.int_scalar(1)
    n_query = graph.node(
        "Gather", [graph.node("Shape", [ROWS.format(place=0)], "query.shape"), graph.ints(0)], "query.length"
    )  # [1]
    behind = graph.node("Add", [layout.column, n_query], "query.behind")
    is_first = graph.node("Equal", [layout.column, zero], "query.is_first")
    positions = graph.node("Where", [is_first, zero, behind], "query.own_positions")
    places = graph.node("Range", [zero, graph.node("Squeeze", [n_query], "query.n_tokens"), one], "query.places")
    n_rows = graph.node(
        "Gather", [graph.node("Shape", [layout.mask], "query.batch_shape"), graph.ints(0)], "query.n_rows"
    )
    shape = graph.node("Concat", [n_rows, n_query], "query.slots_shape", axis=0)  # [B, q]
    n_packed = graph.node("Shape", [layout.to_packed], "query.n_packed")
    packed = graph.node("Add", [places, n_packed], "query.packed")
    slots = graph.node("Expand", [packed, shape], "query.slots")
    marks = graph.node("Expand", [one, shape], "query.marks")
    mask = graph.node("Concat", [layout.mask, marks], "seen.mask", axis=1)
    own = graph.node("Add", [places, one], "query.positions")
    seen = replace(
        layout,
        name="seen",
        mask=mask,
        real=graph.node("Cast", [mask], "seen.real", to=TensorProto.BOOL),
        to_padded=graph.node("Concat", [layout.to_padded, slots], "seen.to_padded", axis=1),
        positions=graph.node("Concat", [positions, own], "seen.positions", axis=0),
    )
    return replace(layout, positions=positions, query_rows=QueryRows(seen=seen))
