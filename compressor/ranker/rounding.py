"""Which parts of a spec are rounded: precision is declared here, simulated in torch, lowered at export."""

from __future__ import annotations

from collections.abc import Callable

from compressor.ranker.spec import Int8Dynamic, Int8Rows, LinearSpec, RankerSpec, TableSpec
from compressor.records import Record


def round_spec(spec: RankerSpec, linear: Int8Dynamic, table: Int8Rows | None) -> RankerSpec:
    """Return a spec whose linears, and tables where ``table`` is given, have these precisions.

    The head and the exits stay as they are.
    """

    def rounded(part: Record) -> Record:
        if isinstance(part, LinearSpec):
            return part.changed(precision=linear)
        return part.changed(precision=table) if isinstance(part, TableSpec) and table else part

    return spec.changed(
        embeddings=_map_parts(spec.embeddings, rounded),
        layers=tuple(
            layer.changed(
                **{
                    name: _map_parts(block, rounded)
                    for name, block in (("attention", layer.attention), ("ffn", layer.ffn))
                    if block
                }
            )
            for layer in spec.layers
        ),
    )


def _map_parts(record: Record, change: Callable[[Record], Record]) -> Record:
    return record.changed(**{name: change(value) for name, value in record if isinstance(value, Record)})
