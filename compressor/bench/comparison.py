"""What a comparison of two reports asks, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from compressor.bench.figures import references
from compressor.bench.schema import Check, Report, Verdict3
from compressor.gate_settings import Margins
from compressor.records import Record

WORDS: dict[Verdict3, str] = {"pass": "no regression", "fail": "regression", "undecided": "undecided"}


class Allowed(Record):
    """What may have changed for the worse.

    Attributes:
        max_loss: measure, ``kendall_tau`` or ``overlap@10`` → allowed loss to the old report, written as in the gate;
            ``"1%"`` is a share of the old mean. Empty: 1 % of every measure; of Kendall's τ where nothing is judged.
        max_slowdown: allowed growth of the time per query beside the baseline's, as a share.
        baseline: the row that times are taken beside; None: the stock export, in the row's own runtime where it ran
            there, else the first row that both reports measured speed-ups over.
    """

    max_loss: Margins = Field(default_factory=dict)
    max_slowdown: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    baseline: str | None = None


class Change(Check):
    """One check of a comparison. Losses and slowdowns are positive where the new report is worse."""

    data: str | None = None
    threads: int | None = None
    old: float = Field(description="the mean, or the speed-up over the baseline, in the old report")
    new: float
    interval: tuple[float, float] | None = Field(
        default=None, description="of a slowdown: each end is a one-sided 95 % bound over queries and rounds"
    )
    noise: float | None = Field(
        default=None, description="share by which the rounds' median ratios lie apart, in the noisier of the two runs"
    )


class Comparison(Record):
    """What changed between two reports: regression if any check fails, no regression if all pass, else undecided."""

    version: Literal[1] = 1
    verdict: Verdict3 = Field(description="pass: no regression; fail: regression")
    sentence: str
    old: str = Field(description="file, title and time of the old report")
    new: str
    allowed: Allowed
    changes: list[Change]
    differences: list[str] = Field(description="what else differs: machine, versions, settings, rows, baselines")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of the two reports, and the file that its faults are blamed on."""

    report: Report
    source: str | Path

    def __str__(self) -> str:
        return f"{self.source}: {self.report.title}, {self.report.created}"


def shared_references(old: Side, new: Side) -> list[str]:
    """Return the rows that both reports measured speed-ups over, in the order of the new one."""
    before = references(old.report)
    return [name for name in references(new.report) if name in before]
