"""From a recipe to the compressed ranker: plan, stages that a killed run resumes from, promises re-checked."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from compressor import __version__
from compressor.errors import Fault, InputError, RunError
from compressor.passes import Pass, PlanError, Promise, Supply
from compressor.passes.contract import DATA_NEEDS, Need
from compressor.passes.watched_teacher import READS_ALONG_FIX, unreadable
from compressor.plan import Plan, PlanStep
from compressor.ranker.cost import macs, parameters
from compressor.ranker.spec import RankerSpec
from compressor.recipe import Recipe
from compressor.storage import sha256_json

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData
    from compressor.ranker.ranker import Ranker

TOKENS_PER_PAIR = 128  # the length at which plans quote multiply-adds; reports use the lengths of the data


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass of a recipe and where its result is stored."""

    step: Pass
    place: str
    folder: Path

    @property
    def is_stored(self) -> bool:
        return (self.folder / "spec.json").is_file()

    @property
    def scratch(self) -> Path:
        """Where the pass keeps checkpoints until its result is stored."""
        return self.folder.with_name(f"{self.folder.name}-unfinished")


def check_recipe(recipe: Recipe, spec: RankerSpec, source: Path) -> list[RankerSpec]:
    """Check needs and order of all passes on the teacher's shape, before any weight is loaded.

    Returns:
        The shapes: the teacher's, then one after each pass.

    Raises:
        InputError: all unmet needs, the first pass that makes no sense, and a gate without data.
    """
    faults = list(_unmet_needs(recipe, source))
    shapes = [spec]
    for place, step in _placed(recipe):
        try:
            shapes.append(step.plan(shapes[-1]))
        except PlanError as fault:
            where = f"{place}.{fault.setting}" if fault.setting else place
            faults.append(Fault(source=source, where=where, found=fault.found, allowed=fault.allowed, fix=fault.fix))
            break  # what comes behind would be judged on a shape that never exists
    faults += _misplaced_starts(recipe, source)
    faults += _late_for_base(recipe, source)
    if not faults:
        faults += _unreadable_rows(recipe, shapes, source)
    if faults:
        raise InputError(faults)
    return shapes


def make_plan(recipe: Recipe, name: str, shapes: Sequence[RankerSpec], stages: Sequence[Stage] = ()) -> Plan:
    """Describe a checked recipe, step by step."""

    def line(verb: str, settings: str, shape: RankerSpec, needs: Iterable[str] = (), stored: bool = False) -> PlanStep:
        return PlanStep(
            verb=verb,
            settings=settings,
            layers=len(shape.layers),
            parameters=parameters(shape),
            macs_per_pair=macs(shape, min(TOKENS_PER_PAIR, shape.max_length)),
            needs=tuple(sorted(needs)),
            stored=stored,
        )

    steps = [line("teacher", recipe.teacher, shapes[0])]
    for index, (_, step) in enumerate(_placed(recipe)):
        stored = bool(stages) and stages[index].is_stored
        steps.append(line(step.verb, _settings_text(step), shapes[index + 1], step.needs(), stored))
    return Plan(
        recipe=name,
        tokens_per_pair=TOKENS_PER_PAIR,
        steps=tuple(steps),
        measures=tuple(recipe.bench.measures),
        test_sets=tuple(str(reference) for reference in recipe.data.test),
    )


def make_stages(
    recipe: Recipe, teacher_fingerprint: str, load: Callable[[Need], RankingData], folder: Path
) -> list[Stage]:
    """Lay out where each pass's result is stored.

    A stage's name hashes all that it depends on: the teacher, the passes up to it with their settings, the files that
    these name, the seed, the data that they read, and this version of rankpress.

    Raises:
        InputError: a file or model that a pass names is missing or cannot be read, or the data is not fit for a pass.
    """
    key = sha256_json([teacher_fingerprint, recipe.seed, __version__])
    stages = []
    for index, (place, step) in enumerate(_placed(recipe)):
        step.check_data(load)
        data = {need: load(need).fingerprint for need in DATA_NEEDS if need in step.needs()}
        # A setting that is not used is left out: one that comes with a later version leaves stored stages as they are.
        settings = step.model_dump(mode="json", exclude_none=True)
        key = sha256_json([key, step.verb, settings, dict(step.fingerprints()), data])
        stages.append(Stage(step=step, place=place, folder=folder / f"{index + 1}-{step.verb}-{key[:16]}"))
    return stages


def run_passes(
    stages: Sequence[Stage],
    load_teacher: Callable[[], Ranker],
    load: Callable[[Need], RankingData],
    seed: int,
    say: Callable[[str], None],
) -> Ranker:
    """Run the passes that are not stored yet, and store each result.

    Args:
        stages: the recipe's passes, in order.
        load_teacher: loads the teacher, at most once; not called when every stage is stored.
        load: loads the data of a need.
        seed: for all that is drawn at random.
        say: prints one line of news.

    Raises:
        RunError: a pass broke a promise of an earlier one, changed its input, or gave NaN scores; names the pass.
    """
    from compressor.ranker.store import load_ranker, save_ranker

    load_teacher = cache(load_teacher)
    done = _longest_stored_prefix(stages)
    results = [load_ranker(stage.folder) for stage in stages[:done]]
    promises = [promise for stage, result in zip(stages, results, strict=False) for promise in _made(stage, result)]
    if done:
        say(f"resuming behind {stages[done - 1].step.verb}: {done} of {len(stages)} passes are stored")
    ranker = results[-1] if done else load_teacher()
    for stage in stages[done:]:
        say(f"{stage.step.verb} {_settings_text(stage.step)}".rstrip())
        supply = Supply(
            granted=stage.step.needs(),
            load=load,
            seed=seed,
            scratch=stage.scratch,
            load_teacher=load_teacher,
        )
        ranker = _run(stage, ranker, supply)
        promises += _made(stage, ranker)
        _check_promises(promises, ranker, stage.step.verb)
        save_ranker(ranker, stage.folder)
        shutil.rmtree(stage.scratch, ignore_errors=True)
    return ranker


