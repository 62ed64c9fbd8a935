"""Recipes: YAML in, a frozen `Recipe` out, with every default written back and every fault found at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from compressor.builds import Builds
from compressor.data_reference import DataReference
from compressor.errors import Fault, InputError, suggest
from compressor.gate_settings import BASELINES, STANDARD_OPS, BenchSettings, GateSettings
from compressor.recipe_faults import Path_, dotted, faults_of, shown, unknown_key
from compressor.records import Record
from compressor.storage import unreadable

COMMAND_LINE = "command line"


class DataSection(Record):
    """Which collections serve which purpose, one or several; a pass's needs say which of them it must find here.

    Several are used as one: their queries are dealt together. Test collections are measured one by one. Training data
    serve as calibration data where none are named.
    """

    train: tuple[DataReference, ...] = ()
    in_domain: tuple[DataReference, ...] = ()
    calibration: tuple[DataReference, ...] = ()
    dev: tuple[DataReference, ...] = ()
    test: tuple[DataReference, ...] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return () if value is None else value if isinstance(value, list | tuple) else [value]

    @model_validator(mode="before")
    @classmethod
    def _calibrated_on_train(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("calibration") and value.get("train"):
            return {**value, "calibration": value["train"]}
        return value


class ExportSettings(Builds):
    """What the exported folder holds beside ``onnx/model.onnx``.

    ``int8_companion``: a dynamic-int8 ``onnx/model_quantized.onnx`` beside an fp32 main file (transformers.js and
    infinity look for that name). ``portable``: the same graph in standard ops alone (OpenVINO, TensorRT).
    ``builds``: files that rankpress loads in the main file's place on the CPUs that each is for: ``[int8,
    int8_reduced_range]``, or ``{precision, cpus, file}`` each.
    """

    int8_companion: bool = True
    portable: bool = False


class Recipe(Record):
    """A whole recipe. ``passes`` holds one settings record per pass, in the user's order, which is law."""

    teacher: str = Field(min_length=1)
    data: DataSection = DataSection()
    passes: tuple[SerializeAsAny[Record], ...] = ()
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()
    gate: GateSettings | None = None
    seed: int = Field(default=12, ge=0, lt=2**32)

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain data, defaults written out; `parse_recipe` reads it back to an equal recipe."""
        plain = self.model_dump(mode="json", exclude={"passes"})
        passes = [{_verb(step): step.model_dump(mode="json")} for step in self.passes]
        return {"teacher": plain.pop("teacher"), "data": plain.pop("data"), "passes": passes, **plain}

    def dump_yaml(self) -> str:
        """Return the recipe as YAML."""
        return yaml.safe_dump(self.dump(), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, catalogue: Mapping[str, type[Record]], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file.
        catalogue: pass classes by verb.
        overrides: ``key.to.value=yaml`` settings that replace or add values before anything is checked.

    Raises:
        InputError: all faults of the file at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(Fault(source=path, found="no such file", fix="name a recipe file, see recipes/")) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise InputError(Fault(source=path, found="something that is not a text file", allowed="YAML")) from None
    except OSError as error:
        raise unreadable(path, error) from None
    value = _read_yaml(text, path)
    for override in overrides:
        _override(value, override)
    return parse_recipe(value, catalogue, path)


def parse_recipe(value: Any, catalogue: Mapping[str, type[Record]], source: str | Path) -> Recipe:
    """Check plain data against the recipe's schema and the catalogue of passes.

    Raises:
        InputError: all faults at once.
    """
    if not isinstance(value, Mapping):
        raise InputError(Fault(source=source, found=shown(value), allowed="a mapping with teacher, data, passes, ..."))
    body = {key: part for key, part in value.items() if key != "passes"}
    faults: list[Fault] = []
    passes = _parse_passes(value.get("passes"), catalogue, source, faults)
    recipe = None
    try:
        recipe = Recipe.model_validate(body)
    except ValidationError as error:
        faults = faults_of(error, body, Recipe, source) + faults
    else:
        faults += _contradictions(recipe, source)
    if faults or recipe is None:
        raise InputError(faults)
    return recipe.model_copy(update={"passes": passes})


def _contradictions(recipe: Recipe, source: str | Path) -> Iterator[Fault]:
    """Yield what no run of the recipe could measure or decide, so that none finds out at its end."""
    for place in DataSection.model_fields:
        # A collection may serve twice for training, by its own queries and by made ones; but not be measured twice.
        shown_as = str if place == "test" else DataReference.model_dump_json
        names = [shown_as(reference) for reference in getattr(recipe.data, place)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Fault(source=source, where=f"data.{place}", found=f"{name} twice", fix="take one away")
    if set(recipe.bench.targets) & set(STANDARD_OPS) and not recipe.export.portable:
        fix = "add export: {portable: true}"
        found = "a runtime without ONNX Runtime's own ops, and no export in standard ops alone"
        yield Fault(source=source, where="bench.targets", found=found, fix=fix)
    if recipe.gate is None:
        return
    if recipe.gate.is_empty:
        allowed = "max_loss, min_speedup, max_size_mb, min_agreement, max_score_rmse"
        yield Fault(source=source, where="gate", found="no limits", allowed=allowed)
    places = [("max_loss", name, recipe.bench.measures, "add it to bench.measures") for name in recipe.gate.max_loss]
    places += [("min_speedup", name, BASELINES, "") for name in recipe.gate.min_speedup]
    for limit, name, measured, otherwise in places:
        if name not in measured:
            where, found = f"gate.{limit}.{name}", f"'{name}', which is not measured"
            fix = suggest(name, measured) or otherwise
            yield Fault(source=source, where=where, found=found, allowed=", ".join(measured), fix=fix)


def _parse_passes(
    value: Any, catalogue: Mapping[str, type[Record]], source: str | Path, faults: list[Fault]
) -> tuple[Record, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        faults.append(Fault(source=source, where="passes", found=shown(value), allowed="a list of passes"))
        return ()
    steps = (_parse_pass(entry, catalogue, source, ("passes", index), faults) for index, entry in enumerate(value))
    return tuple(step for step in steps if step is not None)


def _parse_pass(
    entry: Any, catalogue: Mapping[str, type[Record]], source: str | Path, place: Path_, faults: list[Fault]
) -> Record | None:
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        allowed = "one verb with its settings, such as '- quantize: {scheme: int8_dynamic}'"
        faults.append(Fault(source=source, where=dotted(place), found=shown(entry), allowed=allowed))
        return None
    ((verb, settings),) = entry.items()
    if verb not in catalogue:
        faults.append(
            Fault(
                source=source,
                where=dotted(place),
                found=f"the unknown pass '{verb}'",
                allowed=", ".join(sorted(catalogue)),
                fix=suggest(str(verb), catalogue),
            )
        )
        return None
    settings = {} if settings is None else settings
    try:
        return catalogue[verb].model_validate(settings)
    except ValidationError as error:
        if isinstance(settings, Mapping):
            faults += faults_of(error, settings, catalogue[verb], source, (*place, verb))
        else:
            allowed = "a mapping of settings: " + ", ".join(catalogue[verb].model_fields)
            faults.append(Fault(source=source, where=dotted((*place, verb)), found=shown(settings), allowed=allowed))
        return None


def _verb(step: Record) -> str:
    return str(type(step).verb)  # type: ignore[attr-defined]  # set by `registry.register`


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(problem="keys are words", problem_mark=key_node.start_mark)
            if key in seen:
                problem = f"the key '{key}' stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, source: str | Path) -> Any:
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(Fault(source=source, where=where, found=f"broken YAML: {error.problem}")) from None
    except yaml.YAMLError as error:
        raise InputError(Fault(source=source, found=f"broken YAML: {' '.join(str(error).split())}")) from None
    except RecursionError:
        raise InputError(Fault(source=source, found="broken YAML: brackets nested too deep")) from None


def _override(value: Any, override: str) -> None:
    source = f"{COMMAND_LINE}: --set"
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(Fault(source=source, found=f"'{override}'", allowed="key.to.value=yaml"))
    *parents, last = path.split(".")
    for depth, part in enumerate(parents):
        value = _child(value, part, source, ".".join(path.split(".")[: depth + 1]))
    new = _read_yaml(text, source)
    if isinstance(value, list):
        value[_index(value, last, source, path)] = new
    elif isinstance(value, dict):
        value[last] = new
    else:
        raise InputError(Fault(source=source, where=path, found=shown(value), allowed="a path to a mapping or list"))


def _child(value: Any, part: str, source: str, where: str) -> Any:
    if isinstance(value, list):
        return value[_index(value, part, source, where)]
    if isinstance(value, dict):
        if value.get(part) is None:  # 'gate:' with nothing behind it
            value[part] = {}
        return value[part]
    if value is None:
        raise InputError(unknown_key(part, [], source, where))
    raise InputError(Fault(source=source, where=where, found=shown(value), allowed="a path to a mapping or list"))


def _index(value: list[Any], part: str, source: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(value):
        raise InputError(Fault(source=source, where=where, found=f"'{part}'", allowed=f"0 to {len(value) - 1}"))
    return int(part)
