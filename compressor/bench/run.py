"""From rows and data to a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from compressor.bench.agreement import agreement
from compressor.bench.batch_sensitivity import batch_sensitivity
from compressor.bench.figures import shown_mb
from compressor.bench.latency import Timing, latency_figures, measure_latency
from compressor.bench.machine import describe_machine
from compressor.bench.quality import Quality, Scores, evaluate, parse_measures
from compressor.bench.rows import RowSpec, build_note, check_rows, row_fingerprint
from compressor.bench.schema import Agreed, DataSummary, HistoryEntry, Measured, Report, Row, Workload
from compressor.bench.scoring import score_data
from compressor.bench.significance import resample_mean
from compressor.bench.size import cost_of
from compressor.bench.workload import TimedQuery, choose_workload
from compressor.errors import Fault, InputError
from compressor.gate_settings import BenchSettings

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData

_BOUND_LEVEL = 0.05
_BUSY_SHARE = 0.2
_SAME_MODEL_TOLERANCE = 1e-3
_DIGITS = 8


def run_bench(
    rows: Sequence[RowSpec], data: Sequence[RankingData], settings: BenchSettings, *, teacher: str,
    cache: Path | None = None, title: str = "rankpress bench", history: Sequence[HistoryEntry] = (),
    notes: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Measure rows side by side: first latency in interleaved rounds, then the quality of every score.

    Args:
        rows: what is measured; every row runs in processes of its own.
        data: data sets with candidates; judgments may be absent, agreement needs none.
        teacher: name of the row that losses and agreement refer to.
        cache: folder where scores are kept between runs, keyed by the row's and the data's content.
        notes: what a reader must know beforehand, such as targets that were left out.

    Raises:
        InputError: rows, data or settings that cannot be measured.
        RunError: a row failed while running; names it.
    """
    check_rows(rows, teacher)
    parse_measures(settings.measures)
    _check_data(data)
    workload = choose_workload(
        data, n_queries=settings.n_queries, candidates=settings.candidates, seed=settings.seed
    )  # fmt: skip
    _print_plan(rows, data, workload, settings)
    timings = [measure_latency(rows, workload, settings, threads=threads) for threads in sorted(settings.threads)]
    threads = max(settings.threads)
    scores, differences, doubts = _all_scores(rows, data, settings, timings[-1], threads, cache)
    lengths = timings[-1].rows[teacher].lengths
    rounds, n_queries = timings[-1].rows[teacher].total_s.shape
    summary = Workload(
        n_queries=n_queries, n_pairs=sum(len(query.pairs) for query in workload[:n_queries]), rounds=rounds,
        mean_tokens=round(float(lengths.mean()), 1), p95_tokens=round(float(np.quantile(lengths, 0.95)), 1),
        busy_share=_largest([timing.busy_share for timing in timings]),
    )  # fmt: skip
    machine = describe_machine()
    qualities = {row.name: {one.name: evaluate(one, scores[row.name][one.name], settings.measures) for one in data}
                 for row in rows}  # fmt: skip
    notes = [*notes, *_timing_notes(timings, summary, machine.available_threads), *doubts]
    report_rows = [
        _row(row, rows, data, scores, qualities, timings, workload, teacher, differences, threads) for row in rows
    ]
    notes += [note for row in rows if (note := build_note(row))]
    notes += [
        f"{row.name} has sparse matrices, which are multiplied like dense ones: zeros make nothing faster. Packed, its "
        f"file of {shown_mb(row.size_bytes)} MB takes {shown_mb(row.packed_bytes)} MB."
        for row in report_rows
        if row.packed_bytes is not None
    ]
    return Report(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher=teacher,
        settings=settings,
        machine=machine,
        data={one.name: _data_summary(one, scores[teacher][one.name], qualities[teacher][one.name]) for one in data},
        workload=summary,
        rows=report_rows,
        history=list(history),
        notes=notes,
    )


def _check_data(data: Sequence[RankingData]) -> None:
    names = [one.name for one in data]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults = [Fault(source="bench", where=name, found="two data sets of this name") for name in twice]
    if faults:
        raise InputError(faults)


def _print_plan(
    rows: Sequence[RowSpec], data: Sequence[RankingData], workload: Sequence[TimedQuery], settings: BenchSettings
) -> None:
    timed = len(settings.threads) * settings.rounds * len(workload)
    pairs = sum(len(one.candidates.get(query, ())[: settings.candidates]) for one in data for query in one.queries)
    scored = sum(row.scores_of is None for row in rows)
    budget = f", at most {settings.time_budget_s:g} s" if settings.time_budget_s else ""
    Console(stderr=True, highlight=False).print(
        f"Plan: time {len(rows)} rows on {len(workload)} queries × {settings.rounds} rounds at "
        f"{' and '.join(map(str, settings.threads))} thread(s) ({timed * len(rows):,} turns{budget}), "
        f"then score {pairs:,} pairs on {scored} rows.",
        soft_wrap=True,
    )


def _all_scores(
    rows: Sequence[RowSpec], data: Sequence[RankingData], settings: BenchSettings, timing: Timing, threads: int,
    cache: Path | None,
) -> tuple[dict[str, dict[str, dict[str, np.ndarray]]], dict[str, float], list[str]]:  # fmt: skip
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    differences: dict[str, float] = {}
    notes = []
    for row in sorted(rows, key=lambda row: row.scores_of is not None):
        if row.scores_of is not None:
            timed, other = timing.rows[row.name].scores, timing.rows[row.scores_of].scores
            difference = max(float(np.abs(a - b).max()) for a, b in zip(timed, other, strict=True) if len(a))
            if difference <= _SAME_MODEL_TOLERANCE:
                differences[row.name] = difference
                scores[row.name] = scores[row.scores_of]
                continue
            notes.append(
                f"{row.name} should score like {row.scores_of} but differs by up to {difference:.2g} on the timed "
                "pairs; its quality was measured on its own."
            )
        scores[row.name] = score_data(row, data, settings, threads=threads, cache=cache)
    return scores, differences, notes


