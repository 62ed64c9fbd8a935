"""Studies: recipes with `variants` in place of `passes`, each a name and the passes of one ranker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from compressor.console import say
from compressor.errors import Fault, InputError
from compressor.families import load_teacher
from compressor.pipeline import run_passes
from compressor.prepare import RESOLVED, Prepared, prepare
from compressor.ranker.ranker import Ranker
from compressor.storage import write_whole

TEACHER = "teacher"  # no variant may be called so


def read_file(path: Path) -> dict[str, Any]:
    """Read a study's file.

    Raises:
        InputError: there is none, or it holds no settings.
    """
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(Fault(source=path, found=f"no study ({error})", allowed="a recipe with variants")) from None
    if not isinstance(study, dict):
        raise InputError(Fault(source=path, found="no settings", allowed="a recipe with variants"))
    return study


def read_study(path: Path) -> dict[str, Any]:
    """Read a study.

    Raises:
        InputError: it is none, or has no variants, one called ``teacher``, or a series of variants that it has not.
    """
    study = read_file(path)
    if not isinstance(study.get("variants"), dict) or not study["variants"]:
        raise InputError(Fault(source=path, where="variants", found="none", allowed="lists of passes by name"))
    if TEACHER in study["variants"]:
        raise InputError(Fault(source=path, where="variants", found=TEACHER, allowed="names but that of the reference"))
    unknown = {one for names in study.get("series", {}).values() for one in names} - set(study["variants"])
    if unknown:
        raise InputError(Fault(source=path, where="series", found=sorted(unknown)[0], allowed="names of variants"))
    return study


def prepare_variants(path: Path, study: Mapping[str, Any], out: Path) -> dict[str, Prepared]:
    """Check every variant as a recipe of its own; stages lie side by side, so that what two begin with is done once.

    Raises:
        InputError: a variant is at fault.
    """
    found: dict[str, Prepared] = {}
    for name in study["variants"]:
        found[name] = _prepared(path, study, name, out, next(iter(found.values()), None))
    return found


def run_variant(name: str, prepared: Prepared) -> Ranker:
    """Run the passes of a variant, or load what an earlier run made of them."""
    say(f"--- {name}")
    write_whole(prepared.out / RESOLVED, prepared.recipe.dump_yaml())  # marks the folder as ours, for the next start
    return run_passes(
        prepared.stages, lambda: teacher_of(prepared), prepared.desk.load, prepared.recipe.seed, say
    )  # fmt: skip


def teacher_of(prepared: Prepared) -> Ranker:
    """Load the teacher that a study's variants come from."""
    return load_teacher(prepared.recipe.teacher, prepared.path.parent)


def slug(name: str) -> str:
    """Return a name as a folder can have it."""
    return re.sub(r"\W+", "_", name)


def line(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _prepared(path: Path, study: Mapping[str, Any], name: str, out: Path, like: Prepared | None) -> Prepared:
    """Write one variant as a recipe, and check it.

    The recipe lies in the study's folder, whose relative paths it has, for as long as it is read.
    """
    recipe = {key: value for key, value in study.items() if key not in ("variants", "series")}
    own = path.with_name(f".{path.stem}-{slug(name)}.yaml")
    write_whole(own, yaml.safe_dump({**recipe, "passes": study["variants"][name]}, sort_keys=False))
    try:
        prepared = prepare(own, out / slug(name), (), like)
        shared = [replace(stage, folder=out / "stages" / stage.folder.name) for stage in prepared.stages]
        return replace(prepared, stages=shared)
    finally:
        own.unlink(missing_ok=True)
