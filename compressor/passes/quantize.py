"""`quantize`: fewer bits per number. Declared in the spec, simulated in torch, lowered at export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compressor.passes.contract import Need, Pass, PlanError, Promise, Supply
from compressor.passes.precision_placement import KeepWithin, refuse_unfit
from compressor.passes.precision_schemes import (
    SETTINGS_OF,
    WHOLE_NUMBERS,
    Scheme,
    named_linears,
    precision_of,
    table_precision_of,
)
from compressor.passes.refusals import refuse_quantized, refuse_token_rules
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.rounding import head_linears, roundable_linears, with_precisions
from compressor.ranker.spec import (
    DenseSparseForm,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
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
    from compressor.algorithms.rounded_layers import Rounding
    from compressor.ranker.ranker import Ranker

_DEFAULT_PERCENTILE, _DEFAULT_PAIRS = 99.99, 256


@register("quantize")
class Quantize(Pass):
    """Compute linear layers, and store lookup tables, in fewer bits; exits stay fp32, and by default the scoring head.

    ``scheme``:
    ``int8_dynamic``: weights in 8 bits per output channel, activations in 8 bits by their range in each call.
    ``int8_static``: the same, with ranges that calibration pairs fix; no pass over activations to find them, and a
    pair's score does not depend on its batch: the default.
    ``int8_blocks``, ``int4_blocks``: weights by blocks of inputs, activations in 8 bits by blocks of each token
    (`MatMulNBits`; 8 bits want ONNX Runtime 1.22 or later).
    ``fp16``, ``bf16``: whole layers in half precision, for GPUs, in a file of its own beside one in fp32.
    ``none``: nothing.

    ``observer`` (static): ``min_max``, all that was seen; ``percentile``, all but the outermost; ``entropy``, the range
    that loses least information. By default ``min_max``.
    ``percentile``: what share of activations that observer covers, in percent; by default 99.99.
    ``rounding`` (whole numbers): of weights. ``nearest``; ``gptq``, column by column, with those that come later making
    up for each, so that what a linear gives errs least (arXiv 2210.17323); ``awq`` (blocks), channels that read much
    get finer steps, and blocks are cut off where that serves their outputs (arXiv 2306.00978). Scales of ``awq`` go
    where `smooth` has links: behind blocks (BERT), values alone are scaled, and the rest is cut off only. Both look at
    calibration pairs layer by layer, behind rounded layers; lookup tables and the head are rounded to the nearest.
    ``n_pairs`` (static, ``gptq``, ``awq``): calibration pairs, by default 256.
    ``block_size`` (blocks): inputs that share a scale, or numbers of a row of an ``int4`` table: 32, 64 or 128; by
    default 32.
    ``reduce_range`` (dynamic, static): 7-bit weights, for x86 CPUs without VNNI, where 16-bit sums of 8-bit products
    saturate. Our runtime sums those wide there, which takes longer; other runtimes do not, and score wrongly.
    `export: {builds: [int8_reduced_range]}` puts such a build beside one of 8 bits.
    ``embeddings``: round the lookup tables too, to 8 bits with one scale per row, or to half precision (bytes, not
    speed). ``int4``, with schemes of whole numbers: the token table in 4 bits by blocks, the small ones in 8.
    ``head`` (whole numbers): round the wide matrix of the scoring head, too; what gives the score stays fp32.
    ``keep_fp32``: linears that stay as they are: names (``layers.11.ffn.down``), patterns (``*.ffn.down``), or numbers
    of layers from 0, negative ones from the end.
    ``keep_within``: how far scores may move. Each linear's part in it is measured, and as few multiply-adds (or bytes)
    as that takes stay in a higher precision: ``{max_score_rmse: 0.2, precision: int8_blocks}``. Plans show all linears
    rounded, as nothing is measured yet. Limits hold for rounding to the nearest, whatever ``rounding`` does with the
    linears that are not kept. Limits: ``max_score_rmse`` in logits, each list's mean change taken out;
    ``min_kendall_tau``; ``max_ndcg_loss`` to the order before. ``cost``: little of it is kept: ``macs`` or ``bytes``.

    A dynamic activation scale spans a whole batch, so a pair's score moves a little with its batch mates; `bench`
    reports by how much. All other schemes round each token by itself.
    """

    scheme: Scheme = "int8_static"
    rounding: Literal["nearest", "gptq", "awq"] = "nearest"
    observer: Literal["min_max", "percentile", "entropy"] | None = None
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    n_pairs: PositiveInt | None = None
    block_size: Literal[32, 64, 128] | None = None
    reduce_range: bool = False
    embeddings: bool | Literal["int4"] = True
    head: bool = False
    keep_fp32: tuple[int | str, ...] = ()
    keep_within: KeepWithin | None = None

    @model_validator(mode="after")
    def _settings_fit_the_scheme(self) -> Self:
        if self.embeddings == "int4" and self.scheme not in WHOLE_NUMBERS:
            raise ValueError(f"embeddings: int4 belongs to schemes of whole numbers, not to {self.scheme}")
        if self.head and self.scheme not in WHOLE_NUMBERS:
            raise ValueError(f"head belongs to schemes of whole numbers, not to {self.scheme}: leave it out")
        for name, schemes in SETTINGS_OF.items():
            if name == "block_size" and self.embeddings == "int4":
                continue
            if getattr(self, name) not in (None, False, "nearest") and self.scheme not in schemes:
                raise ValueError(f"{name} is a setting of {' and '.join(schemes)}, not of {self.scheme}: leave it out")
        if self.rounding == "awq" and self.scheme not in SETTINGS_OF["block_size"]:
            raise ValueError(
                f"rounding: awq belongs to int8_blocks and int4_blocks: with {self.scheme}, which has one scale for a "
                "whole row of 8-bit weights, activations lose more than weights do; put smooth before, or use gptq"
            )
        if self.n_pairs is not None and not self._calibrates:
            raise ValueError("n_pairs is a setting of int8_static, and of rounding: gptq and awq: leave it out")
        if self.percentile is not None and self.observer != "percentile":
            raise ValueError("percentile belongs to observer: percentile")
        if self.scheme == "none" and self.keep_fp32:
            raise ValueError("keep_fp32 leaves linears out of a scheme, and scheme: none has none")
        if self.keep_within:
            refuse_unfit(self.keep_within, self.scheme)
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"} if self._calibrates or self.keep_within else ())

    @property
    def without_data(self) -> str:
        fitted = self.rounding != "nearest" or self.keep_within
        return "" if fitted else "scheme: int8_dynamic, which finds ranges as it runs"

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        self._refuse_half_rules(spec)
        self._refuse_what_cannot_be_fitted(spec)
        if self.keep_within:
            refuse_token_rules(spec, self.verb, "keep_within")
        return with_precisions(spec, self._precisions(spec), self._table_precision())

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.algorithms.quantization import quantized

        refuse_quantized(ranker.spec, self.verb)
        precisions, table = self._precisions(ranker.spec), self._table_precision()
        placed: Mapping[str, LinearPrecision] = precisions
        pairs = supply.pairs("calibration", self.n_pairs or _DEFAULT_PAIRS) if self._calibrates else []
        if pairs:
            supply.note("calibration_pairs", len(pairs))
        if self.keep_within:
            ranges = self._observed(ranker, precisions, pairs)
            placed = self.keep_within.placed(ranker, precisions, table, ranges, supply)
        if self.rounding != "nearest":
            fitted = set(roundable_linears(ranker.spec))  # layer by layer, which the head is none of
            low = [name for name, one in precisions.items() if name in fitted and placed.get(name) == one]
            ranker = self._fitted(ranker, low, pairs, self.rounding, supply)
        ranges = self._observed(ranker, placed, pairs)
        if ranges:
            shown = {name: [[round(x, 6) for x in pair] for pair in one.tolist()] for name, one in ranges.items()}
            supply.note("input_ranges", shown)
        return quantized(ranker, placed, table, ranges)

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
        kept = {name for entry in self.keep_fp32 for name in named_linears(entry, spec, "keep_fp32")}
        rounded = [name for name in roundable_linears(spec) if name not in kept]
        if not rounded:
            raise PlanError(
                "all linears", allowed="some of them", fix="leave quantize out to keep all", setting="keep_fp32"
            )
        return dict.fromkeys([*rounded, *(head_linears(spec) if self.head else ())], precision)

    @property
    def _calibrates(self) -> bool:
        """Whether ranges or weights are fitted to calibration pairs."""
        return self.scheme == "int8_static" or self.rounding != "nearest"

    def _linear_precision(self) -> LinearPrecision | None:
        return precision_of(self.scheme, block_size=self.block_size or 32, reduce_range=self.reduce_range)

    def _table_precision(self) -> TablePrecision | None:
        if not self.embeddings:
            return None
        return table_precision_of(self.scheme, in_4_bits=self.embeddings == "int4", block_size=self.block_size or 32)

    def _refuse_what_cannot_be_fitted(self, spec: RankerSpec) -> None:
        if self.rounding == "nearest":
            return
        refuse_token_rules(spec, self.verb, "rounding")
        forms = {name: linear.form for name, linear in linears_of(spec)}
        if found := [name for name in self._precisions(spec) if isinstance(forms[name], DenseSparseForm)]:
            raise PlanError(
                f"{found[0]}, stored as atoms and sparse codes, whose product alone is rounded",
                allowed="rounding: nearest, or matrices that are stored",
                fix=f"set rounding: nearest, or name {found[0]} under keep_fp32",
                setting="rounding",
            )

    def _fitted(
        self, ranker: Ranker, names: Sequence[str], pairs: Sequence[tuple[str, str]], how: Rounding, supply: Supply
    ) -> Ranker:
        """Return the ranker, in fp32, with weights on the grid that the scheme will round them on."""
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.quantization import quantized
        from compressor.algorithms.rounded_layers import rounded_layer_by_layer

        precision = self._linear_precision()
        assert isinstance(precision, Int8Dynamic | Int8Static | Int8Blocks | Int4Blocks)  # noqa: S101  # as validated
        batches = calibration_batches(quantized(ranker, {}, self._table_precision()), pairs)
        result, errors = rounded_layer_by_layer(ranker, batches, names, precision, how)
        supply.note("output_errors", {name: [round(x, 9) for x in pair] for name, pair in errors.items()})
        return result

    def _observed(
        self, ranker: Ranker, precisions: Mapping[str, LinearPrecision], pairs: Sequence[tuple[str, str]]
    ) -> Mapping[str, Tensor]:
        """Return the range of what each linear in ``int8_static`` reads."""
        from compressor.algorithms.calibration import calibration_inputs
        from compressor.algorithms.quantization import observed_ranges

        names = [name for name, precision in precisions.items() if precision.kind == "int8_static"]
        if not names:
            return {}
        return observed_ranges(ranker.module, calibration_inputs(ranker, pairs), names, self._observer())

    def _observer(self) -> Observer:
        from compressor.algorithms.observers import Entropy, MinMax, Percentile

        if self.observer == "percentile":
            return Percentile(self.percentile or _DEFAULT_PERCENTILE)
        return Entropy() if self.observer == "entropy" else MinMax()


def _parts(spec: RankerSpec) -> list[tuple[str, LinearSpec | TableSpec]]:
    return [*linears_of(spec), *tables_of(spec)]
