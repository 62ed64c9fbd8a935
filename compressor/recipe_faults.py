"""From pydantic's findings to faults that a recipe's author can act on: path, found, allowed, did you mean."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Tag, ValidationError

from compressor.errors import Fault, suggest

Path_ = tuple[str | int, ...]
_QUOTE = "'"

_SAID = {  # pydantic's kinds of findings in the words of a recipe's author
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
}


def faults_of(
    error: ValidationError, value: Any, model: type[BaseModel], source: str | Path, prefix: Path_ = ()
) -> list[Fault]:
    """Return one fault per place in the user's value, in the order in which they stand.

    Args:
        error: what pydantic found.
        value: the value that it looked at, as read from the file.
        model: the record that it was checked against.
        source: the file.
        prefix: where ``value`` stands in the file.
    """
    places: dict[Path_, list[Mapping[str, Any]]] = {}
    for finding in error.errors():
        places.setdefault(path_in(value, finding), []).append(finding)
    return [
        _fault(place, findings, value, model, source, prefix)
        for place, findings in places.items()
        # A branch of a union that fits so far as to fault something inside was the one that was meant.
        if not any(place == deeper[: len(place)] and len(deeper) > len(place) for deeper in places)
    ]


def flag_faults(error: ValidationError, values: Any, model: type[BaseModel], **flags: str) -> list[Fault]:
    """Return the faults of settings that were given as flags.

    Args:
        error, values, model: as in `faults_of`.
        flags: setting to flag, where the names differ: ``n_queries="queries"``.
    """
    faults = []
    for fault in faults_of(error, values, model, "command line"):
        setting, _, name = fault.where.partition(".")
        flag = "--" + flags.get(setting, setting).replace("_", "-")
        where = flag if not name or name.isdigit() else f"{flag} {name}"
        faults.append(replace(fault, where=where if setting else ""))
    return faults


def dotted(path: Path_) -> str:
    """Write a path as ``passes.0.drop_layers.keep``."""
    return ".".join(str(part) for part in path)


def shown(value: Any, limit: int = 60) -> str:
    """Show a found value briefly."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def unknown_key(key: str, allowed: Iterable[str], source: str | Path, where: str) -> Fault:
    """Return the fault of a key that nobody knows."""
    names = sorted(allowed)
    return Fault(
        source=source,
        where=where,
        found=f"the unknown key '{key}'",
        allowed=", ".join(names) or "no keys",
        fix=suggest(key, names),
    )


def path_in(value: Any, finding: Mapping[str, Any]) -> Path_:
    """Keep of pydantic's location what stands in the value; it also names the branches of unions that it tried."""
    path: list[str | int] = []
    last = len(finding["loc"]) - 1
    for index, part in enumerate(finding["loc"]):
        if (isinstance(value, Mapping) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            value = value[part]
        elif not (index == last and finding["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _fault(
    place: Path_,
    findings: list[Mapping[str, Any]],
    value: Any,
    model: type[BaseModel],
    source: str | Path,
    prefix: Path_,
) -> Fault:
    where = dotted(prefix + place)
    kinds = {finding["type"] for finding in findings}
    if kinds <= {"extra_forbidden", "invalid_key"}:
        records = _records_at(model, place[:-1], _branches(findings, place))
        known = {name for record in records for name in record.model_fields}
        return unknown_key(str(place[-1]), known - set(map(str, _at(value, place[:-1]))), source, where)
    if kinds == {"missing"}:
        return Fault(source=source, where=where, found="nothing", allowed="a value: this key is required")
    if any(finding["loc"][-1:] == ("[key]",) for finding in findings):
        return _unknown_name(str(place[-1]), findings, source, where)
    if kinds == {"union_tag_invalid"}:
        told = findings[0]["ctx"]
        where, words = f"{where}.{told['discriminator'].strip(_QUOTE)}", told["expected_tags"]
        fix = suggest(told["tag"], [word.strip(_QUOTE) for word in words.split(", ")])
        return Fault(source=source, where=where, found=repr(told["tag"]), allowed=words, fix=fix)
    found = _at(value, place)
    said = [finding for finding in findings if finding["type"] == "value_error"]  # our own sentences, said as they are
    others = [finding for finding in findings if finding["type"] not in ("value_error", "missing")]
    records = _records_at(model, place)
    allowed = " or ".join(dict.fromkeys(_allowed(finding, records) for finding in others))
    words = [word for finding in findings for word in _literals(finding)]
    fix = suggest(found, words) if isinstance(found, str) else ""
    fix = "; ".join([*(str(finding["ctx"]["error"]) for finding in said), *([fix] if fix else [])])
    return Fault(source=source, where=where, found=shown(found), allowed=allowed, fix=fix)


def _unknown_name(name: str, findings: list[Mapping[str, Any]], source: str | Path, where: str) -> Fault:
    """Return the fault of a key in a mapping whose keys are names: measures, baselines, kinds of agreement."""
    words = [word for finding in findings for word in _literals(finding)]
    said = [str(finding["ctx"]["error"]) for finding in findings if finding["type"] == "value_error"]
    fix = "; ".join(filter(None, [*said, suggest(name, words)]))
    return Fault(source=source, where=where, found=f"the unknown key '{name}'", allowed=", ".join(words), fix=fix)


def _allowed(finding: Mapping[str, Any], records: list[type[BaseModel]]) -> str:
    kind = finding["type"]
    if kind == "literal_error":
        return str(finding["ctx"]["expected"])
    if kind in ("model_type", "model_attributes_type"):
        named = [record for record in records if record.__name__ == finding["ctx"]["class_name"]]
        return "a mapping of " + ", ".join(name for record in named for name in record.model_fields)
    return _SAID.get(kind) or str(finding["msg"]).removeprefix("Input should be ")


def _literals(finding: Mapping[str, Any]) -> list[str]:
    if finding["type"] != "literal_error":
        return []
    return [word.strip().strip("'") for word in str(finding["ctx"]["expected"]).replace(" or ", ", ").split(",")]


def _at(value: Any, path: Path_) -> Any:
    for part in path:
        value = value[part]
    return value


def _branches(findings: list[Mapping[str, Any]], place: Path_) -> frozenset[str]:
    """Return the names of the branches of unions that were tried on the way to a place."""
    return frozenset(part for finding in findings for part in map(str, finding["loc"]) if part not in map(str, place))


def _records_at(model: Any, path: Path_, branches: frozenset[str] = frozenset()) -> list[type[BaseModel]]:
    """Return the records that may stand at a path below a record, looking into unions, tuples and mappings.

    Args:
        model: the record.
        path: below it.
        branches: the tags of branches that were tried, where unions have tags; others of a tag are then left out.
    """
    found = _unwrapped(model, branches)
    for part in path:
        below: list[Any] = []
        for candidate in found:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                if part in candidate.model_fields:
                    below += _unwrapped(candidate.model_fields[str(part)].annotation, branches)
            else:
                arguments = typing.get_args(candidate)
                one = arguments[-1] if isinstance(part, str) and arguments else (arguments or (None,))[0]
                below += _unwrapped(one, branches)
        found = below
    return [record for record in found if isinstance(record, type) and issubclass(record, BaseModel)]


def _unwrapped(annotation: Any, branches: frozenset[str] = frozenset()) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *marks = typing.get_args(annotation)
        tags = {mark.tag for mark in marks if isinstance(mark, Tag)}
        return _unwrapped(inner, branches) if not tags or not branches or tags & branches else []
    if origin in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(annotation) for one in _unwrapped(part, branches)]
    return [annotation]
