"""`rankpress compress`: recipe → passes → folder → measurement → gate, each step resumable."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compressor.passes  # noqa: F401  # fills the registry
from compressor.baselines import baseline_rows, refuse_without_stock
from compressor.bench.gate import EXIT_CODES, gate_report
from compressor.bench.quality import parse_measures
from compressor.bench.report import write_report
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.bench.schema import HistoryEntry
from compressor.bench.terminal import print_report
from compressor.console import say
from compressor.data import RankingData, check_disjoint, load_data
from compressor.data_reference import DataReference
from compressor.errors import EXIT_PASS, Fault, InputError
from compressor.gate_settings import STOCK_ONNX
from compressor.measured_card import add_measurement
from compressor.passes.contract import Need
from compressor.pipeline import TOKENS_PER_PAIR, Stage, check_recipe, make_plan, make_stages, run_passes
from compressor.plan import Plan
from compressor.ranker.cost import macs, parameters
from compressor.ranker.spec import RankerSpec
from compressor.recipe import Recipe, load_recipe
from compressor.registry import registered
from compressor.storage import check_folder_to_write, is_half_written, sole_writer, write_whole

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker

RESOLVED = "recipe.yaml"  # in the output folder: the recipe with all defaults; marks the folder as ours
N_PARITY_PAIRS = 64


class Desk:
    """Loads each collection of a recipe once.

    Args:
        recipe: the recipe.
        base: the folder that relative paths mean.
    """

    def __init__(self, recipe: Recipe, base: Path) -> None:
        self._recipe, self._base = recipe, base
        self._loaded: dict[str, RankingData] = {}

    def load(self, need: Need) -> RankingData:
        """Return the collection that serves a pass's need."""
        return self._load(getattr(self._recipe.data, need))

    @cached_property
    def seen(self) -> dict[Need, RankingData]:
        """The collections that passes may see, by need."""
        needs: tuple[Need, ...] = ("train", "calibration", "dev")
        return {need: self.load(need) for need in needs if getattr(self._recipe.data, need) is not None}

    @cached_property
    def tests(self) -> list[RankingData]:
        """The test collections, none of whose queries stand in the data that passes see.

        Raises:
            InputError: training and test data share queries.
        """
        tests = [self._load(reference) for reference in self._recipe.data.test]
        check_disjoint(list(self.seen.values()), tests)
        return tests

    def _load(self, reference: DataReference) -> RankingData:
        key = reference.model_dump_json()
        if key not in self._loaded:
            depth = self._recipe.bench.candidates
            self._loaded[key] = load_data(reference.resolved(self._base), depth=depth)
        return self._loaded[key]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe that was checked, with its plan and the places of its stages.

    Attributes:
        recipe, path, name: the recipe, its file, and the file's stem.
        out: the output folder.
        teacher: the teacher's fingerprint.
        shapes: the teacher's shape, then one after each pass.
        stages: the passes and where their results are stored.
        desk: loads the data.
    """

    recipe: Recipe
    path: Path
    name: str
    out: Path
    teacher: str
    shapes: list[RankerSpec]
    stages: list[Stage]
    desk: Desk

    @property
    def plan(self) -> Plan:
        return make_plan(self.recipe, self.name, self.shapes, self.stages)


def check(path: Path, overrides: Sequence[str]) -> tuple[Recipe, list[RankerSpec]]:
    """Read a recipe and check it against its teacher's shape and its data's names; loads neither weights nor texts.

    Raises:
        InputError: all that is wrong with the recipe.
    """
    from compressor.families import peek_teacher

    recipe = load_recipe(path, registered(), overrides)
    faults: list[Fault] = []
    for reference in (recipe.data.train, recipe.data.calibration, recipe.data.dev, *recipe.data.test):
        try:
            if reference is not None:
                reference.resolved(path.parent)
        except InputError as error:
            faults += error.faults
    try:
        parse_measures(recipe.bench.measures, source=f"{path}: bench.measures")
    except InputError as error:
        faults += error.faults
    try:
        shapes = check_recipe(recipe, peek_teacher(recipe.teacher, path.parent), path)
        if recipe.data.test:
            refuse_without_stock(shapes[0])
    except InputError as error:
        faults += error.faults
    if faults:
        raise InputError(faults)
    return recipe, shapes


def prepare(path: Path, out: Path | None, overrides: Sequence[str]) -> Prepared:
    """Check a recipe and load its data, so that nothing can fail late for a reason known early.

    Raises:
        InputError: the recipe, its teacher, its data or the output folder is at fault; nothing is written.
    """
    from compressor.families import teacher_fingerprint

    recipe, shapes = check(path, overrides)
    out = out or Path("runs") / path.stem
    _check_output(out)
    desk = Desk(recipe, path.parent)
    _ = desk.tests
    teacher = teacher_fingerprint(recipe.teacher, path.parent)
    stages = make_stages(recipe, teacher, desk.load, out / "stages")
    return Prepared(
        recipe=recipe, path=path, name=path.stem, out=out, teacher=teacher, shapes=shapes, stages=stages, desk=desk
    )


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
    write_whole(out / RESOLVED, recipe.dump_yaml())

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
    )
    for one in exported.parity:
        say(f"  {one.summary}")
    if not desk.tests:
        say(f"wrote {out / 'model'}; the recipe names no data.test, so nothing was measured")
        return EXIT_PASS
    baselines = baseline_rows(out / "stages" / f"baselines-{prepared.teacher[:16]}", teacher, say)
    return _measure(prepared, baselines, ranker)


def _measure(prepared: Prepared, baselines: list[RowSpec], ranker: Ranker) -> int:
    recipe, out = prepared.recipe, prepared.out
    report = run_bench(
        [*baselines, RowSpec(name=prepared.name, folder=out / "model")],
        prepared.desk.tests,
        recipe.bench,
        teacher=STOCK_ONNX,
        cache=out / "stages" / "scores",
        title=f"rankpress compress {prepared.path.name}",
        history=_history(ranker, prepared),
    )
    if recipe.gate:
        report = report.changed(gate=gate_report(report, recipe.gate))
    write_report(report, out)
    add_measurement(out / "model", report)
    print_report(report)
    say(f"model: {out / 'model'}\nreport: {out / 'report.html'}")
    return EXIT_CODES[report.gate.verdict] if report.gate else EXIT_PASS


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


def _check_output(out: Path) -> None:
    check_folder_to_write(out)
    entries = sorted(out.iterdir()) if out.is_dir() else []
    foreign = [entry.name for entry in entries if not is_half_written(entry)]
    if foreign and not (out / RESOLVED).is_file():
        raise InputError(
            Fault(
                source=out,
                found=f"a folder with other things in it ({', '.join(foreign[:3])})",
                allowed="an empty or new folder, or that of an earlier run",
                fix="name another with --out",
            )
        )


def _manifest(prepared: Prepared) -> dict[str, Any]:
    def named(data: RankingData) -> dict[str, str]:
        return {"name": data.name, "fingerprint": data.fingerprint}

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
