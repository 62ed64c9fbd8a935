"""The tables of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compressor.bench.figures import (
    ABSENT,
    main_quality,
    main_quality_name,
    references,
    shown_count,
    shown_mb,
    shown_ms,
    shown_rate,
    shown_ratio,
    shown_share,
    shown_signed,
)  # fmt: skip
from compressor.bench.schema import Agreed, Latency, Measured, Report, Row

Cells = tuple[list[str], str]
"""The cells of a table row, ready as HTML, and the row's class."""


def table(
    head: Sequence[str], rows: Sequence[Cells], *, text_columns: Sequence[int] = (0,), wrapped_column: int | None = None
) -> str:
    """Return a table; ``head`` holds HTML too. Text columns stand left, others right; one may hold long sentences."""
    kinds = ["text wrap" if column == wrapped_column else "text" if column in text_columns else ""
             for column in range(len(head))]  # fmt: skip
    header = "".join(f'<th class="{kind}">{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = "".join(
        f'<tr class="{row_kind}">'
        + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"
        for cells, row_kind in rows
    )  # fmt: skip
    return f'<div class="table"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def row_name(report: Report, row: Row) -> str:
    """Return a row's name with its tags."""
    tags = (["teacher"] if row.name == report.teacher else []) + (["baseline"] if row.kind == "baseline" else [])
    return escape(row.name) + "".join(f'<span class="tag">{tag}</span>' for tag in tags)


def summary_table(report: Report) -> str:
    """Return the table of the page's top: the main quality, latency, speed-ups and size of every row."""
    against = references(report)
    speedups = [f"× {_breakable(name)}" for name in against]
    head = ["row", escape(main_quality_name(report)), "p50, ms", "pairs/s", *speedups, "file, MB", "memory, MB"]
    rows = []
    for row in report.rows:
        latency = row.latency[-1]
        quality = main_quality(report, row)
        cells = [
            row_name(report, row), ABSENT if quality is None else f"{quality:.4f}", shown_ms(latency.p50_ms),
            shown_rate(latency.pairs_per_s), *(_speedup(latency, name) for name in against),
            shown_mb(row.size_bytes), shown_mb(latency.peak_memory_bytes),
        ]  # fmt: skip
        rows.append((cells, row.kind))
    return table(head, rows)


def latency_table(report: Report) -> str:
    """Return every row at every thread count."""
    against = references(report)
    head = ["row", "threads", "p50, ms", "p95, ms", "p99, ms", "tokenize, ms", "forward, ms", "pairs/s",
            *(f"× {_breakable(name)}" for name in against), "load, s", "memory, MB"]  # fmt: skip
    rows = []
    for place in range(len(report.rows[0].latency)):
        for row in report.rows:
            one = row.latency[place]
            cells = [
                escape(row.name), str(one.threads), shown_ms(one.p50_ms), shown_ms(one.p95_ms),
                shown_ms(one.p99_ms), shown_ms(one.tokenize_p50_ms), shown_ms(one.forward_p50_ms),
                shown_rate(one.pairs_per_s), *(_speedup(one, name) for name in against), f"{one.load_s:.2f}",
                shown_mb(one.peak_memory_bytes),
            ]  # fmt: skip
            rows.append((cells, row.kind))
    return table(head, rows)


def quality_table(report: Report) -> str:
    """Return every measure on every judged data set."""
    columns = [(data, measure) for data, summary in report.data.items() if summary.judged_ids
               for measure in report.settings.measures]  # fmt: skip
    head = ["row", *(f"{_breakable(data)}<br>{escape(measure)}, n = {len(report.data[data].judged_ids):,}"
                     for data, measure in columns)]  # fmt: skip
    rows = [([escape(row.name), *(_measured(row.quality[data][measure]) for data, measure in columns)], row.kind)
            for row in report.rows]  # fmt: skip
    return table(head, rows)


def agreement_table(report: Report) -> str:
    """Return agreement with the teacher and tie rates."""
    names = {"kendall_tau": "Kendall τ", "overlap@10": "overlap@10", "score_rmse": "score RMSE, logits"}
    head = ["row"]
    for data in report.data:
        head += [f"{_breakable(data)}<br>{name}" for name in names.values()] + [f"{_breakable(data)}<br>tied scores"]
    rows = []
    for row in report.rows:
        cells = [escape(row.name)]
        for data in report.data:
            cells += [_agreed(row.agreement[data].get(name), name == "score_rmse") for name in names]
            cells.append(f"{100 * row.tie_rate[data]:.2f} %")
        rows.append((cells, row.kind))
    return table(head, rows)


