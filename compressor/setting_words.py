"""Settings of records in words: what a value may be, what its default is, and what the docstring says of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from compressor.records import Record

_SIMPLE: dict[Any, str] = {
    int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", Any: "anything",
}  # fmt: skip
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "path": "paths"}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}

# ``name``: or ``name``, ``other`` (when it counts): at the start of a line, a sentence, or what a semicolon sets off.
_ONE = r"``(\w+)``(?: \(([^)]*)\))?"
_NAMED = re.compile(rf"(?:^|(?<=[.;\n] )|(?<=[.;\n]\n))({_ONE}(?:, {_ONE})*):\s", re.MULTILINE)
_IN_A_LIST = re.compile(r"^    (\w+(?:, \w+)*): ", re.MULTILINE)
_GOOGLE = re.compile(r"\n(?:Attributes|Args):\n")


def value_words(field: FieldInfo, quote: Callable[[Any], str] = repr) -> str:
    """Return what a setting may be, as a recipe's author would say it: ``list of whole numbers from 0 or 'middle'``.

    Args:
        quote: how words that are written as they stand are set off.
    """
    return _words(field.annotation, field.metadata, quote)


def default_of(field: FieldInfo) -> Any:
    """Return a setting's default as plain data, what is not set in it left out."""
    value = field.get_default(call_default_factory=True)
    return _plain(value)


def default_words(field: FieldInfo) -> str:
    """Return a setting's default as a recipe would write it; ``required`` where there is none."""
    if field.is_required():
        return "required"
    value = default_of(field)
    if value is None:
        return "nothing"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def nested_records(field: FieldInfo) -> list[type[Record]]:
    """Return the records that a setting may hold, in unions, lists and mappings too."""
    return list(dict.fromkeys(_records(field.annotation)))


def settings_apart_from(record: type[Record], base: type[Record]) -> list[str]:
    """Return the settings of a record that another one lacks, or has with another type or default."""

    def told(field: FieldInfo) -> tuple[str, str]:
        return value_words(field), default_words(field)

    theirs = {name: told(field) for name, field in base.model_fields.items()}
    return [name for name, field in record.model_fields.items() if theirs.get(name) != told(field)]


def prose_and_settings(record: type[Record]) -> tuple[str, dict[str, str]]:
    """Take a record's docstring apart: what it says as a whole, and setting → what it says of that one.

    Settings stand as ``name``: at the start of a line or sentence, or in a list under Attributes or Args. What the
    record's docstring does not name is looked for in those of the records that it builds on.
    """
    prose, told = _apart(inspect.getdoc(record) or "", record)
    for base in record.__mro__[1:]:
        if issubclass(base, Record) and "__doc__" in vars(base):
            _, inherited = _apart(inspect.getdoc(base) or "", record)
            told = {**inherited, **told}
    return prose, told


def _apart(text: str, record: type[Record]) -> tuple[str, dict[str, str]]:
    text, *lists = _GOOGLE.split(text)
    told: dict[str, str] = {}
    for listed in lists:
        marks = list(_IN_A_LIST.finditer(listed))
        for mark, end in _with_ends(marks, listed):
            told.update(_of_each([(one, "") for one in mark[1].split(", ")], listed[mark.end() : end]))
    kept = []
    for paragraph in text.split("\n\n"):
        marks = [mark for mark in _NAMED.finditer(paragraph) if _names(mark) <= set(record.model_fields)]
        before = paragraph[: marks[0].start()] if marks else paragraph
        if before.strip():
            kept.append(before.strip())
        for mark, end in _with_ends(marks, paragraph):
            told.update(_of_each(re.findall(_ONE, mark[1]), paragraph[mark.end() : end]))
    return "\n\n".join(kept), told


def _with_ends(marks: Sequence[re.Match[str]], text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yield each mark with the place where what it introduces ends: at the next mark, or with the text."""
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    yield from zip(marks, ends, strict=False)


def _names(mark: re.Match[str]) -> set[str]:
    return {name for name, _ in re.findall(_ONE, mark[1])}


def _of_each(names: Sequence[tuple[str, str]], said: str) -> Iterator[tuple[str, str]]:
    """Give the first of several settings the whole text, the others a pointer to it, each with its own remark."""
    for place, (name, remark) in enumerate(names):
        text = f"see ``{names[0][0]}``" if place else inspect.cleandoc(said).strip().removesuffix(";")
        yield name, f"({remark}) {text}" if remark else text


def _words(hint: Any, marks: Sequence[Any], quote: Callable[[Any], str]) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(arguments[0], [*arguments[1:], *marks], quote)
    if origin in (Union, UnionType):
        words = [_words(one, () if one is NoneType else marks, quote) for one in arguments]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(map(quote, arguments))
    if origin in (tuple, list):
        one = _words(arguments[0], (), quote)
        known = next((name for name in _PLURALS if one == name or one.startswith(f"{name} ")), "")
        return f"list of {_PLURALS.get(known, known)}{one.removeprefix(known)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, value = (_words(one, (), quote) for one in arguments)
        return f"mapping from {key} to {value}"
    if is_record(hint):
        return "{" + ", ".join(hint.model_fields) + "}"
    if hint is NoneType:
        return "nothing"
    if hint in _SIMPLE:
        return _SIMPLE[hint] + (_range(marks, whole=hint is int) if hint in (int, float) else "")
    return str(getattr(hint, "__name__", hint)).lower()


def _range(marks: Sequence[Any], *, whole: bool) -> str:
    """Return `` from 1 up to 8`` for the bounds in a field's metadata."""
    bounds = {name: getattr(mark, name) for mark in _flat(marks) for name in _BOUNDS if hasattr(mark, name)}
    if whole and "gt" in bounds:
        bounds = {"ge": bounds.pop("gt") + 1, **bounds}
    found = {name: bounds[name] for name in _BOUNDS if bounds.get(name) is not None}
    return " " * bool(found) + ", ".join(f"{_BOUNDS[name]} {value:,}" for name, value in found.items())


def _flat(marks: Sequence[Any]) -> Iterator[Any]:
    for mark in marks:
        yield from mark.metadata if isinstance(mark, FieldInfo) else (mark,)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        # Only what is set says anything: a record of many optional parts would be a list of nothings.
        return {name: _plain(one) for name, one in value if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _records(hint: Any) -> Iterator[type[Record]]:
    if is_record(hint):
        yield hint
        return
    for one in get_args(hint):
        yield from _records(one)


def is_record(hint: Any) -> TypeGuard[type[Record]]:
    """Return whether a type is that of a record."""
    return isinstance(hint, type) and issubclass(hint, Record)
