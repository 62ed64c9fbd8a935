"""A report as one self-contained page: no scripts, no outside resources, light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from compressor.bench.figures import (
    ABSENT,
    main_quality_name,
    minus,
    references,
    shown_mb,
    shown_rate,
    shown_ratio,
    shown_share,
)  # fmt: skip
from compressor.bench.plot import pareto_plots
from compressor.bench.plot_curves import training_plots
from compressor.bench.plot_details import check_plot, difference_plot
from compressor.bench.plot_sensitivity import placement_figure
from compressor.bench.report_tables import (
    agreement_table,
    batch_table,
    cost_table,
    latency_table,
    machine_list,
    quality_table,
    row_name,
    summary_table,
    table,
)  # fmt: skip
from compressor.bench.schema import Check, Report, Row

_PAGE = Path(__file__).with_name("report_page.html")
_MARKS = {"pass": "✓", "fail": "✗", "undecided": "?"}
_MOST_DIFFERENCE_PLOTS = 12


def render_html(report: Report) -> str:
    """Return the page."""
    sections = [
        _verdict(report), _cards(report), _notes(report), _plots(report), _summary(report), _gate(report),
        _differences(report), _details(report), _history(report), _setting(report), _how_to_read(report),
    ]  # fmt: skip
    names = ", ".join(report.data)
    lead = f"{escape(names)} · {escape(report.machine.cpu)} · {escape(report.created.replace('T', ' '))}"
    version = report.machine.versions.get("rankpress", "")
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(report.title), lead=lead, body="\n".join(filter(None, sections)),
        footer=f"rankpress {escape(version)}, report version {report.schema_version}. The same figures, and every "
        "per-query value, stand in <code>report.json</code>.",
    )  # fmt: skip


def _verdict(report: Report) -> str:
    if not report.gate:
        return ""
    sentence = report.gate.sentence.partition(": ")[2]
    return (
        f'<div class="verdict {report.gate.verdict}"><b>{report.gate.verdict}</b><span>{escape(sentence)}</span></div>'
    )


def _cards(report: Report) -> str:
    """Return the headline figures of the best ranker (see `headline_row`)."""
    row = headline_row(report)
    if row is None:
        return ""
    latency = row.latency[-1]
    cards = [
        (shown_ratio(ratio), f"as fast as {escape(name)}, {latency.threads} thread{'s' * (latency.threads != 1)}")
        for name, ratio in latency.speedup.items()
    ]
    for data, measures in list(row.quality.items())[:2]:
        found = measures[report.settings.measures[0]]
        change = None if found.loss_share is None else -found.loss_share
        bound = "" if found.loss_bound is None else f"; loss below {found.loss_bound:.4f} with 95 % confidence"
        cards.append((shown_share(change), f"{escape(report.settings.measures[0])} on {escape(data)}{bound}"))
    teacher = report.row(report.teacher)
    was = f"; the teacher has {shown_mb(teacher.size_bytes)} MB" if teacher.size_bytes else ""
    cards.append((f"{shown_mb(row.size_bytes)} MB", f"file size{was}"))
    inner = "".join(f'<div class="card"><strong>{big}</strong><span>{small}</span></div>' for big, small in cards)
    return f'<h3>{row_name(report, row)} against its teacher</h3><div class="cards">{inner}</div>'


def headline_row(report: Report) -> Row | None:
    """Return the fastest ranker row that is not the teacher, those that failed a check of the gate last."""
    rows = [row for row in report.rows if row.kind == "ranker" and row.name != report.teacher]
    failed = {check.row for check in report.gate.checks if check.verdict == "fail"} if report.gate else set()
    rows = [row for row in rows if row.name not in failed] or rows
    return min(rows, key=lambda row: row.latency[-1].p50_ms, default=None)


def _notes(report: Report) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _plots(report: Report) -> str:
    figures = "".join(f"<figure>{plot}</figure>" for plot in pareto_plots(report))
    if not figures:
        return ""
    return (
        f'<h2>Latency against quality</h2><div class="plots">{figures}</div>'
        '<p class="soft">Circles are rankers, squares baselines; filled ones, joined by the dashed line, form the '
        "Pareto front: no other row is both faster and better. The dot is the median query, its whisker reaches to "
        f"the 95th percentile. Quality is {escape(main_quality_name(report))}.</p>"
    )


def _summary(report: Report) -> str:
    threads = report.rows[0].latency[-1].threads
    return f"<h2>Summary</h2><p class='soft'>At {threads} thread{'s' * (threads != 1)}.</p>{summary_table(report)}"


def _gate(report: Report) -> str:
    if not report.gate:
        return ""
    head = ["", "check", "value", "bound", "limit", ""]
    rows = [_gate_cells(check) for check in report.gate.checks]
    return (
        "<h2>Gate</h2><p class='soft'>In the small plots the tinted side is allowed and the tick is the limit; the dot "
        "is the value, the whisker leads to its bound. A check passes when the bound, not the dot, is on the allowed "
        f"side.</p>{table(head, rows, text_columns=(0, 1), wrapped_column=1)}"
    )


def _gate_cells(check: Check) -> tuple[list[str], str]:
    digits = ".1f" if check.kind == "size" else ".2f" if check.kind == "speedup" else ".4f"
    unit = f" {escape(check.unit)}" if check.unit in ("MB", "×") else ""
    bound = ABSENT if check.bound is None else f"{check.bound:{digits}}"
    cells = [
        f'<span class="mark {check.verdict}">{_MARKS[check.verdict]} {check.verdict}</span>',
        f"{escape(check.name)}<small>{escape(check.sentence)}</small>",
        minus(f"{check.value:{digits}}{unit}"), minus(bound), f"{check.limit:{digits}}", check_plot(check),
    ]  # fmt: skip
    return cells, ""


def _differences(report: Report) -> str:
    teacher = report.row(report.teacher)
    measure = report.settings.measures[0]
    plots, unchanged = [], []
    for row in report.rows:
        if row.name == report.teacher or row.scores_of == report.teacher:
            continue
        for data, measures in row.quality.items():
            reference = teacher.quality[data][measure].per_query
            values = [a - b for a, b in zip(measures[measure].per_query, reference, strict=True)]
            if any(values):
                plots.append(difference_plot(values, title=row.name, subtitle=f"{measure}, {data}"))
            else:
                unchanged.append(f"{row.name} on {data}")
    if not plots and not unchanged:
        return ""
    shown = "".join(f"<figure>{plot}</figure>" for plot in plots[:_MOST_DIFFERENCE_PLOTS])
    hidden = len(plots) - _MOST_DIFFERENCE_PLOTS
    more = f" {hidden} more are in report.json." if hidden > 0 else ""
    more += f" No query changed: {escape(', '.join(unchanged))}." if unchanged else ""
    return (
        "<h2>Query by query</h2><p class='soft'>Difference to the teacher on every judged query, sorted: a mean can "
        f"hide that many queries changed both ways.{more}</p><div class='plots small'>{shown}</div>"
    )


def _details(report: Report) -> str:
    parts = ["<h2>Latency</h2>", _workload_line(report), latency_table(report)]
    if any(row.quality for row in report.rows):
        parts += ["<h2>Quality</h2>", "<p class='soft'>Mean over judged queries; below it the loss to the teacher, and "
                  "the bound that the loss stays below with 95 % confidence (one-sided, each on its own; the gate's "
                  "bounds are corrected for their number).</p>", quality_table(report)]  # fmt: skip
    parts += ["<h2>Agreement with the teacher</h2>", "<p class='soft'>On the same candidates, no judgments needed. "
              "Means over queries; below them the one-sided 95 % bound on the worse side. A tied score is one that "
              "another candidate of the query has too.</p>", agreement_table(report)]  # fmt: skip
    parts += ["<h2>Cost</h2>", cost_table(report)]
    if any(row.batch_sensitivity for row in report.rows):
        parts += ["<h2>Batch mates</h2>", "<p class='soft'>How far the score of a short pair moves between alone and a "
                  "batch with long pairs. Zero, up to rounding, is right; dynamic int8 takes one activation scale per "
                  "batch and moves; other precisions round each token by itself.</p>", batch_table(report)]  # fmt: skip
    return "".join(parts)


def _workload_line(report: Report) -> str:
    work = report.workload
    per_query = work.n_pairs / max(1, work.n_queries)
    tokens = "" if work.mean_tokens is None else (
        f" A pair has {work.mean_tokens:g} tokens in the mean, {work.p95_tokens:g} at the 95th percentile."
    )  # fmt: skip
    return (
        f"<p class='soft'>Per query of {per_query:.0f} candidates, tokenization included; {work.n_queries} queries in "
        f"{work.rounds} interleaved rounds.{tokens} Speed-ups are medians of ratios taken within a round; small below, "
        "the interval between two one-sided 95 % bounds.</p>"
    )


def _history(report: Report) -> str:
    if not report.history:
        return ""
    items, plots, placements = [], [], ""
    for number, entry in enumerate(report.history, 1):
        settings = ", ".join(f"{key}: {value}" for key, value in entry.settings.items())
        cost = f", {shown_rate(entry.seconds)} s" if entry.seconds else ""
        size = f" → {entry.parameters / 1e6:.1f} M parameters" if entry.parameters else ""
        shown = f" <code>{escape(settings)}</code>" if settings else ""
        items.append(f"<li><b>{escape(entry.verb)}</b>{shown}<span class='soft'>{cost}{size}</span></li>")
        plots += training_plots(entry.series, f"{number}. {entry.verb}")
        placements += placement_figure(entry.notes, entry.settings, f"{number}. {entry.verb}")
    figures = "".join(f"<figure>{plot}</figure>" for plot in plots)
    curves = f"<div class='plots'>{figures}</div>{_CURVE_WORDS}" if figures else ""
    wide = f"<div class='plots wide'>{placements}</div>" if placements else ""
    return f"<h2>What was done</h2><ol class='passes'>{''.join(items)}</ol>{curves}{wide}"


_CURVE_WORDS = (
    "<p class='soft'>Losses are weighted as they enter the total; beside each name stands its last value. A curve with "
    "many points is drawn as means over equal spans. The ring marks the best value of a dev measure.</p>"
)


def _setting(report: Report) -> str:
    return f"<h2>Machine and data</h2>{machine_list(report)}"


_BASELINE_WORDS = {
    "stock_onnx_fp32": "the plain export of the teacher in the same runtime, with pairs sorted by length and batches "
    "trimmed: the honest yardstick",
    "torch_fp32_padded": "the teacher in torch, batches padded in the order in which pairs come: what most people run",
}


def _how_to_read(report: Report) -> str:
    against = references(report)
    words = "".join(f" <code>{name}</code> is {_BASELINE_WORDS[name]}." for name in against if name in _BASELINE_WORDS)
    names = " and ".join(f"<code>{escape(name)}</code>" for name in against) or "no other row"
    return f"""<h2>How to read this</h2>
<p><b>Speed-ups</b> refer to {names}.{words} All rows stand loaded side by side, each in its own process, and take turns
on the same queries, so that what slows the machine slows all of them. Ratios carry over to similar machines; times
belong to this one.</p>
<p><b>Losses</b> are teacher minus row: positive is worse. A mean loss says little on a few dozen queries, so each comes
with a bound from a bootstrap over queries (BCa). The gate asks that the bound stay below the allowed loss; where
neither that nor the opposite is shown, it says <i>undecided</i> and how many queries would decide.</p>
<p><b>Ties</b> are broken by first-stage rank, then document id. Judged queries without candidates count 0.</p>"""
