"""`report.json`, version 1. Every figure carries its unit in its name or description.

`report.schema.json` beside this file is the same as JSON Schema; a test keeps the two in step. Readers of version 1
may rely on the names here; a field may be added without a new version, none removed or changed in meaning.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from compressor.cpu import CpuClass, class_of
from compressor.gate_settings import BenchSettings, GateSettings
from compressor.records import Record

Verdict3 = Literal["pass", "fail", "undecided"]


class Machine(Record):
    """What the numbers were measured on."""

    cpu: str
    isa: list[str] = Field(description="instruction-set extensions that decide which kernels run")
    logical_cpus: int = Field(description="CPUs of the host")
    available_threads: int = Field(description="threads that affinity and quota leave to this process")
    cpu_quota: float | None = Field(default=None, description="CPUs that the container may use; null: no limit")
    gpus: list[str] = Field(default_factory=list, description="NVIDIA GPUs, where their driver names them")
    memory_bytes: int | None = None
    os: str
    architecture: str
    versions: dict[str, str]

    @property
    def cpu_class(self) -> CpuClass:
        """The class of CPUs that compute int8 products as this one does."""
        return class_of(self.isa)


class DataSummary(Record):
    """One data set as it was used."""

    fingerprint: str
    first_stage: str = Field(description="where the candidates come from")
    n_queries: int
    n_pairs: int = Field(description="query-document pairs scored per row")
    candidates: int = Field(description="largest number of candidates of a query")
    judged_ids: list[str] = Field(description="queries that the arrays `per_query` of quality follow")
    agreement_ids: list[str] = Field(description="queries that the arrays `per_query` of agreement follow")


class Workload(Record):
    """The queries that were timed."""

    n_queries: int
    n_pairs: int = Field(description="pairs of all timed queries together")
    rounds: int
    mean_tokens: float | None = Field(default=None, description="tokens per pair, of the teacher's tokenizer")
    p95_tokens: float | None = None
    busy_share: float | None = Field(
        default=None, description="share of the machine's CPU time that other work took, sampled between the turns"
    )


class Measured(Record):
    """One measure of one row on one data set. `loss` is teacher − row: positive is worse."""

    mean: float
    loss: float | None = Field(default=None, description="mean loss to the teacher, in the measure's units")
    loss_share: float | None = Field(default=None, description="loss as a share of the teacher's mean")
    loss_bound: float | None = Field(
        default=None, description="the loss is below this with 95 % confidence (one-sided BCa bootstrap over queries)"
    )
    per_query: list[float]


class Agreed(Record):
    """One figure of agreement with the teacher on one data set."""

    mean: float
    bound: float | None = Field(
        default=None, description="one-sided 95 % bound on the worse side: lower for shares, upper for errors"
    )
    per_query: list[float]


class Latency(Record):
    """One row at one thread count. Times are per query of `Workload` pairs/queries, tokenization included."""

    threads: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    tokenize_p50_ms: float
    forward_p50_ms: float
    pairs_per_s: float
    load_s: float = Field(description="from folder to ready, imports not counted")
    import_s: float = Field(description="importing the runtime")
    peak_memory_bytes: int = Field(description="largest resident set of the row's process")
    speedup: dict[str, float] = Field(description="baseline → median of paired time ratios; above 1 is faster")
    speedup_interval: dict[str, tuple[float, float]] = Field(
        description="each end is a one-sided 95 % bound (bootstrap over queries, then rounds)"
    )
    samples_ms: list[list[float]] = Field(description="[rounds][timed queries]")


class BatchSensitivity(Record):
    """How far a pair's score moves between alone and a batch with long mates, in logits."""

    n_pairs: int
    max_shift: float
    mean_shift: float
    max_shift_share: float | None = Field(description="of the standard deviation of the row's scores")


class Row(Record):
    """Everything about one row."""

    name: str
    kind: Literal["baseline", "ranker"]
    engine: str
    folder: str
    file: str | None = None
    fingerprint: str
    scores_of: str | None = Field(default=None, description="the same model: its quality figures stand here")
    scores_of_difference: float | None = Field(default=None, description="largest score difference to it, timed pairs")
    quality: dict[str, dict[str, Measured]] = Field(description="data set → measure")
    agreement: dict[str, dict[str, Agreed]] = Field(
        description="data set → kendall_tau, overlap@10, score_rmse (logits; `per_query` holds mean squares)"
    )
    tie_rate: dict[str, float] = Field(description="data set → share of candidates that share their score")
    latency: list[Latency]
    batch_sensitivity: BatchSensitivity | None = None
    size_bytes: int | None = Field(default=None, description="the file that is loaded, with external data")
    packed_bytes: int | None = Field(
        default=None, description="what `rankpress pack` makes of that file, where matrices are declared sparse"
    )
    parameters: int | None = None
    macs_per_pair: float | None = Field(default=None, description="multiply-adds, mean over the timed pairs")
    macs_scope: str | None = Field(default=None, description="what `macs_per_pair` counts")
    stage_shares: list[float] | None = Field(
        default=None, description="of a cascade: share of the timed candidates that went on behind each stage"
    )


class Check(Record):
    """One named check of the gate."""

    name: str
    row: str
    kind: Literal["loss", "speedup", "size", "agreement", "score_rmse"]
    verdict: Verdict3
    value: float
    bound: float | None = Field(default=None, description="the bound that was held against the limit")
    limit: float
    unit: str
    level: float | None = Field(default=None, description="error level of the bound, after Holm's correction")
    n: int | None = Field(default=None, description="queries behind the value")
    n_needed: int | None = Field(default=None, description="queries that would decide with 80 % power")
    sentence: str


class Verdict(Record):
    """The gate's answer: pass if all checks pass, fail if any fails, else undecided."""

    verdict: Verdict3
    checks: list[Check]
    settings: GateSettings
    sentence: str


class HistoryEntry(Record):
    """One applied pass, and what changed with it."""

    verb: str
    settings: dict[str, Any] = Field(default_factory=dict)
    notes: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    parameters: int | None = Field(default=None, description="after the pass")
    macs_per_pair: float | None = Field(default=None, description="after the pass")
    series: dict[str, list[tuple[float, float]]] = Field(
        default_factory=dict,
        description="curves of training over pairs seen, as [x, y] points: loss, loss/PART, dev/MEASURE, learning_rate",
    )

    @field_validator("series")
    @classmethod
    def _finite_points(cls, value: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
        """Leave out points that JSON cannot hold."""
        return {name: [point for point in points if all(map(math.isfinite, point))] for name, points in value.items()}


class Report(Record):
    """A whole report."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    title: str
    created: str = Field(description="UTC, ISO 8601")
    teacher: str = Field(description="the row that losses refer to")
    settings: BenchSettings
    machine: Machine
    data: dict[str, DataSummary]
    workload: Workload
    rows: list[Row]
    gate: Verdict | None = None
    history: list[HistoryEntry] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="what a reader must know: cut rounds, a busy machine")

    def row(self, name: str) -> Row:
        """Return the row of this name."""
        return next(row for row in self.rows if row.name == name)
