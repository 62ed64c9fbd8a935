"""The schemes of `quantize` by name, and which linears an entry of its settings stands for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from compressor.errors import suggest
from compressor.passes.contract import PlanError
from compressor.ranker.rounding import roundable_linears
from compressor.ranker.spec import (
    BFloat16,
    Float16,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    LinearPrecision,
    RankerSpec,
    TablePrecision,
)

Scheme = Literal["int8_dynamic", "int8_static", "int8_blocks", "int4_blocks", "fp16", "bf16", "none"]

WHOLE_NUMBERS: tuple[Scheme, ...] = ("int8_dynamic", "int8_static", "int8_blocks", "int4_blocks")
# Settings that only some schemes have.
SETTINGS_OF: dict[str, tuple[Scheme, ...]] = {
    "rounding": WHOLE_NUMBERS,
    "observer": ("int8_static",),
    "percentile": ("int8_static",),
    "block_size": ("int8_blocks", "int4_blocks"),
    "reduce_range": ("int8_dynamic", "int8_static"),
}


def precision_of(scheme: Scheme, *, block_size: int, reduce_range: bool) -> LinearPrecision | None:
    """Return what linears of a scheme compute in; None where they stay as they are."""
    match scheme:
        case "int8_dynamic":
            return Int8Dynamic(reduce_range=reduce_range)
        case "int8_static":
            return Int8Static(reduce_range=reduce_range)
        case "int8_blocks":
            return Int8Blocks(block_size=block_size)
        case "int4_blocks":
            return Int4Blocks(block_size=block_size)
        case "fp16":
            return Float16()
        case "bf16":
            return BFloat16()
        case "none":
            return None


def table_precision_of(scheme: Scheme, *, in_4_bits: bool, block_size: int) -> TablePrecision | None:
    """Return what lookup tables of a scheme are stored in."""
    if in_4_bits:
        return Int4Blocks(block_size=block_size)
    match scheme:
        case "none":
            return None
        case "fp16":
            return Float16()
        case "bf16":
            return BFloat16()
        case _:
            return Int8Rows()


def named_linears(entry: int | str, spec: RankerSpec, setting: str) -> list[str]:
    """Return the linears that a name, a pattern or a layer's number in a setting stands for.

    Raises:
        PlanError: the ranker has none such; names ``setting``.
    """
    names, n_layers = roundable_linears(spec), len(spec.layers)
    if isinstance(entry, int):
        if not -n_layers <= entry < n_layers:
            raise PlanError(f"layer {entry}", allowed=f"{-n_layers} to {n_layers - 1}", setting=setting)
        return [name for name in names if name.startswith(f"layers.{entry % n_layers}.")]
    found = [name for name in names if fnmatchcase(name, entry)]
    if not found:
        raise PlanError(
            f"'{entry}', which no linear is called",
            allowed=f"names and patterns of {names[0]} to {names[-1]}, and numbers of layers",
            fix=suggest(entry, names),
            setting=setting,
        )
    return found