def _row(
    row: RowSpec, rows: Sequence[RowSpec], data: Sequence[RankingData], scores: Mapping[str, Mapping[str, Scores]],
    qualities: Mapping[str, Mapping[str, Quality]], timings: Sequence[Timing], workload: Sequence[TimedQuery],
    teacher: str, differences: Mapping[str, float], threads: int,
) -> Row:  # fmt: skip
    references = [other.name for other in rows if other.kind == "baseline" or other.name == teacher]
    times = timings[-1].rows[row.name]
    n_pairs = np.array([len(query.pairs) for query in workload])
    cost = cost_of(row, Path(times.weights_path), times.lengths, times.stages)
    shares = times.stage_shares
    spread = [float(values.std()) for values in times.scores if len(values) > 1]
    is_teacher = row.name == teacher
    return Row(
        name=row.name, kind=row.kind, engine=row.engine, fingerprint=row_fingerprint(row),
        folder=_shown_path(row.folder), file=_shown_file(row, Path(times.weights_path)),
        scores_of=row.scores_of if row.name in differences else None, scores_of_difference=differences.get(row.name),
        quality={one.name: _measured(qualities[row.name][one.name], qualities[teacher][one.name], is_teacher)
                 for one in data if qualities[teacher][one.name].query_ids},
        agreement={one.name: _agreed(scores[row.name][one.name], scores[teacher][one.name]) for one in data},
        tie_rate={one.name: round(qualities[row.name][one.name].tie_rate, _DIGITS) for one in data},
        latency=[latency_figures(timing, row.name, references, n_pairs) for timing in timings],
        batch_sensitivity=batch_sensitivity(
            row, workload, float(np.mean(spread)) if spread else 0.0, threads=threads
        ),
        size_bytes=cost.size_bytes, packed_bytes=cost.packed_bytes, parameters=cost.parameters,
        macs_per_pair=cost.macs_per_pair, macs_scope=cost.macs_scope,
        stage_shares=None if shares is None else [round(share, _DIGITS) for share in shares],
    )  # fmt: skip


def _measured(quality: Quality, teacher: Quality, is_teacher: bool) -> dict[str, Measured]:
    figures = {}
    for name, values in quality.per_query.items():
        difference = values - teacher.per_query[name]
        mean, teacher_mean = float(values.mean()), float(teacher.per_query[name].mean())
        loss = teacher_mean - mean
        bound = None if is_teacher or len(difference) < 2 else -resample_mean(difference).lower(_BOUND_LEVEL)
        figures[name] = Measured(
            mean=round(mean, _DIGITS),
            loss=None if is_teacher else round(loss, _DIGITS) + 0.0,
            loss_share=None if is_teacher or not teacher_mean else round(loss / teacher_mean, _DIGITS) + 0.0,
            loss_bound=None if bound is None else round(bound, _DIGITS) + 0.0,
            per_query=[round(float(value), _DIGITS) for value in values],
        )
    return figures


def _agreed(scores: Scores, teacher: Scores) -> dict[str, Agreed]:
    found = agreement(scores, teacher)
    if not found.query_ids:
        return {}
    figures = {}
    for name, values in (("kendall_tau", found.kendall_tau), ("overlap@10", found.overlap_at_10)):
        bound = resample_mean(values).lower(_BOUND_LEVEL) if len(values) > 1 else None
        figures[name] = _agreed_figure(float(values.mean()), bound, values)
    squares = found.squared_error
    bound = float(np.sqrt(max(0.0, resample_mean(squares).upper(_BOUND_LEVEL)))) if len(squares) > 1 else None
    figures["score_rmse"] = _agreed_figure(float(np.sqrt(squares.mean())), bound, squares)
    return figures


def _agreed_figure(mean: float, bound: float | None, values: np.ndarray) -> Agreed:
    return Agreed(
        mean=round(mean, _DIGITS),
        bound=None if bound is None else round(bound, _DIGITS),
        per_query=[round(float(value), 10) for value in values],
    )


def _data_summary(data: RankingData, scores: Scores, quality: Quality) -> DataSummary:
    sizes = [len(values) for values in scores.values()]
    return DataSummary(
        fingerprint=data.fingerprint, first_stage=data.first_stage, n_queries=len(data.queries), n_pairs=sum(sizes),
        candidates=max(sizes, default=0), judged_ids=list(quality.query_ids),
        agreement_ids=[query for query, values in scores.items() if len(values) > 1],
    )  # fmt: skip


def _largest(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return round(max(known), 3) if known else None


def _timing_notes(timings: Sequence[Timing], workload: Workload, available: int) -> list[str]:
    notes = [f"{timing.threads} thread(s): {note}" for timing in timings for note in timing.notes]
    if workload.busy_share is not None and workload.busy_share > _BUSY_SHARE:
        notes.append(
            f"The machine was busy: other work took {100 * workload.busy_share:.0f} % of its CPU time between the "
            "turns. Trust the ratios more than the times."
        )
    notes += [
        f"{timing.threads} threads were asked for, this process may use {available}: those times show contention."
        for timing in timings if timing.threads > available
    ]  # fmt: skip
    return notes


def _shown_path(folder: Path) -> str:
    """Return the path as a reader can use it: relative where the folder lies below the current one."""
    absolute = folder.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(folder)


def _shown_file(row: RowSpec, weights_path: Path) -> str:
    folder, path = row.folder.resolve(), weights_path.resolve()
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else path.name
