"""The recipe's ``bench:`` and ``gate:`` blocks as plain records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from compressor.records import Record

_MEASURE = re.compile(r"[^\W\d]\w*(\([^()]*\))?(@[1-9]\d*)?")

STOCK_ONNX, TORCH = "stock_onnx_fp32", "torch_fp32_padded"
BASELINES = (STOCK_ONNX, TORCH)  # the rows that every `compress` adds

Agreement = Literal["kendall_tau", "overlap@10"]
Target = Literal["onnxruntime", "cuda", "tensorrt", "openvino", "openvino_bf16"]
STANDARD_OPS: tuple[Target, ...] = ("tensorrt", "openvino", "openvino_bf16")  # those without ONNX Runtime's own ops
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _measure_name(name: str) -> str:
    if not _MEASURE.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a measure; write it like nDCG@10, RR@10, AP or R(rel=2)@100")
    return name


MeasureName = Annotated[str, AfterValidator(_measure_name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Margin:
    """An allowed loss: a share of the teacher's mean, or an absolute amount of the measure."""

    amount: float
    of_teacher: bool

    def absolute(self, teacher_mean: float) -> float:
        """Return the allowed loss in units of the measure."""
        return self.amount * teacher_mean if self.of_teacher else self.amount


def parse_margin(text: str | float) -> Margin:
    """Read ``"1%"`` (of the teacher's mean) or ``0.005`` (absolute).

    Raises:
        ValueError: neither of the two forms, or a margin that cannot be meant.
    """
    written = str(text).strip()
    of_teacher = written.endswith("%")
    try:
        amount = float(written.removesuffix("%")) / (100 if of_teacher else 1)
    except ValueError:
        raise ValueError(f"{text!r} is not a margin; write '1%' (of the teacher's mean) or 0.005 (absolute)") from None
    if amount == 0:
        raise ValueError("a loss of exactly 0 cannot be shown on a sample; use min_agreement: {kendall_tau: 1}")
    if not 0 < amount < 1:
        hint = f"; did you mean '{amount:g}%'?" if amount >= 1 and not of_teacher else ""
        raise ValueError(f"{written} is outside 0 to 1 (0% to 100%){hint}")
    return Margin(amount=amount, of_teacher=of_teacher)


def _margin_text(value: str | float) -> str | float:
    parse_margin(value)
    return value


Margins = dict[MeasureName, Annotated[str | float, AfterValidator(_margin_text)]]


class BenchSettings(Record):
    """How rows are measured.

    Attributes:
        threads: thread counts at which latency is measured, each on its own.
        candidates: documents per query, for quality and for latency.
        measures: names of ir-measures.
        targets: the runtimes that rankers run in, each a row: ``onnxruntime`` on the CPU; on NVIDIA GPUs its providers
            ``cuda`` and ``tensorrt``; ``openvino`` (computing in fp32) and ``openvino_bf16``. One that is not there is
            left out, and the report says so.
        n_queries: queries that are timed, spread over all data sets.
        rounds: how often every row ranks every timed query; rows take turns within a round.
        warmup_queries: queries that each row ranks first, unmeasured.
        time_budget_s: longest time for the timing part; rounds, then queries, are cut to fit. None: no limit.
        padded_batch_pairs: batch size of the baseline ``torch_fp32_padded``.
        seed: of the sample of timed queries and of the order of turns.
    """

    threads: tuple[PositiveInt, ...] = Field(default=(1, 2), min_length=1)
    candidates: PositiveInt = 100
    measures: tuple[MeasureName, ...] = Field(default=("nDCG@10", "RR@10"), min_length=1)
    targets: tuple[Target, ...] = Field(default=("onnxruntime",), min_length=1)
    n_queries: PositiveInt = 20
    rounds: PositiveInt = 5
    warmup_queries: PositiveInt = 2
    time_budget_s: PositiveFloat | None = None
    padded_batch_pairs: PositiveInt = 32
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _nothing_twice(self) -> BenchSettings:
        for name in ("threads", "measures", "targets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {', '.join(map(str, values))}")
        return self


class GateSettings(Record):
    """What a compressed ranker must keep.

    Attributes:
        max_loss: measure → allowed loss to the teacher, ``"1%"`` (of the teacher's mean) or ``0.005`` (absolute);
            checked on every data set with judgments.
        min_speedup: baseline → how many times as fast as it, checked at every measured thread count.
        max_size_mb: file size in 10⁶ bytes.
        min_agreement: ``kendall_tau`` and ``overlap@10`` with the teacher, means over queries; no judgments needed.
        max_score_rmse: root mean square difference of scores to the teacher's, both centered per query.
        confidence: of every bound, before Holm's correction.
        min_queries: fewer queries than this never decide anything.
    """

    max_loss: Margins = Field(default_factory=dict)
    min_speedup: dict[str, PositiveFloat] = Field(default_factory=dict)
    max_size_mb: PositiveFloat | None = None
    min_agreement: dict[Agreement, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    max_score_rmse: PositiveFloat | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    min_queries: Annotated[int, Field(ge=2)] = 20

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is asked for."""
        numbers = (self.max_size_mb, self.max_score_rmse)
        return not (self.max_loss or self.min_speedup or self.min_agreement) and all(x is None for x in numbers)
