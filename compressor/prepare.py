"""Before `rankpress compress` starts: a recipe is read, checked against its teacher and its data, and planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import compressor.passes  # noqa: F401  # fills the registry
from compressor.baselines import refuse_without_stock
from compressor.bench.quality import parse_measures
from compressor.console import say
from compressor.data import RankingData, apart_from, check_disjoint, check_reference, load_data
from compressor.data.ranking_data import together
from compressor.data_reference import DataReference
from compressor.errors import Fault, InputError
from compressor.passes import Pass
from compressor.passes.contract import DATA_NEEDS, Need
from compressor.pipeline import Stage, check_recipe, make_plan, make_stages
from compressor.plan import Plan
from compressor.ranker.builds import check_builds
from compressor.ranker.spec import RankerSpec
from compressor.recipe import Recipe, load_recipe
from compressor.registry import registered
from compressor.storage import check_folder_to_write, is_half_written

RESOLVED = "recipe.yaml"  # in the output folder: the recipe with all defaults; marks the folder as ours


class Desk:
    """Loads each collection of a recipe once.

    Args:
        recipe: the recipe.
        base: the folder that relative paths mean.
    """

    def __init__(self, recipe: Recipe, base: Path) -> None:
        self._recipe, self._base = recipe, base
        self._loaded: dict[str, RankingData] = {}
        self._apart: dict[str, RankingData] = {}

    def serves(self, recipe: Recipe, base: Path) -> bool:
        """Whether it loads what another recipe names."""
        mine = self._recipe
        return (mine.data, mine.bench.candidates, self._base) == (recipe.data, recipe.bench.candidates, base)

    def load(self, need: Need) -> RankingData:
        """Return the data that serve a pass's need: one collection, or several as one.

        Raises:
            InputError: every query that was made for it also stands in the test data.
        """
        return together([self._for_passes(reference) for reference in getattr(self._recipe.data, need)])

    @cached_property
    def seen(self) -> dict[Need, RankingData]:
        """The data that passes may see, by need."""
        return {need: self.load(need) for need in DATA_NEEDS if getattr(self._recipe.data, need)}

    @cached_property
    def tests(self) -> list[RankingData]:
        """The test collections, none of whose queries stand in the data that passes see.

        Raises:
            InputError: training and test data share queries.
        """
        tests = self._loaded_tests()
        seen = [reference for need in DATA_NEEDS for reference in getattr(self._recipe.data, need)]
        check_disjoint([self._for_passes(reference) for reference in seen], tests)
        return tests

    def _for_passes(self, reference: DataReference) -> RankingData:
        """Load data, without the made queries among it that stand in test data."""
        data = self._load(reference)
        if reference.make_queries is None:
            return data
        key = reference.model_dump_json()
        if key not in self._apart:
            kept = self._apart[key] = apart_from(data, self._loaded_tests())
            if n_left_out := len(data.queries) - len(kept.queries):
                say(f"{data.name}: {n_left_out:,} of {len(data.queries):,} left out, as they stand in the test data")
        return self._apart[key]

    def _loaded_tests(self) -> list[RankingData]:
        return [self._load(reference) for reference in self._recipe.data.test]

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
    recipe = _placed(load_recipe(path, registered(), overrides), path.parent)
    faults: list[Fault] = []
    for reference in (reference for _, references in recipe.data for reference in references):
        try:
            check_reference(reference, path.parent)
        except InputError as error:
            faults += error.faults
    try:
        parse_measures(recipe.bench.measures, source=f"{path}: bench.measures")
    except InputError as error:
        faults += error.faults
    try:
        shapes = check_recipe(recipe, _peek(recipe, path), path)
        check_builds(shapes[-1], recipe.export.builds, f"{path}: export.builds")
        if recipe.data.test:
            refuse_without_stock(shapes[0])
    except InputError as error:
        faults += error.faults
    if faults:
        raise InputError(faults)
    return recipe, shapes


def _placed(recipe: Recipe, base: Path) -> Recipe:
    passes = tuple(step.placed(base) if isinstance(step, Pass) else step for step in recipe.passes)
    return recipe.model_copy(update={"passes": passes})


def _peek(recipe: Recipe, path: Path) -> RankerSpec:
    from compressor.families import peek_teacher

    try:
        return peek_teacher(recipe.teacher, path.parent)
    except InputError as error:
        named = (replace(one, source=path, where="teacher") if one.source == "teacher" else one for one in error.faults)
        raise InputError(named) from None


def prepare(path: Path, out: Path | None, overrides: Sequence[str], like: Prepared | None = None) -> Prepared:
    """Check a recipe and load its data, so that nothing can fail late for a reason known early.

    Args:
        path: the recipe.
        out: the output folder; by default runs/NAME.
        overrides: of its settings.
        like: another recipe of the same folder, whose data is used where both name the same.

    Raises:
        InputError: the recipe, its teacher, its data or the output folder is at fault; nothing is written.
    """
    from compressor.families import teacher_fingerprint

    recipe, shapes = check(path, overrides)
    out = out or Path("runs") / path.stem
    _check_output(out)
    desk = like.desk if like and like.desk.serves(recipe, path.parent) else Desk(recipe, path.parent)
    _ = desk.tests
    teacher = teacher_fingerprint(recipe.teacher, path.parent)
    stages = make_stages(recipe, teacher, desk.load, out / "stages")
    return Prepared(
        recipe=recipe, path=path, name=path.stem, out=out, teacher=teacher, shapes=shapes, stages=stages, desk=desk
    )


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
