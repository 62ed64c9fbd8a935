"""The gate: a report is held against limits, and passes, fails, or cannot decide.

A report alone is enough: it keeps the per-query values and the speed-ups' intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compressor.bench.figures import minus
from compressor.bench.schema import Check, Report, Row, Verdict, Verdict3
from compressor.bench.significance import Claim, Decision, decide
from compressor.errors import EXIT_GATE_FAILED, EXIT_PASS, EXIT_UNDECIDED, Fault, InputError, suggest
from compressor.gate_settings import GateSettings, parse_margin

FIGURE_NAMES = {"kendall_tau": "Kendall's τ", "overlap@10": "top-10 overlap"}
FEWEST_TIMED_QUERIES = 5  # below that, no order statistic bounds a median with 95 % confidence

EXIT_CODES: dict[Verdict3, int] = {"pass": EXIT_PASS, "fail": EXIT_GATE_FAILED, "undecided": EXIT_UNDECIDED}


def gate_report(report: Report, settings: GateSettings, *, rows: Sequence[str] | None = None) -> Verdict:
    """Hold rows of a report against limits.

    1. Losses, agreement and score error are claims about means over queries, decided by bounds (`significance`); all
       of one row are Holm-corrected together.
    2. A speed-up passes when the lower end of its interval reaches the limit, fails when the upper end does not, at
       every measured thread count.
    3. A size is a number.

    Args:
        rows: names of the rows to check; None: all of kind ``ranker`` except the teacher.

    Raises:
        InputError: the report lacks something that the settings ask for, or nothing is asked for at all.
    """
    chosen = _chosen_rows(report, rows)
    _check_settings(report, settings)
    checks = [check for row in chosen for check in _row_checks(report, row, settings)]
    verdict, counts = overall(checks)
    return Verdict(verdict=verdict, checks=checks, settings=settings, sentence=f"{verdict}: {counts}.")


def overall(checks: Sequence[Check]) -> tuple[Verdict3, str]:
    """Return pass if all checks pass, fail if any fails, else undecided; and how many do which, in words."""
    verdicts = [check.verdict for check in checks]
    verdict: Verdict3 = "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"
    counts = ", ".join(f"{verdicts.count(one)} {one}" for one in ("pass", "fail", "undecided") if one in verdicts)
    return verdict, f"{len(checks)} check{'s' * (len(checks) != 1)} ({counts})"


def speed_verdict(low: float, high: float, limit: float, n_queries: int) -> Verdict3:
    """Hold the interval of a ratio of times against the limit that it is to reach.

    Args:
        n_queries: timed queries behind it; too few of them never decide.
    """
    if n_queries < FEWEST_TIMED_QUERIES:
        return "undecided"
    return "pass" if low >= limit else "fail" if high < limit else "undecided"


def _chosen_rows(report: Report, names: Sequence[str] | None) -> list[Row]:
    known = {row.name: row for row in report.rows}
    if names is None:
        chosen = [row for row in report.rows if row.kind == "ranker" and row.name != report.teacher]
        if not chosen:
            fix = "measure another folder beside the teacher"
            raise InputError(Fault(source="gate", found="no row to check", allowed="a ranker row", fix=fix))
        return chosen
    faults = [
        Fault(source="gate", where="rows", found=repr(name), allowed=", ".join(known), fix=suggest(name, known))
        for name in names if name not in known
    ]  # fmt: skip
    if faults:
        raise InputError(faults)
    return [known[name] for name in names]


def _check_settings(report: Report, settings: GateSettings) -> None:
    faults = []
    if settings.is_empty:
        allowed = "max_loss, min_speedup, max_size_mb, min_agreement, max_score_rmse"
        faults.append(Fault(source="gate", found="no limits", allowed=allowed))
    judged = [name for name, data in report.data.items() if data.judged_ids]
    if settings.max_loss and not judged:
        found = "a limit on losses, but no data set with judgments"
        fix = "gate agreement with the teacher, which needs none"
        faults.append(Fault(source="gate", where="max_loss", found=found, fix=fix))
    measured = [str(name) for name in report.settings.measures]
    faults += [_unknown("max_loss", name, measured) for name in settings.max_loss if name not in measured]
    if "overlap@10" in settings.min_agreement and report.settings.candidates <= 10:
        found = f"overlap@10 over {report.settings.candidates} candidates, which share all of their top ten"
        fix = "measure more candidates, or gate kendall_tau"
        faults.append(Fault(source="gate", where="min_agreement", found=found, allowed="over 10 candidates", fix=fix))
    references = _references(report)
    faults += [_unknown("min_speedup", name, references) for name in settings.min_speedup if name not in references]
    if faults:
        raise InputError(faults)


def _references(report: Report) -> list[str]:
    return sorted({name for row in report.rows for latency in row.latency for name in latency.speedup})


def _unknown(where: str, name: str, allowed: Sequence[str]) -> Fault:
    fix = suggest(name, allowed)
    return Fault(source="gate", where=where, found=f"{name!r}, not in the report", allowed=", ".join(allowed), fix=fix)


def _row_checks(report: Report, row: Row, settings: GateSettings) -> list[Check]:
    asked = _claims(report, row, settings)
    decisions = decide(
        [one.claim for one in asked], confidence=settings.confidence, min_queries=settings.min_queries
    )  # fmt: skip
    checks = [quality_check(row, *pair, settings) for pair in zip(asked, decisions, strict=True)]
    checks += [
        _speed_check(row, baseline, limit, place)
        for baseline, limit in settings.min_speedup.items() if baseline != row.name
        for place in range(len(row.latency))
    ]  # fmt: skip
    if settings.max_size_mb is not None:
        checks.append(_size_check(row, settings.max_size_mb))
    return checks


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A claim about a mean over queries, and how to speak about it.

    Attributes:
        sign: −1 where the claim is about minus the reported value, so that the value must stay below its limit.
        is_square: the claim is about the square of the reported value.
        allowed: the limit in words; empty: the number says it.
    """

    name: str
    kind: Literal["loss", "agreement", "score_rmse"]
    claim: Claim
    limit: float
    unit: str = ""
    sign: int = 1
    is_square: bool = False
    allowed: str = ""

    def reported(self, mean: float) -> float:
        """Turn a mean, or a bound of it, into the reported value."""
        value = self.sign * mean
        return math.sqrt(max(0.0, value)) if self.is_square else value + 0.0


