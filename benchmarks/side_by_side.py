"""What do variants of a ranker cost, and what do they lose? Timed in interleaved rounds, on each test collection.

A study is a recipe with `variants` in place of `passes`: a name, and the passes of that ranker. Each goes through the
pipeline and is exported as its spec says. Then, collection by collection, all folders are measured side by side: speed
as a ratio to the teacher's own written graph in fp32, within turns; nDCG@10 and its paired loss with the one-sided 95 %
bound; Kendall's tau to the teacher, and the share of its ten best that are among the own; by how much a pair's score
moves with its batch mates. All rows get the same pairs, sorted by length and trimmed. With `--stock` the stock export
is a row too.

Killed? Start it again: stored stages, folders and scores are used, and reports on collections that were finished.

    python benchmarks/side_by_side.py benchmarks/studies/tokens.yaml --out runs/tokens
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from variants import TEACHER, line, prepare_variants, read_study, run_variant, slug, teacher_of

from compressor.baselines import baseline_rows
from compressor.bench.report import REPORT_JSON, read_report, write_report
from compressor.bench.rows import RowSpec, row_fingerprint
from compressor.bench.run import run_bench
from compressor.bench.schema import Latency, Measured, Report, Row
from compressor.console import say
from compressor.data import RankingData
from compressor.errors import RankpressError
from compressor.export import export_folder
from compressor.gate_settings import STOCK_ONNX, BenchSettings
from compressor.prepare import Prepared
from compressor.ranker.ranker import Ranker
from compressor.storage import write_whole

N_PARITY_PAIRS = 64


def main() -> int:
    """Run a study and write its tables."""
    arguments = _arguments()
    torch.set_num_threads(max(arguments.threads))
    try:
        study = read_study(arguments.study)
        prepared = prepare_variants(arguments.study, study, arguments.out)
        reports = measure(prepared, arguments)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    text = "\n".join([f"# {arguments.study.stem}", "", *(table(report) for report in reports)])
    write_whole(arguments.out / f"{arguments.study.stem}.md", text)
    print(text)
    return 0


def measure(prepared: Mapping[str, Prepared], arguments: argparse.Namespace) -> list[Report]:
    """Make all folders, and measure them on one test collection after another."""
    first = next(iter(prepared.values()))
    out: Path = arguments.out
    calibration = first.desk.seen.get("calibration", first.desk.tests[0])
    pairs = calibration.texts(calibration.sample_pairs(N_PARITY_PAIRS, 0))

    def exported(name: str, ranker: Ranker) -> RowSpec:
        folder = out / slug(name) / "model"
        export_folder(ranker, folder, manifest={"name": name}, calibration_pairs=pairs, int8_companion=False)
        return RowSpec(name=name, folder=folder)

    rows = [exported(TEACHER, teacher_of(first))]
    if arguments.stock:
        stock = baseline_rows(out / "baselines", lambda: teacher_of(first), say)
        rows += [row for row in stock if row.name == STOCK_ONNX]
    rows += [exported(name, run_variant(name, one)) for name, one in prepared.items()]
    settings = first.recipe.bench.model_copy(update={"threads": tuple(arguments.threads)})
    return [
        measured(
            rows, data, settings, out / slug(data.name), out / "scores", f"{arguments.study.stem}: {data.name}",
            teacher=TEACHER,
        )
        for data in first.desk.tests
    ]  # fmt: skip


def measured(
    rows: Sequence[RowSpec], data: RankingData, settings: BenchSettings, folder: Path, cache: Path, title: str, *,
    teacher: str, notes: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Measure all rows on one collection, or read what an earlier start measured of the same into the folder."""
    if (folder / REPORT_JSON).is_file():
        stored = read_report(folder)
        same_rows = [(row.name, row.fingerprint) for row in stored.rows] == [
            (row.name, row_fingerprint(row)) for row in rows
        ]
        same_data = [one.fingerprint for one in stored.data.values()] == [data.fingerprint]
        if same_rows and same_data and stored.settings == settings:
            say(f"{title}: was measured")
            return stored
    report = run_bench(rows, [data], settings, teacher=teacher, cache=cache, title=title, notes=notes)
    write_report(report, folder)
    return report


def table(report: Report) -> str:
    """Return a report on one collection as Markdown."""
    (name, data), = report.data.items()  # fmt: skip
    machine, load, measures = report.machine, report.workload, report.settings.measures
    teacher = report.row(TEACHER)
    speeds = [f"speed, {one.threads} thr." for one in teacher.latency]
    stock = [f"{one.threads} thr. × {STOCK_ONNX}" for one in teacher.latency if STOCK_ONNX in one.speedup]
    heads = [
        "ranker", "multiply-adds", *speeds, *stock, *(f"{measure}: loss % (at most)" for measure in measures), "τ",
        "top 10 kept", "shift in a batch", "MB",
    ]  # fmt: skip
    conditions = (
        f"## {name}\n\n{machine.cpu}, ONNX Runtime {machine.versions['onnxruntime']}; {data.n_queries} queries × "
        f"{report.settings.candidates} candidates ({data.first_stage}); {load.n_queries} timed, {load.rounds} rounds, "
        f"{load.mean_tokens} tokens per pair in the mean. Speed: median of paired ratios to the teacher's written fp32 "
        "graph, with 95 % bounds. Multiply-adds: share of the teacher's on the timed pairs. Shift: the largest, as a "
        "share of the scores' standard deviation."
    )
    lines = [conditions, "", line(heads), line(["---"] * len(heads))]
    lines += [line(_cells(row, teacher, name, measures, bool(stock))) for row in report.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in report.notes), ""])


def _cells(row: Row, teacher: Row, data: str, measures: Sequence[str], with_stock: bool) -> list[str]:
    shares = [own / whole for own, whole in [(row.macs_per_pair, teacher.macs_per_pair)] if own and whole]
    cells = [row.name, f"{100 * shares[0]:.0f} %" if shares else ""]
    cells += [_speed(one, TEACHER) for one in row.latency]
    cells += [_speed(one, STOCK_ONNX) for one in row.latency] if with_stock else []
    cells += [_loss(row.quality[data][measure]) if data in row.quality else "" for measure in measures]
    for name, form in (("kendall_tau", "{:.3f}"), ("overlap@10", "{:.1%}")):
        figure = row.agreement[data].get(name)
        cells.append(form.format(figure.mean) if figure and row.name != TEACHER else "")
    shift = row.batch_sensitivity.max_shift_share if row.batch_sensitivity else None
    cells.append("" if shift is None else f"{100 * shift:.1f} %")
    cells.append(f"{row.size_bytes / 1e6:.1f}" if row.size_bytes else "")
    return cells


def _speed(latency: Latency, reference: str) -> str:
    if reference not in latency.speedup:
        return ""
    low, high = latency.speedup_interval[reference]
    return f"{latency.speedup[reference]:.2f} ({low:.2f}–{high:.2f})"


def _loss(measured: Measured) -> str:
    if measured.loss_share is None or measured.loss_bound is None or not measured.loss:
        return f"{measured.mean:.4f}" + ("" if measured.loss is None else ", none")
    bound = measured.loss_bound * measured.loss_share / measured.loss
    return f"{measured.mean:.4f}, {100 * measured.loss_share:.1f} ({100 * bound:.1f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2])
    parser.add_argument("--stock", action="store_true", help="measure the teacher's stock ONNX export, too")
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("runs") / arguments.study.stem
    return arguments


if __name__ == "__main__":
    sys.exit(main())
