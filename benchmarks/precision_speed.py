"""What does each precision gain, and what does it cost? Ours and other toolkits', in two runtimes, in one table.

Peers, all made of the teacher's stock export (`torch.onnx.export`):

- ``stock_onnx_fp32``: as it is, in ONNX Runtime; the row that losses refer to.
- ``stock_ort_int8``: ONNX Runtime's own `quantize_dynamic` behind `quant_pre_process`, as its documentation advises.
- ``stock_onnx_fp32 @ openvino`` and ``@ openvino_bf16``: the same export in OpenVINO, where the CPU has bf16.
- ``stock_nncf_int8``: quantized by NNCF for transformers, calibrated on pairs of ``--calibration``; in OpenVINO, whose
  floats are fp32, or bf16.

Ours: the written graph in fp32 (``rankpress_fp32``, the row that speed refers to) and in every scheme of `quantize`,
head included (``int4_gptq``: the smallest, tokens in 4 bits, too), of the teacher and of a cut of it (``cut_...``:
`prune_widths` to half of the multiply-adds), each in ONNX Runtime, and its portable graph in OpenVINO, whose
floats are bf16 where the CPU has that, and of what is in fp32 both. Passes see the same calibration pairs as NNCF.

Every row runs in a process of its own on the same candidate lists, threads and sorted batches; rows take turns query by
query, and a ratio is the median of those within such turns. What is not installed is left out in words. Results:
``report.json`` (the schema of `rankpress bench`), ``report.html`` and ``precision_speed.md`` in the output folder.
Folders and scores that are there already are used again.

    pip install 'rankpress[quickstart,openvino]' nncf
    python benchmarks/precision_speed.py --data path/to/trec-dl-2021/test --candidates runs/bm25.trec
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

from peer_folders import peer_rows
from speed_tables import speed_table

from compressor.baselines import baseline_rows
from compressor.bench.report import write_report
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.bench.schema import Report
from compressor.bench.targets import present_targets, rows_on_targets
from compressor.bench.terminal import print_report
from compressor.commands import data_reference
from compressor.console import say
from compressor.data import RankingData, load_data
from compressor.errors import RankpressError
from compressor.export import export_folder
from compressor.families import load_teacher
from compressor.gate_settings import STOCK_ONNX, BenchSettings, Target
from compressor.passes.contract import Pass
from compressor.passes.prune_widths import PruneWidths
from compressor.passes.quantize import Quantize
from compressor.pipeline import make_stages, run_passes
from compressor.ranker.ranker import Ranker
from compressor.recipe import DataSection, Recipe
from compressor.runtime.folder import MANIFEST, PORTABLE_FILE
from compressor.storage import read_json, write_whole

MEASURE = "nDCG@10"
TEACHER, CUT, FP32 = "rankpress", "cut", "fp32"
REFERENCE = f"{TEACHER}_{FP32}"
SCHEMES: dict[str, dict[str, object]] = {
    FP32: {},
    "int8_dynamic": {"scheme": "int8_dynamic", "head": True},
    "int8_static": {"scheme": "int8_static", "head": True},
    "int8_blocks": {"scheme": "int8_blocks", "head": True},
    "int4_blocks": {"scheme": "int4_blocks", "head": True},
    "int4_gptq": {"scheme": "int4_blocks", "block_size": 64, "embeddings": "int4", "head": True, "rounding": "gptq"},
}
CALIBRATED = ("int8_static", "int4_gptq")
SEED = 12


def main() -> int:
    """Measure, and write the tables."""
    arguments = _arguments()
    try:
        report = measure(arguments)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write_report(report, arguments.out)
    text = speed_table(report, "Precisions side by side", REFERENCE)
    write_whole(arguments.out / "precision_speed.md", text)
    print_report(report)
    print(text)
    return 0


def measure(arguments: argparse.Namespace) -> Report:
    """Make the folders that are not there yet, and measure them."""
    targets, notes = present_targets(get_args(Target))
    reference = data_reference(arguments.data).changed(candidates=arguments.candidates, queries=arguments.queries)
    data = load_data(reference.resolved(Path.cwd()), depth=arguments.depth)
    calibration = load_data(data_reference(arguments.calibration).resolved(Path.cwd()))
    teacher = cache(lambda: load_teacher(arguments.teacher, Path.cwd()))
    place = arguments.out / teacher().fingerprint[:16]
    baselines = baseline_rows(place / "baselines", teacher, say)
    stock = next(row for row in baselines if row.name == STOCK_ONNX)
    pairs = calibration.texts(calibration.sample_pairs(arguments.calibration_pairs, SEED))
    peers, more = peer_rows(stock, place, pairs, targets)
    written = list(
        _written(teacher, calibration, place, pairs, with_portable="openvino" in targets, with_cut=not arguments.no_cut)
    )
    rows = [
        *rows_on_targets([stock], targets),
        *peers,
        *(row for folder in written for row in rows_on_targets([folder], _targets_of(folder.name, targets))),
    ]
    settings = BenchSettings(
        threads=(arguments.threads,), candidates=arguments.depth, measures=(MEASURE,), n_queries=arguments.timed,
        rounds=arguments.rounds, targets=tuple(targets),
    )  # fmt: skip
    return run_bench(
        rows, [data], settings, teacher=STOCK_ONNX, cache=arguments.out / "scores", title="precision_speed",
        notes=[*notes, *more],
    )  # fmt: skip


def _targets_of(name: str, targets: Sequence[Target]) -> list[Target]:
    """Return the targets of a folder of ours: what is not in fp32 runs in the faster of OpenVINO's precisions alone."""
    has_faster = "openvino_bf16" in targets and not name.endswith(FP32)
    return [target for target in targets if target != "openvino" or not has_faster]