def _claims(report: Report, row: Row, settings: GateSettings) -> list[Asked]:
    asked = []
    for data, summary in report.data.items():
        if summary.judged_ids:
            asked += [_loss(report, row, data, measure, margin) for measure, margin in settings.max_loss.items()]
        if not summary.agreement_ids:
            continue
        figures = row.agreement[data]
        for figure, limit in settings.min_agreement.items():
            claim = Claim(values=np.array(figures[figure].per_query), limit=limit, or_equal=True, highest=1.0)
            name = f"{FIGURE_NAMES[figure]} with the teacher on {data}"
            asked.append(Asked(name=name, kind="agreement", claim=claim, limit=limit))
        if settings.max_score_rmse is not None:
            asked.append(_score_error(figures["score_rmse"].per_query, data, settings.max_score_rmse))
    return asked


def _score_error(squares: Sequence[float], data: str, limit: float) -> Asked:
    claim = Claim(values=-np.array(squares), limit=-(limit**2), or_equal=True)
    return Asked(
        name=f"score difference (RMSE) on {data}", kind="score_rmse", claim=claim, limit=limit, unit="logits",
        sign=-1, is_square=True,
    )  # fmt: skip


def _loss(report: Report, row: Row, data: str, measure: str, margin_text: str | float) -> Asked:
    values, reference = row.quality[data][measure], report.row(report.teacher).quality[data][measure]
    margin = parse_margin(margin_text)
    limit = margin.absolute(reference.mean)
    share = f" ({margin_text} of the teacher's {reference.mean:.4f})" if margin.of_teacher else ""
    difference = np.array(values.per_query) - np.array(reference.per_query)
    return Asked(
        name=f"{measure} loss on {data}", kind="loss", claim=Claim(values=difference, limit=-limit), limit=limit,
        unit=measure, sign=-1, allowed=f"{limit:.4f}{share}",
    )  # fmt: skip


