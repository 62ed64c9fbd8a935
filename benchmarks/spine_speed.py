"""How fast is the written graph? The same teacher in four forms, side by side on real candidate lists.

- ``torch_fp32_padded``: the stock transformers model in fp32, batches of 32 pairs in arrival order: what most run.
- ``stock_onnx_fp32``: its `torch.onnx.export`, in ONNX Runtime, pairs sorted by length, batches trimmed, token budget.
  Of torch's two exporters this is the TorchScript one, whose graph of a 12-layer MiniLM is a fifth faster than that of
  ``dynamo=True``.
- ``rankpress_fp32`` and ``rankpress_int8``: our graph, same runtime, threads, batches and process conditions.

Every row runs in a process of its own; the rows take turns query by query, and a speed-up is the median of the ratios
within such turns. Takes about five minutes on two cores. Results: ``report.json`` (the schema of `rankpress bench`),
``report.html`` and ``spine_speed.md`` in the output folder.

    python benchmarks/spine_speed.py --collection path/to/trec-dl-2021
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compressor.baselines import STOCK_ONNX, TORCH, baseline_rows
from compressor.bench.gate import gate_report
from compressor.bench.report import write_report
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.bench.schema import Report
from compressor.bench.terminal import print_report
from compressor.data import load_data
from compressor.data_reference import DataReference
from compressor.errors import Fault, InputError, RankpressError
from compressor.export import export_folder
from compressor.export.manifest import COMPANION_FILE
from compressor.families import load_teacher
from compressor.gate_settings import BenchSettings, GateSettings
from compressor.measured_card import markdown_table
from compressor.storage import write_whole

FP32, INT8 = "rankpress_fp32", "rankpress_int8"
# What the spine must show: floors of the speed-up at two threads, and the allowed loss.
FLOORS = {FP32: {STOCK_ONNX: 1.25}, INT8: {STOCK_ONNX: 3.0, TORCH: 5.0}}
MAX_LOSS = {"nDCG@10": "1%"}
N_PARITY_PAIRS = 64


def main() -> int:
    """Measure, write the tables, and return 0 where every floor holds."""
    arguments = _arguments()
    try:
        report = measure(arguments)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    verdicts = {
        name: gate_report(report, GateSettings(max_loss=MAX_LOSS, min_speedup=floor), rows=[name])
        for name, floor in FLOORS.items()
    }
    write_report(report, arguments.out)
    lines = [f"- {name}: **{verdict.verdict}**. " + " ".join(check.sentence for check in verdict.checks)
             for name, verdict in verdicts.items()]  # fmt: skip
    write_whole(arguments.out / "spine_speed.md", "\n".join(["# Speed of the written graph", "", markdown_table(report),
                                                            *_differences(report), *lines, ""]))  # fmt: skip
    print_report(report)
    print("\n".join([*_differences(report), *lines]))
    return 1 if any(verdict.verdict == "fail" for verdict in verdicts.values()) else 0


def measure(arguments: argparse.Namespace) -> Report:
    """Make the folders that are not there yet, and measure them."""
    out: Path = arguments.out
    data = load_data(_reference(arguments.collection, arguments.split, arguments.candidates))
    teacher = load_teacher(arguments.teacher, Path.cwd())
    rows = baseline_rows(out / f"baselines-{teacher.fingerprint[:16]}", lambda: teacher, print)
    pairs = data.texts(data.sample_pairs(N_PARITY_PAIRS, 0))
    exported = export_folder(teacher, out / "model", manifest={}, calibration_pairs=pairs)
    print(f"exported and compared with torch in {exported.seconds:.1f} s")
    rows += [
        RowSpec(name=FP32, folder=out / "model", scores_of=STOCK_ONNX),
        RowSpec(name=INT8, folder=out / "model", file=COMPANION_FILE),
    ]
    settings = BenchSettings(
        threads=(arguments.threads,), candidates=arguments.depth, measures=("nDCG@10", "RR(rel=2)@10"),
        n_queries=arguments.queries, rounds=arguments.rounds,
    )  # fmt: skip
    cache = None if arguments.no_cache else out / "scores"
    return run_bench(rows, [data], settings, teacher=STOCK_ONNX, cache=cache, title="spine_speed")


def _reference(collection: Path, split: str, candidates: str | None) -> DataReference:
    if candidates is None:
        runs = sorted((collection / "runs").glob("*BM25.trec"))
        candidates = str(runs[0].absolute()) if runs else "bm25"
    if not collection.is_dir():
        raise InputError(Fault(source=collection, found="no such folder", allowed="a BEIR folder"))
    return DataReference(collection=str(collection.absolute()), split=split, candidates=candidates)


def _differences(report: Report) -> list[str]:
    """Say how far scores lie from the stock export's."""
    lines = []
    for row in report.rows:
        if row.scores_of_difference is not None:
            lines.append(f"- {row.name}: scores differ from {row.scores_of} by at most {row.scores_of_difference:.1e}.")
        elif row.name != STOCK_ONNX:
            for data, found in row.agreement.items():
                tau, rmse = found["kendall_tau"].mean, found["score_rmse"].mean
                lines.append(
                    f"- {row.name} on {data}: Kendall's τ {tau:.4f}, RMS difference of centered scores {rmse:.3f}."
                )
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--collection", type=Path, required=True, help="BEIR folder with judgments")
    parser.add_argument("--split", default="test")
    parser.add_argument("--candidates", help="TREC run or bm25:DEPTH; default: runs/*BM25.trec, else bm25")
    parser.add_argument("--teacher", default="packaged", help="packaged, a hub id or a folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--depth", type=int, default=100, help="candidates per query")
    parser.add_argument("--queries", type=int, default=12, help="queries that are timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-cache", action="store_true", help="score anew, whatever earlier runs stored")
    parser.add_argument("--out", type=Path, default=Path("runs/spine_speed"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