def _written(
    teacher: Callable[[], Ranker], calibration: RankingData, place: Path, pairs: Sequence[tuple[str, str]], *,
    with_portable: bool, with_cut: bool,
) -> Iterator[RowSpec]:  # fmt: skip
    """Yield the folders that we write: the teacher and its cut, in fp32 and in every scheme."""
    cut = PruneWidths.model_validate({"budget": {"macs": 0.5}, "n_pairs": len(pairs)})
    for label, start in ((TEACHER, ()), (CUT, (cut,))) if with_cut else ((TEACHER, ()),):
        for scheme, settings in SCHEMES.items():
            passes: list[Pass] = list(start)
            if settings:
                n_pairs = len(pairs) if scheme in CALIBRATED else None
                passes.append(Quantize.model_validate(settings | {"n_pairs": n_pairs}))
            name = f"{label}_{scheme}"
            folder = _exported(_passed(passes, teacher, calibration, place), place / name, pairs, with_portable)
            is_reference = name == REFERENCE
            yield RowSpec(
                name=name, folder=folder, kind="baseline" if is_reference else "ranker",
                scores_of=STOCK_ONNX if is_reference else None,
            )  # fmt: skip


def _passed(passes: Sequence[Pass], teacher: Callable[[], Ranker], calibration: RankingData, place: Path) -> Ranker:
    """Return what passes make of the teacher; results are stored, and what two begin with is done once."""
    recipe = Recipe(teacher="teacher", data=DataSection(), passes=tuple(passes), seed=SEED)
    stages = make_stages(recipe, teacher().fingerprint, lambda need: calibration, place / "stages")
    return run_passes(stages, teacher, lambda need: calibration, SEED, say)


def _exported(ranker: Ranker, folder: Path, pairs: Sequence[tuple[str, str]], with_portable: bool) -> Path:
    stored = folder / MANIFEST
    is_there = stored.is_file() and read_json(stored).get("fingerprint") == ranker.fingerprint
    if not is_there or (with_portable and not (folder / PORTABLE_FILE).is_file()):
        found = export_folder(
            ranker, folder, manifest={}, calibration_pairs=pairs, int8_companion=False, portable=with_portable
        )
        say("\n".join(f"{folder.name}: {parity.summary}" for parity in found.parity))
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", default="api-docs/test", help="COLLECTION/SPLIT with judgments")
    parser.add_argument("--candidates", default="bm25", help="bm25, bm25:DEPTH, or a TREC run")
    parser.add_argument("--queries", type=int, help="queries that are scored; default: all")
    parser.add_argument("--depth", type=int, default=100, help="candidates per query")
    parser.add_argument("--timed", type=int, default=8, help="queries that are timed, of those")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--teacher", default="packaged", help="packaged, a hub id or a folder")
    parser.add_argument("--no-cut", action="store_true", help="measure the teacher alone, not its cut")
    parser.add_argument("--calibration", default="api-docs/train", help="COLLECTION/SPLIT that is not measured on")
    parser.add_argument("--calibration-pairs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/precision_speed"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
