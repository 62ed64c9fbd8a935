"""Which parts of a spec are rounded: precision is declared here, simulated in torch, lowered at export."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.spec import (
    ClassifierHead,
    Float32,
    Int8Rows,
    LinearPrecision,
    LinearSpec,
    RankerSpec,
    TablePrecision,
    TableSpec,
    float_kind,
)
from compressor.records import Record


def roundable_linears(spec: RankerSpec) -> list[str]:
    """Return the names of the linears that passes round: all but those of the head and of exits, in order."""
    return [name for name, _ in linears_of(spec) if not name.startswith("head.") and ".exit." not in name]


def head_linears(spec: RankerSpec) -> list[str]:
    """Return the names of the head's linears that can be rounded: its wide one, not the one that gives the score."""
    return [name for name, _ in linears_of(spec) if name == "head.dense"]


def is_rounded(spec: RankerSpec) -> bool:
    """Whether some linear or table is in another precision than fp32."""
    precisions = [part.precision for _, part in linears_of(spec)], [part.precision for _, part in tables_of(spec)]
    return any(precision.kind != "fp32" for part in precisions for precision in part)


def with_precisions(
    spec: RankerSpec, linears: Mapping[str, LinearPrecision], table: TablePrecision | None = None
) -> RankerSpec:
    """Return a spec in which some linears, and all tables where ``table`` is given, have these precisions.

    Args:
        spec: the shape.
        linears: precision by name, ``layers.3.ffn.down``; the others stay as they are.
        table: the precision of every lookup table; of 4 bits, of the token table, and the small ones take 8.

    Raises:
        ValueError: there is no such linear, it gives scores or belongs to an exit, or fp16 and bf16 meet in one layer.
    """
    unknown = sorted(linears.keys() - {*roundable_linears(spec), *head_linears(spec)})
    if unknown:
        raise ValueError(f"no linears to round: {', '.join(unknown)}")

    def changed(name: str, part: LinearSpec | TableSpec) -> Record:
        if isinstance(part, TableSpec):
            return part.changed(precision=_table_precision(name, table)) if table else part
        return part.changed(precision=linears[name]) if name in linears else part

    return _with_parts(spec, changed)


def _table_precision(name: str, table: TablePrecision) -> TablePrecision:
    return Int8Rows() if table.kind == "int4_blocks" and name != "embeddings.tokens" else table


def round_spec(spec: RankerSpec, linear: LinearPrecision, table: TablePrecision | None) -> RankerSpec:
    """Return a spec whose linears, and tables where ``table`` is given, have these precisions.

    The head and the exits stay as they are.
    """
    return with_precisions(spec, dict.fromkeys(roundable_linears(spec), linear), table)


def in_fp32(spec: RankerSpec) -> RankerSpec:
    """Return a spec whose half-precision parts are fp32; what is rounded to whole numbers stays so."""
    return _with_parts(
        spec,
        lambda _, part: part if float_kind(part.precision) == "fp32" else part.changed(precision=Float32()),
    )


def _with_parts(spec: RankerSpec, change: Callable[[str, LinearSpec | TableSpec], Record]) -> RankerSpec:
    """Return a spec with its tables and its linears changed by name, those that give scores and of exits excepted."""
    head = spec.head
    if isinstance(head, ClassifierHead) and head.dense:
        head = head.changed(dense=change("head.dense", head.dense))
    return spec.changed(
        head=head,
        embeddings=_changed("embeddings", spec.embeddings, change),
        layers=tuple(
            layer.changed(
                **{
                    name: _changed(f"layers.{index}.{name}", block, change)
                    for name, block in (("attention", layer.attention), ("ffn", layer.ffn))
                    if block
                }
            )
            for index, layer in enumerate(spec.layers)
        ),
    )


def _changed(place: str, record: Record, change: Callable[[str, LinearSpec | TableSpec], Record]) -> Record:
    parts = {name: value for name, value in record if isinstance(value, LinearSpec | TableSpec)}
    return record.changed(**{name: change(f"{place}.{name}", value) for name, value in parts.items()})
