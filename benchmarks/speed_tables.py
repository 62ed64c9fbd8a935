"""Tables of speed beside quality, out of reports."""

from __future__ import annotations

from compressor.bench.figures import ABSENT, shown_mb, shown_rate, shown_signed
from compressor.bench.schema import Report, Row
from compressor.measured_card import conditions


def speed_table(report: Report, title: str, reference: str) -> str:
    """Return the table, speed as a ratio to one row, with its conditions above and notes below."""
    measure = report.settings.measures[0]
    heads = [
        "ranker", "pairs/s", f"× {reference}", "MB", f"{measure}, loss (at most)", "Kendall's τ",
        "a pair's score moves with its batch by",
    ]  # fmt: skip
    lines = [heads, ["---"] * len(heads), *(_cells(row, reference, measure) for row in report.rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    explained = (
        "In brackets behind a ratio are its one-sided 95 % bounds. The last column is the largest shift of a short "
        "pair's score between alone and beside long ones, in logits and as a share of the scores' standard deviation."
    )
    notes = [f"- {note}" for note in report.notes]
    return "\n".join([f"# {title}", "", conditions(report), explained, "", *table, "", *notes, ""])


def _cells(row: Row, reference: str, measure: str) -> list[str]:
    latency, shift = row.latency[0], row.batch_sensitivity
    quality = next(iter(row.quality.values()), {}).get(measure)
    agreement = next(iter(row.agreement.values()), {}).get("kendall_tau")
    speed = ABSENT
    if reference in latency.speedup:
        low, high = latency.speedup_interval[reference]
        speed = f"{latency.speedup[reference]:.2f} ({low:.2f}–{high:.2f})"
    share = f" ({100 * shift.max_shift_share:.2g} %)" if shift and shift.max_shift_share is not None else ""
    lost = quality and quality.loss is not None
    return [
        row.name,
        shown_rate(latency.pairs_per_s),
        speed,
        shown_mb(row.size_bytes),
        f"{shown_signed(quality.loss)} ({shown_signed(quality.loss_bound)})" if quality and lost else ABSENT,
        f"{agreement.mean:.3f}" if agreement else ABSENT,
        f"{shift.max_shift:.2g}{share}" if shift else ABSENT,
    ]