def cost_table(report: Report) -> str:
    """Return size, parameters and multiply-adds."""
    head = ["row", "file", "MB", "packed, MB", "parameters", "multiply-adds per pair", "counted"]
    rows = []
    for row in report.rows:
        scope = f"<small>{row.macs_scope or ABSENT}</small>{_stages(row)}"
        cells = [escape(row.name), escape(row.file or row.folder), shown_mb(row.size_bytes),
                 shown_mb(row.packed_bytes), shown_count(row.parameters), shown_count(row.macs_per_pair),
                 scope]  # fmt: skip
        rows.append((cells, row.kind))
    return table(head, rows, text_columns=(0, 1, 6))


def batch_table(report: Report) -> str:
    """Return how far scores move with their batch mates."""
    head = ["row", "pairs", "largest shift, logits", "mean shift, logits", "largest, in σ of the scores"]
    rows = []
    for row in report.rows:
        found = row.batch_sensitivity
        if found:
            share = ABSENT if found.max_shift_share is None else f"{found.max_shift_share:.2g}"
            cells = [
                escape(row.name),
                str(found.n_pairs),
                f"{found.max_shift:.2g}",
                f"{found.mean_shift:.2g}",
                share,
            ]
            rows.append((cells, row.kind))
    return table(head, rows)


def machine_list(report: Report) -> str:
    """Return machine, versions, settings and data as a list of terms."""
    machine, settings = report.machine, report.settings
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB memory"
    quota = "" if machine.cpu_quota is None else f", quota {machine.cpu_quota:g} CPUs"
    busy = report.workload.busy_share
    terms = [
        ("CPU", f"{machine.cpu} ({machine.architecture}), {machine.available_threads} of {machine.logical_cpus} CPUs "
                f"usable{quota}{memory}"),
        ("Instruction sets", f"{', '.join(machine.isa) or 'not told by the system'}; CPU class {machine.cpu_class}"),
        *([("GPUs", ", ".join(machine.gpus))] if machine.gpus else []),
        ("System", machine.os),
        ("Other work", ABSENT if busy is None else f"{100 * busy:.0f} % of the CPU time between turns"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ("Settings", f"{settings.candidates} candidates, {settings.n_queries} timed queries, {settings.rounds} rounds, "
                     f"seed {settings.seed}"),
    ]  # fmt: skip
    for name, data in report.data.items():
        terms.append((name, f"{data.n_queries:,} queries, {len(data.judged_ids):,} judged, {data.n_pairs:,} pairs, "
                            f"first stage {data.first_stage}, fingerprint {data.fingerprint[:12]}"))  # fmt: skip
    terms += [(row.name, f"{row.folder}, fingerprint {row.fingerprint[:12]}{_same(row)}") for row in report.rows]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in terms) + "</dl>"


def _stages(row: Row) -> str:
    """Say how many candidates a cascade let through."""
    if not row.stage_shares:
        return ""
    shown = ", ".join(f"{100 * share:.0f} %" for share in row.stage_shares)
    return f"<small>candidates that went on behind its stages: {shown}</small>"


def _breakable(name: str) -> str:
    """Let a long name break over lines after ``_`` and ``/``."""
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _same(row: Row) -> str:
    if row.scores_of is None:
        return ""
    return f"; quality taken from {row.scores_of} (timed scores differ by at most {row.scores_of_difference:.1g})"


def _speedup(latency: Latency, name: str) -> str:
    if name not in latency.speedup:
        return ABSENT
    low, high = latency.speedup_interval[name]
    return f"{shown_ratio(latency.speedup[name])}<small>{low:.2f}–{high:.2f}</small>"


def _measured(found: Measured) -> str:
    if found.loss is None:
        return f"{found.mean:.4f}"
    bound = "" if found.loss_bound is None else f"below {found.loss_bound:.4f}"
    share = "" if found.loss_share is None else f" ({shown_share(found.loss_share)})"
    return f"{found.mean:.4f}<small>loss {shown_signed(found.loss)}{share}</small><small>{bound}</small>"


def _agreed(found: Agreed | None, is_error: bool) -> str:
    if found is None:
        return ABSENT
    bound = "" if found.bound is None else f"<small>{'below' if is_error else 'above'} {found.bound:.4f}</small>"
    return f"{found.mean:.4f}{bound}"
