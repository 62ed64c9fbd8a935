"""What would users pick instead? A teacher in other toolkits beside our folders, on the same lists and threads.

A study is a recipe without passes, and with ``folders``, our rankers by name, from recipes that were run before; and
``depths``, how many candidates a list has. Beside them run, all made of the same checkpoint:

- ``sentence_transformers`` in fp32 and bf16: `CrossEncoder.predict`, which sorts pairs by length.
- ``torch_fp32_padded``, ``stock_onnx_fp32``: the baselines of every report.
- ``stock_ort_int8``, ``stock_onnx_fp32 @ openvino`` and ``@ openvino_bf16``, ``stock_nncf_int8`` there: see
  `precision_speed.py`.

Our folders run in ONNX Runtime, and those with a graph in standard ops (`export: {portable: true}`) in OpenVINO, too,
in bf16 where the CPU has it.

Every row runs in a process of its own; rows take turns query by query, and a ratio is the median of those within such
turns. What is not installed, or not in the CPU, is left out in words. For each test collection and depth:
``report.json`` and ``report.html``, a plot of latency against quality for each number of threads; and all tables in one
file.

Killed? Start it again: folders, scores and finished reports are used.

    pip install 'rankpress[quickstart,openvino]' nncf
    python benchmarks/peers.py benchmarks/studies/peers.yaml --out runs/peers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import get_args

from peer_folders import peer_rows
from side_by_side import measured
from speed_tables import speed_table
from variants import prepare_variants, read_file, slug, teacher_of

from compressor.baselines import baseline_rows
from compressor.bench.plot import pareto_plots
from compressor.bench.plot_curves import standalone
from compressor.bench.rows import RowSpec
from compressor.bench.schema import Report
from compressor.bench.targets import present_targets, rows_on_targets
from compressor.console import say
from compressor.cpu import isa_flags
from compressor.errors import Fault, InputError, RankpressError
from compressor.gate_settings import STOCK_ONNX, TORCH, Target
from compressor.prepare import Prepared
from compressor.runtime.folder import PORTABLE_FILE
from compressor.storage import write_whole

N_CALIBRATION_PAIRS, SEED = 300, 12
OWN = ("folders", "depths")  # keys that no recipe has


def main() -> int:
    """Measure, and write the tables and plots."""
    arguments = _arguments()
    try:
        study = read_file(arguments.study)
        recipe = {key: value for key, value in study.items() if key not in OWN} | {"variants": {"teacher": []}}
        (prepared,) = prepare_variants(arguments.study, recipe, arguments.out).values()
        folders = _folders(arguments.study, study.get("folders") or {})
        depths = study.get("depths") or [prepared.recipe.bench.candidates]
        reports = measure(prepared, folders, depths, arguments.out)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    text = "\n".join(speed_table(report, report.title, STOCK_ONNX) for report in reports)
    write_whole(arguments.out / "peers.md", text)
    for report in reports:
        for latency, plot in zip(report.rows[0].latency, pareto_plots(report), strict=False):
            write_whole(arguments.out / f"{slug(report.title)}_{latency.threads}.svg", standalone(plot))
    print(text)
    return 0


def measure(prepared: Prepared, folders: Sequence[RowSpec], depths: Sequence[int], out: Path) -> list[Report]:
    """Make the peers' folders where they are not there yet, and measure all rows on each collection at each depth."""
    targets, notes = present_targets(get_args(Target))
    calibration = prepared.desk.load("calibration")
    pairs = calibration.texts(calibration.sample_pairs(N_CALIBRATION_PAIRS, SEED))
    teacher = cache(lambda: teacher_of(prepared))
    place = out / prepared.teacher[:16]
    baselines = {row.name: row for row in baseline_rows(place / "baselines", teacher, say)}
    stock, checkpoint = baselines[STOCK_ONNX], baselines[TORCH].folder
    peers, more = peer_rows(stock, place, pairs, targets)
    slow = _why_no_bf16()
    rows = [
        *rows_on_targets([stock], targets),
        baselines[TORCH],
        RowSpec(
            name="sentence_transformers", kind="baseline", folder=checkpoint, engine="sentence_transformers",
            scores_of=STOCK_ONNX,
        ),
        *(
            RowSpec(name=name, kind="baseline", folder=checkpoint, engine=name)
            for name in ("sentence_transformers_bf16",) if not slow
        ),
        *(peer.changed(kind="baseline") for peer in peers),
        *(row for folder in folders for row in rows_on_targets([folder], _targets_of(folder, targets))),
    ]  # fmt: skip
    notes += [f"sentence_transformers_bf16 was left out: {slow}."] if slow else []
    reports = []
    for data in prepared.desk.tests:
        for depth in depths:
            settings = prepared.recipe.bench.model_copy(
                update={"candidates": min(depth, prepared.recipe.bench.candidates), "targets": tuple(targets)}
            )
            title = f"{data.name}, {settings.candidates} candidates"
            reports.append(
                measured(
                    rows, data, settings, out / slug(title), out / "scores", title, teacher=STOCK_ONNX,
                    notes=[*notes, *more],
                )
            )  # fmt: skip
    return reports


def _targets_of(folder: RowSpec, targets: Sequence[Target]) -> list[Target]:
    """Return where a folder of ours runs: in ONNX Runtime, and in OpenVINO's faster precision what it can open."""
    found: list[Target] = ["onnxruntime"]
    faster: Target = "openvino_bf16" if "openvino_bf16" in targets else "openvino"
    has_standard_graph = (folder.folder / PORTABLE_FILE).is_file()
    return [*found, faster] if has_standard_graph and faster in targets else found


def _why_no_bf16() -> str:
    """Say why bf16 would take minutes for a list in torch; empty where the CPU has it."""
    has_it = {"avx512_bf16", "amx_bf16", "bf16"} & set(isa_flags())
    return "" if has_it else "torch emulates bf16 on this CPU, at about one pair per second"


def _folders(path: Path, named: dict[str, str]) -> list[RowSpec]:
    """Return the rows of our rankers; paths are relative to the study.

    Raises:
        InputError: there is none, or a folder is missing.
    """
    places = {name: (path.parent / folder).resolve() for name, folder in named.items()}
    missing = [folder for folder in places.values() if not folder.is_dir()]
    if missing or not places:
        raise InputError(
            Fault(
                source=path, where="folders", found=f"no folder {missing[0]}" if missing else "none",
                allowed="exported rankers by name", fix="run their recipes first",
            )
        )  # fmt: skip
    return [RowSpec(name=name, folder=folder) for name, folder in places.items()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
