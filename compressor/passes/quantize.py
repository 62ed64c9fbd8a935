"""`quantize`: fewer bits per number. Declared in the spec, simulated in torch, lowered at export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compressor.errors import suggest
from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.precision_placement import KeepWithin, refuse_unfit
from compressor.passes.refusals import refuse_quantized, refuse_token_rules
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.rounding import roundable_linears, with_precisions
from compressor.ranker.spec import (
    BFloat16,
    Float16,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Rows,
    Int8Static,
    LinearPrecision,
    LinearSpec,
    RankerSpec,
    TablePrecision,
    TableSpec,
)
from compressor.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.algorithms.observers import Observer
    from compressor.ranker.ranker import Ranker

Scheme = Literal["int8_dynamic", "int8_static", "int8_blocks", "int4_blocks", "fp16", "bf16", "none"]
# Settings that only some schemes have, with what they are where they are left out.
_SETTINGS_OF: dict[str, tuple[Scheme, ...]] = {
    "observer": ("int8_static",),
    "percentile": ("int8_static",),
    "n_pairs": ("int8_static",),
    "block_size": ("int8_blocks", "int4_blocks"),
    "reduce_range": ("int8_dynamic", "int8_static"),
}
_DEFAULT_PERCENTILE, _DEFAULT_PAIRS = 99.99, 256


@register("quantize")
class Quantize(Pass):
    """Compute linear layers, and store lookup tables, in fewer bits; the scoring head and exits stay fp32.

    ``scheme``:
    ``int8_dynamic``: weights in 8 bits per output channel, activations in 8 bits by their range in each call.
    ``int8_static``: the same, with ranges that calibration pairs fix; no pass over activations to find them.
    ``int8_blocks``, ``int4_blocks``: weights by blocks of inputs, activations in 8 bits by blocks of each token
    (`MatMulNBits`; 8 bits want ONNX Runtime 1.22 or later).
    ``fp16``, ``bf16``: whole layers in half precision, for GPUs, in a file of its own beside one in fp32.
    ``none``: nothing.

    ``observer`` (static): ``min_max``, all that was seen; ``percentile``, all but the outermost; ``entropy``, the range
    that loses least information. By default ``min_max``.
    ``percentile``: what share of activations that observer covers, in percent; by default 99.99.
    ``n_pairs`` (static): calibration pairs, by default 256.
    ``block_size`` (blocks): inputs that share a scale, 32, 64 or 128; by default 32.
    ``reduce_range`` (dynamic, static): 7-bit weights, for other runtimes on x86 CPUs without VNNI, where 16-bit sums
    would saturate; ours sums wide there.
    ``embeddings``: round the lookup tables too, to 8 bits with one scale per row, or to half precision (bytes, not
    speed).
    ``keep_fp32``: linears that stay as they are: names (``layers.11.ffn.down``), patterns (``*.ffn.down``), or numbers
    of layers from 0, negative ones from the end.
    ``keep_within``: how far scores may move. Each linear's part in it is measured, and as few multiply-adds (or bytes)
    as that takes stay in a higher precision: ``{max_score_rmse: 0.2, precision: int8_blocks}``. Plans show all linears
    rounded, as nothing is measured yet. Its settings: `compressor.passes.precision_placement`.

    A dynamic activation scale spans a whole batch, so a pair's score moves a little with its batch mates; `bench`
    reports by how much. All other schemes round each token by itself.
    """

    scheme: Scheme = "int8_dynamic"
    observer: Literal["min_max", "percentile", "entropy"] | None = None
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    n_pairs: PositiveInt | None = None
    block_size: Literal[32, 64, 128] | None = None
    reduce_range: bool = False
    embeddings: bool = True
    keep_fp32: tuple[int | str, ...] = ()
    keep_within: KeepWithin | None = None

    @model_validator(mode="after")
    def _settings_fit_the_scheme(self) -> Self:
        for name, schemes in _SETTINGS_OF.items():
            if getattr(self, name) not in (None, False) and self.scheme not in schemes:
                raise ValueError(f"{name} is a setting of {' and '.join(schemes)}, not of {self.scheme}: leave it out")
        if self.percentile is not None and self.observer != "percentile":
            raise ValueError("percentile belongs to observer: percentile")
        if self.scheme == "none" and self.keep_fp32:
            raise ValueError("keep_fp32 leaves linears out of a scheme, and scheme: none has none")
        if self.keep_within:
            refuse_unfit(self.keep_within, self.scheme)
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if self.scheme == "int8_static" or self.keep_within else ())

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        self._refuse_half_rules(spec)
        if self.keep_within:
            refuse_token_rules(spec, self.verb, "keep_within")
        return with_precisions(spec, self._precisions(spec), self._table_precision())

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.algorithms.quantization import quantized

        refuse_quantized(ranker.spec, self.verb)
        precisions = self._precisions(ranker.spec)
        ranges = self._observed(ranker, list(precisions), supply) if self.scheme == "int8_static" else {}
        table = self._table_precision()
        if self.keep_within:
            precisions = self.keep_within.placed(ranker, precisions, table, ranges, supply)
        return quantized(ranker, precisions, table, ranges)

    def promises(self, result: Ranker) -> Sequence[Promise]:
        rounded = {name for name, part in _parts(result.spec) if part.precision.kind != "fp32"}

        def check(ranker: Ranker) -> str | None:
            lost = [n for n, part in _parts(ranker.spec) if n in rounded and part.precision.kind == "fp32"]
            return f"back in fp32: {', '.join(lost)}" if lost else None

        return [Promise(text=f"{len(rounded)} matrices stay rounded", check=check)] if rounded else []

    def _refuse_half_rules(self, spec: RankerSpec) -> None:
        if self.scheme not in ("fp16", "bf16"):
            return
        rounded = {int(name.split(".")[1]) for name in self._precisions(spec) if name.startswith("layers.")}
        if found := [index for index in spec.rule_layers if index in rounded]:
            raise PlanError(
                f"a token rule behind layer {found[0]}, which would be in {self.scheme}",
                allowed="rules that judge tokens in fp32",
                fix=f"name the layers {found} under keep_fp32",
                setting="keep_fp32",
            )

    def _precisions(self, spec: RankerSpec) -> Mapping[str, LinearPrecision]:
        precision = self._linear_precision()
        if precision is None:
            return {}
        kept = {name for entry in self.keep_fp32 for name in _named(entry, spec)}
        rounded = [name for name in roundable_linears(spec) if name not in kept]
        if not rounded:
            raise PlanError(
                "all linears", allowed="some of them", fix="leave quantize out to keep all", setting="keep_fp32"
            )
        return dict.fromkeys(rounded, precision)

    def _linear_precision(self) -> LinearPrecision | None:
        match self.scheme:
            case "int8_dynamic":
                return Int8Dynamic(reduce_range=self.reduce_range)
            case "int8_static":
                return Int8Static(reduce_range=self.reduce_range)
            case "int8_blocks":
                return Int8Blocks(block_size=self.block_size or 32)
            case "int4_blocks":
                return Int4Blocks(block_size=self.block_size or 32)
            case "fp16":
                return Float16()
            case "bf16":
                return BFloat16()
            case "none":
                return None

    def _table_precision(self) -> TablePrecision | None:
        if not self.embeddings or self.scheme == "none":
            return None
        precision = self._linear_precision()
        return precision if isinstance(precision, Float16 | BFloat16) else Int8Rows()

    def _observed(self, ranker: Ranker, names: Sequence[str], supply: Supply) -> Mapping[str, Tensor]:
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.quantization import observed_ranges

        pairs = supply.pairs("calibration", self.n_pairs or _DEFAULT_PAIRS)
        ranges = observed_ranges(ranker.module, calibration_batches(ranker, pairs), names, self._observer())
        supply.note("calibration_pairs", len(pairs))
        supply.note(
            "input_ranges", {name: [[round(x, 6) for x in pair] for pair in ranges[name].tolist()] for name in names}
        )
        return ranges

    def _observer(self) -> Observer:
        from compressor.algorithms.observers import Entropy, MinMax, Percentile

        if self.observer == "percentile":
            return Percentile(self.percentile or _DEFAULT_PERCENTILE)
        return Entropy() if self.observer == "entropy" else MinMax()


def _named(entry: int | str, spec: RankerSpec) -> list[str]:
    """Return the linears that an entry of ``keep_fp32`` stands for."""
    names, n_layers = roundable_linears(spec), len(spec.layers)
    if isinstance(entry, int):
        if not -n_layers <= entry < n_layers:
            raise PlanError(f"layer {entry}", allowed=f"{-n_layers} to {n_layers - 1}", setting="keep_fp32")
        return [name for name in names if name.startswith(f"layers.{entry % n_layers}.")]
    found = [name for name in names if fnmatchcase(name, entry)]
    if not found:
        raise PlanError(
            f"'{entry}', which no linear is called",
            allowed=f"names and patterns of {names[0]} to {names[-1]}, and numbers of layers",
            fix=suggest(entry, names),
            setting="keep_fp32",
        )
    return found


def _parts(spec: RankerSpec) -> list[tuple[str, LinearSpec | TableSpec]]:
    return [*linears_of(spec), *tables_of(spec)]
