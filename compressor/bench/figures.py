"""Numbers as a reader sees them."""

from __future__ import annotations

from compressor.bench.schema import Report, Row

ABSENT = "–"


def shown_ms(value: float) -> str:
    """Return milliseconds with three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown_rate(value: float) -> str:
    """Return a rate per second."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def shown_ratio(value: float) -> str:
    """Return a speed-up such as ``3.1×``."""
    return f"{value:.0f}×" if value >= 100 else f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def shown_mb(size_bytes: int | None) -> str:
    """Return bytes as 10⁶ bytes."""
    if size_bytes is None:
        return ABSENT
    return f"{size_bytes / 1e6:,.1f}" if size_bytes < 1e8 else f"{size_bytes / 1e6:,.0f}"


def shown_count(value: float | None) -> str:
    """Return a count with k, M or G."""
    if value is None:
        return ABSENT
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def shown_share(value: float | None) -> str:
    """Return a share as a percentage with its sign."""
    return ABSENT if value is None else _signed(100 * value, 2) + " %"


def shown_signed(value: float | None) -> str:
    """Return a difference with four decimals and its sign."""
    return ABSENT if value is None else _signed(value, 4)


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits)
    return minus(f"{rounded:+.{digits}f}") if rounded else f"{0:.{digits}f}"


def minus(text: str) -> str:
    """Return a number's text with a true minus sign."""
    return text.replace("-", "−")


def references(report: Report) -> list[str]:
    """Return the rows that speed-ups refer to, in the order of the report."""
    named = {name for row in report.rows for latency in row.latency for name in latency.speedup}
    return [row.name for row in report.rows if row.name in named]


def main_quality(report: Report, row: Row) -> float | None:
    """Return the first measure's mean over all judged data sets, or Kendall's τ with the teacher where none is."""
    measure = report.settings.measures[0]
    means = [row.quality[name][measure].mean for name in row.quality]
    if not means:
        means = [figures["kendall_tau"].mean for figures in row.agreement.values() if figures]
    return sum(means) / len(means) if means else None


def main_quality_name(report: Report) -> str:
    """Return what `main_quality` is."""
    judged = [name for name, data in report.data.items() if data.judged_ids]
    if not judged:
        return "Kendall τ with the teacher"
    return f"{report.settings.measures[0]}, " + (judged[0] if len(judged) == 1 else f"mean of {len(judged)} data sets")
