"""`rankpress compress`: recipe → passes → folder → measurement → gate, each step resumable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.baselines import baseline_rows
from compressor.bench.gate import EXIT_CODES, gate_report
from compressor.bench.report import REPORT_HTML, REPORT_JSON, write_report
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.bench.schema import HistoryEntry
from compressor.bench.targets import present_targets, rows_on_targets
from compressor.bench.terminal import print_report
from compressor.console import say
from compressor.data import RankingData
from compressor.data.api_docs import installed_versions
from compressor.data_reference import BUILT_IN
from compressor.errors import EXIT_PASS, InputError
from compressor.gate_settings import STOCK_ONNX
from compressor.measured_card import add_measurement
from compressor.pipeline import TOKENS_PER_PAIR, run_passes
from compressor.prepare import RESOLVED, Prepared
from compressor.ranker.cost import macs, parameters
from compressor.recipe import Recipe
from compressor.storage import sole_writer, write_whole

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

N_PARITY_PAIRS = 64


def run(prepared: Prepared) -> int:
    """Run a prepared recipe to its report and verdict.

    Returns:
        The exit code: 0 pass or no gate, 1 gate failed, 2 undecided.

    Raises:
        InputError: another process is writing to the output folder, or nobody can.
        RunError: a pass or the export failed; stages that were finished stay stored.
    """
    is_new = not prepared.out.exists()
    try:
        with sole_writer(prepared.out):
            return _run(prepared)
    except InputError:
        if is_new and not any(prepared.out.glob("stages/*")):
            shutil.rmtree(prepared.out)  # bad input leaves nothing behind; finished stages stay
        raise


def _run(prepared: Prepared) -> int:
    from compressor.export import export_folder
    from compressor.families import load_teacher

    recipe, out, desk = prepared.recipe, prepared.out, prepared.desk
    targets, notes = present_targets(recipe.bench.targets) if recipe.data.test else ([], [])
    for note in notes:
        say(note)
    write_whole(out / RESOLVED, _resolved(recipe, prepared.path.parent).dump_yaml())
    for name in (REPORT_JSON, REPORT_HTML):
        (out / name).unlink(missing_ok=True)  # a killed run must not leave an old report beside a new model

    def teacher() -> Ranker:
        say(f"loading the teacher ({recipe.teacher})")
        return load_teacher(recipe.teacher, prepared.path.parent)

    ranker = run_passes(prepared.stages, teacher, desk.load, recipe.seed, say)
    say("exporting, and comparing ONNX with torch")
    exported = export_folder(
        ranker,
        out / "model",
        manifest=_manifest(prepared),
        calibration_pairs=_parity_pairs(prepared),
        int8_companion=recipe.export.int8_companion,
        portable=recipe.export.portable,
        builds=recipe.export.builds,
    )
    for one in exported.parity:
        say(f"  {one.summary}")
    if not desk.tests:
        say(f"wrote {out / 'model'}; the recipe names no data.test, so nothing was measured")
        return EXIT_PASS
    baselines = baseline_rows(out / "stages" / f"baselines-{prepared.teacher[:16]}", teacher, say)
    rows = rows_on_targets([*baselines, RowSpec(name=prepared.name, folder=out / "model")], targets)
    return _measure(prepared, rows, ranker, notes)


def _measure(prepared: Prepared, rows: list[RowSpec], ranker: Ranker, notes: list[str]) -> int:
    recipe, out = prepared.recipe, prepared.out
    report = run_bench(
        rows,
        prepared.desk.tests,
        recipe.bench,
        teacher=STOCK_ONNX,
        cache=out / "stages" / "scores",
        title=f"rankpress compress {prepared.path.name}",
        history=_history(ranker, prepared),
        notes=notes,
    )
    if recipe.gate:
        report = report.changed(gate=gate_report(report, recipe.gate))
    write_report(report, out)
    add_measurement(out / "model", report)
    print_report(report)
    say(f"model: {out / 'model'}\nreport: {out / 'report.html'}")
    return EXIT_CODES[report.gate.verdict] if report.gate else EXIT_PASS


def _resolved(recipe: Recipe, base: Path) -> Recipe:
    """Return the recipe with absolute paths, so that it means the same from wherever it lies."""

    data, teacher = recipe.data, (base / recipe.teacher).absolute()
    placed = {name: tuple(one.resolved(base) for one in references) for name, references in data}
    return recipe.model_copy(
        update={
            "teacher": str(teacher) if teacher.exists() else recipe.teacher,
            "data": data.model_copy(update=placed),
        }
    )


def _history(ranker: Ranker, prepared: Prepared) -> list[HistoryEntry]:
    """Return the ranker's history, with the size after each pass of this recipe."""
    shapes = prepared.shapes[1:]
    first = len(ranker.history) - len(shapes)
    entries = []
    for index, record in enumerate(ranker.history):
        shape = shapes[index - first] if index >= first else prepared.shapes[0]
        entries.append(
            HistoryEntry(
                **record.model_dump(), parameters=parameters(shape), macs_per_pair=macs(shape, TOKENS_PER_PAIR)
            )
        )
    return entries


def _manifest(prepared: Prepared) -> dict[str, Any]:
    def named(data: RankingData) -> dict[str, Any]:
        # What was read of installed packages can be had again only with these versions.
        read = {"versions": installed_versions()} if data.collection == BUILT_IN else {}
        return {"name": data.name, "fingerprint": data.fingerprint, **read}

    return {
        "name": prepared.name,
        "recipe": prepared.recipe.dump(),
        "teacher": {"name": prepared.recipe.teacher, "fingerprint": prepared.teacher},
        "data": {
            **{need: named(data) for need, data in prepared.desk.seen.items()},
            "test": [named(data) for data in prepared.desk.tests],
        },
    }


def _parity_pairs(prepared: Prepared) -> list[tuple[str, str]]:
    """Return real pairs to compare ONNX with torch on; the exporter has ragged ones of its own besides."""
    data = next(iter([*prepared.desk.seen.values(), *prepared.desk.tests]), None)
    return data.texts(data.sample_pairs(N_PARITY_PAIRS, prepared.recipe.seed)) if data else []