def _run(stage: Stage, ranker: Ranker, supply: Supply) -> Ranker:
    from compressor.ranker.history import StageRecord

    step = stage.step
    planned = step.plan(ranker.spec)
    before = ranker.fingerprint
    start = time.monotonic()
    result = step.apply(ranker, supply)
    if _digest_of(ranker) != before:
        raise RunError(f"{stage.place}: the pass changed its input")
    if len(result.spec.layers) != len(planned.layers):
        raise RunError(f"{stage.place}: planned {len(planned.layers)} layers, made {len(result.spec.layers)}")
    record = StageRecord(
        verb=step.verb,
        settings=step.model_dump(mode="json"),
        notes=supply.notes,
        series=supply.curves,
        seconds=round(time.monotonic() - start, 3),
    )
    return result.changed(history=(*ranker.history, record))


def _digest_of(ranker: Ranker) -> str:
    return ranker.changed().fingerprint  # a fresh copy has not cached its fingerprint


def _made(stage: Stage, result: Ranker) -> list[tuple[str, Promise]]:
    return [(stage.step.verb, promise) for promise in stage.step.promises(result)]


def _check_promises(promises: Sequence[tuple[str, Promise]], ranker: Ranker, verb: str) -> None:
    broken = [(maker, promise.text, found) for maker, promise in promises if (found := promise.check(ranker))]
    if broken:
        lines = "\n  ".join(f"{maker} promised: {text}; found: {found}" for maker, text, found in broken)
        raise RunError(f"after {verb}, promises of earlier passes are broken:\n  {lines}")


def _longest_stored_prefix(stages: Sequence[Stage]) -> int:
    stored = 0
    while stored < len(stages) and stages[stored].is_stored:
        stored += 1
    return stored


def _unmet_needs(recipe: Recipe, source: Path) -> Iterable[Fault]:
    for place, step in _placed(recipe):
        for need in DATA_NEEDS:
            if need in step.needs() and not getattr(recipe.data, need):
                yield Fault(
                    source=source,
                    where=place,
                    found=f"a pass that needs {need} data, and no data.{need}",
                    fix=f"add to data: '{need}: COLLECTION/SPLIT'"
                    + (f", or set {step.without_data}" if step.without_data else ""),
                )
    if recipe.gate and not recipe.data.test:
        fix = "add to data: 'test: [COLLECTION/SPLIT]', or remove the gate"
        yield Fault(source=source, where="gate", found="a gate, and no data.test to decide it on", fix=fix)


def _misplaced_starts(recipe: Recipe, source: Path) -> Iterable[Fault]:
    for place, step in list(_placed(recipe))[1:]:
        if step.starts_anew:
            found = f"{step.starts_anew} behind other passes, whose work it would throw away"
            yield Fault(
                source=source, where=place, found=found, allowed="the first place", fix=f"put {step.verb} first"
            )


def _late_for_base(recipe: Recipe, source: Path) -> Iterable[Fault]:
    """Yield the passes that bring what was made for the loaded weights behind others that changed these."""
    changed_by = ""
    for place, step in _placed(recipe):
        if step.made_for_base and changed_by:
            found = f"{step.made_for_base}, made for the weights as loaded, behind {changed_by}, which changes them"
            yield Fault(source=source, where=place, found=found, fix=f"put {step.verb} before {changed_by}")
        changed_by = changed_by or (step.verb if step.changes_weights else "")


def _unreadable_rows(recipe: Recipe, shapes: Sequence[RankerSpec], source: Path) -> Iterable[Fault]:
    """Yield the passes that have the teacher read rows that it cannot read."""
    from compressor.families import token_fingerprint

    same_tokens = True
    for (place, step), shape in zip(_placed(recipe), shapes, strict=False):
        if step.starts_anew:
            own, theirs = token_fingerprint(step.starts_anew, Path()), token_fingerprint(recipe.teacher, source.parent)
            same_tokens = own == theirs
        if step.reads_along and (reason := unreadable(shape, shapes[0], same_tokens=same_tokens)):
            yield Fault(source=source, where=f"{place}.{step.reads_along}", found=reason, fix=READS_ALONG_FIX)


def _placed(recipe: Recipe) -> Iterable[tuple[str, Pass]]:
    for index, step in enumerate(recipe.passes):
        if isinstance(step, Pass):
            yield f"passes.{index}.{step.verb}", step


def _settings_text(step: Pass) -> str:
    """Return the settings that the user wrote, as YAML; all of them stand in the resolved recipe."""
    written = step.model_dump(mode="json", exclude_unset=True)
    flow = yaml.safe_dump(written, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return flow.strip().removeprefix("{").removesuffix("}")