def quality_check(row: Row, asked: Asked, found: Decision, settings: GateSettings) -> Check:
    """Put a decided claim into a sentence with its value, bound, limit and, where undecided, the queries needed."""
    value = asked.reported(found.mean)
    failed = found.verdict == "fail"
    level, mean_bound = (found.level_upper, found.upper) if failed else (found.level_lower, found.lower)
    bound = None if math.isnan(mean_bound) else asked.reported(mean_bound)
    # A claim about minus the value turns its sides around, and so does a failure, which shows the opposite.
    side = "at most" if (asked.sign < 0) != failed else "at least"
    limit = f"allowed is {'at most' if asked.sign < 0 else 'at least'} {asked.allowed or f'{asked.limit:g}'}"
    sentence = f"{row.name}: {asked.name} is {minus(f'{value:.4f}')}"
    if found.n < settings.min_queries:
        sentence += f" on {found.n} queries, too few to decide anything ({settings.min_queries} needed)."
    else:
        sentence += f", with {100 * (1 - level):.4g} % confidence {side} {minus(f'{bound:.4f}')}; {limit}."
        sentence += _needed(found) if found.verdict == "undecided" else ""
    return Check(
        name=asked.name, row=row.name, kind=asked.kind, verdict=found.verdict, value=value, bound=bound,
        limit=asked.limit, unit=asked.unit, level=level, n=found.n, n_needed=found.n_needed, sentence=sentence,
    )  # fmt: skip


def _needed(found: Decision) -> str:
    if found.n_needed is None:
        return f" {found.n} queries do not decide, and at this value no number of queries would."
    return f" {found.n} queries do not decide; about {found.n_needed:,} would (80 % power)."


def _speed_check(row: Row, baseline: str, limit: float, place: int) -> Check:
    latency = row.latency[place]
    ratio, (low, high) = latency.speedup[baseline], latency.speedup_interval[baseline]
    n = len(latency.samples_ms[0])
    verdict = speed_verdict(low, high, limit, n)
    rest = f", interval {low:.2f} to {high:.2f}; asked for is at least {limit:g}"
    if n < FEWEST_TIMED_QUERIES:
        rest = f", but {n} timed queries are too few to bound it ({FEWEST_TIMED_QUERIES} needed)"
    elif verdict == "undecided":
        rest += "; more rounds or queries, or a quieter machine, would decide"
    name = f"speed-up over {baseline}, {latency.threads} thread{'s' * (latency.threads != 1)}"
    return Check(
        name=name, row=row.name, kind="speedup", verdict=verdict, value=ratio, limit=limit, unit="×",
        bound=high if verdict == "fail" else low, level=0.05, n=n, n_needed=FEWEST_TIMED_QUERIES if n < 5 else None,
        sentence=f"{row.name}: {name} is {ratio:.2f}×{rest}.",
    )  # fmt: skip


def _size_check(row: Row, limit_mb: float) -> Check:
    if row.size_bytes is None:
        fix = "its weights are in no single file that could be weighed"
        raise InputError(Fault(source="gate", where="max_size_mb", found=f"no size for row {row.name!r}", fix=fix))
    size_mb = row.size_bytes / 1e6
    verdict: Verdict3 = "pass" if size_mb <= limit_mb else "fail"
    return Check(
        name="file size", row=row.name, kind="size", verdict=verdict, value=size_mb, bound=size_mb, limit=limit_mb,
        unit="MB", sentence=f"{row.name}: the file has {size_mb:.1f} MB; allowed is at most {limit_mb:g} MB.",
    )  # fmt: skip
