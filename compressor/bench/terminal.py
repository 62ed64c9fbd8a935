"""A report in the terminal, fit for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from compressor.bench.figures import (
    ABSENT,
    references,
    shown_mb,
    shown_ms,
    shown_rate,
    shown_ratio,
    shown_share,
)  # fmt: skip
from compressor.bench.schema import Check, Report, Row, Verdict, Verdict3
from compressor.bench.sparkline import training_line

COLORS: dict[Verdict3, str] = {"pass": "green", "fail": "red", "undecided": "yellow"}
_WIDE = 1000  # columns: wider than any table
_LONG = 8  # characters of a measure's name that stand in one line
_MARKS: dict[Verdict3, str] = {"pass": "✓", "fail": "✗", "undecided": "?"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Print quality, speed and size of every row, notes, and the gate's checks."""
    console = console or Console()
    machine = report.machine
    runtime = machine.versions.get("onnxruntime") or machine.versions.get("onnxruntime-gpu", ABSENT)
    console.print(f"\n[bold]{escape(report.title)}[/bold]", highlight=False)
    console.print(
        f"{escape(machine.cpu)}, {machine.available_threads} of {machine.logical_cpus} CPUs, onnxruntime {runtime}",
        style="dim", highlight=False, soft_wrap=True,
    )  # fmt: skip
    for data in report.data:
        for measures in _measures_that_fit(report, data, console):
            console.print(_quality_table(report, data, measures))
    for place in range(len(report.rows[0].latency)):
        console.print(_speed_table(report, place))
    for entry in report.history:
        if line := training_line(entry.series):
            console.print(f"{escape(entry.verb)}: {escape(line)}", highlight=False)
    for note in report.notes:
        console.print(f"[yellow]![/yellow] {escape(note)}", highlight=False)
    if report.gate:
        print_verdict(report.gate, console)


def print_verdict(verdict: Verdict, console: Console | None = None) -> None:
    """Print every check as a sentence, then the verdict."""
    console = console or Console()
    print_checks(verdict.checks, console)
    color = COLORS[verdict.verdict]
    console.print(f"[bold {color}]Gate: {escape(verdict.sentence)}[/bold {color}]", highlight=False, soft_wrap=True)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Print every check as a sentence behind its mark."""
    for check in checks:
        color, mark = COLORS[check.verdict], _MARKS[check.verdict]
        console.print(f"[{color}]{mark}[/{color}] {escape(check.sentence)}", highlight=False, soft_wrap=True)


def _measures_that_fit(report: Report, data: str, console: Console) -> list[tuple[str, ...]]:
    """Share the measures out over as few tables as the console's width allows."""
    measures = report.settings.measures if report.data[data].judged_ids else ()
    shares: list[tuple[str, ...]] = [measures[:1]]
    for measure in measures[1:]:
        longer = (*shares[-1], measure)
        unbounded = console.options.update_width(_WIDE)
        if Measurement.get(console, unbounded, _quality_table(report, data, longer)).maximum <= console.width:
            shares[-1] = longer
        else:
            shares.append((measure,))
    return shares


def _quality_table(report: Report, data: str, measures: Sequence[str]) -> Table:
    summary = report.data[data]
    table = _table(f"{escape(data)}: {summary.n_queries:,} queries, {len(summary.judged_ids):,} judged")
    for measure in measures:
        _add_numbers(table, measure, "loss %", "< %")
    _add_numbers(table, "τ", "top 10")
    for row in report.rows:
        cells = []
        for measure in measures:
            found = row.quality[data][measure]
            mean = report.row(report.teacher).quality[data][measure].mean
            bound = found.loss_bound / mean if found.loss_bound is not None and mean else None
            cells += [
                f"{found.mean:.4f}",
                *(shown_share(share).removesuffix(" %") for share in (found.loss_share, bound)),
            ]
        figures = row.agreement[data]
        cells += [f"{figures[name].mean:.3f}" if name in figures else ABSENT for name in ("kendall_tau", "overlap@10")]
        table.add_row(_name(row), *cells)
    shared = f"τ, top 10: Kendall's τ and shared top ten with {escape(report.teacher)}"
    loss = f"loss %: of {escape(report.teacher)}; < %: the loss is below this with 95 % confidence; "
    table.caption = (loss if measures else "") + shared
    return table


def _speed_table(report: Report, place: int) -> Table:
    work = report.workload
    threads = report.rows[0].latency[place].threads
    per_query = work.n_pairs / max(1, work.n_queries)
    table = _table(f"{threads} thread{'s' * (threads != 1)}, {per_query:.0f} candidates a query")
    against = references(report)
    _add_numbers(table, "p50 ms", "p95 ms", "pairs/s", *(f"× {name}" for name in against), "file MB", "mem. MB")
    for row in report.rows:
        one = row.latency[place]
        table.add_row(
            _name(row), shown_ms(one.p50_ms), shown_ms(one.p95_ms), shown_rate(one.pairs_per_s),
            *(shown_ratio(one.speedup[name]) if name in one.speedup else ABSENT for name in against),
            shown_mb(row.size_bytes), shown_mb(one.peak_memory_bytes),
        )  # fmt: skip
    table.caption = "×: how many times as fast, median of ratios within a round"
    return table


def _table(title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", caption_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("row", overflow="fold")
    return table


def _add_numbers(table: Table, *heads: str) -> None:
    for head in heads:
        # Long names of baselines and measures break over lines; numbers never do.
        broken = head.replace("@", "\n@") if len(head) > _LONG else head
        table.add_column(broken.replace("_", " "), justify="right")


def _name(row: Row) -> str:
    return f"[bold]{escape(row.name)}[/bold]" if row.kind == "ranker" else escape(row.name)
