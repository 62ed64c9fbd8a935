"""Settings in words: values, defaults, and what docstrings say of each."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from compressor.records import Record
from compressor.setting_words import (
    default_words,
    nested_records,
    prose_and_settings,
    settings_apart_from,
    value_words,
)  # fmt: skip

Share = Annotated[float, Field(gt=0, le=1)]


class Inner(Record):
    """A part."""

    depth: PositiveInt = 3
    note: str | None = None


class Base(Record):
    """What others build on.

    ``seed``: of what is drawn. ``name``: of the base.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    name: str


class Whole(Base):
    """A record of all kinds.

    ``name``: its own, ``a: b`` and
    all; ``share``, ``shares`` (of lists), ``flag``: how much
    goes. And more.
    ``kind``:
    ``one``: first.
    ``two``: second.

    ``flag: true``: this is prose, and so is ``seed`` in it.
    """

    share: Share | Literal["auto"] = "auto"
    shares: tuple[Share, ...] = (1.0, 0.5)
    flag: bool = True
    kind: Literal["one", "two"] = "one"
    inner: Inner = Inner()
    choice: tuple[PositiveInt, ...] | Inner | None = None
    table: dict[PositiveInt | Literal["middle"], Share] = Field(default={"middle": 0.5})


class Listed(Record):
    """As a list.

    Attributes:
        first: of two lines, which
            go on.
        second, third: both.
    """

    first: int
    second: int = 1
    third: int = 2


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("name", "text", "required"),
        ("seed", "whole number from 0, below 4,294,967,296", "0"),
        ("share", "number above 0, up to 1 or 'auto'", "auto"),
        ("shares", "list of numbers above 0, up to 1", "[1.0, 0.5]"),
        ("flag", "true or false", "true"),
        ("kind", "'one' or 'two'", "one"),
        ("inner", "{depth, note}", "{depth: 3}"),
        ("choice", "list of whole numbers from 1 or {depth, note} or nothing", "nothing"),
        ("table", "mapping from whole number from 1 or 'middle' to number above 0, up to 1", "{middle: 0.5}"),
    ],
)
def test_values_and_defaults_are_said_as_an_author_writes_them(name, value, default):
    field = Whole.model_fields[name]
    assert (value_words(field), default_words(field)) == (value, default)


def test_nested_records_are_found_in_unions():
    assert [nested_records(Whole.model_fields[name]) for name in ("inner", "choice", "kind")] == [[Inner], [Inner], []]


def test_a_docstring_is_taken_apart():
    prose, told = prose_and_settings(Whole)
    assert prose == "A record of all kinds.\n\n``flag: true``: this is prose, and so is ``seed`` in it."
    assert told == {
        "name": "its own, ``a: b`` and\nall",
        "share": "how much\ngoes. And more.",
        "shares": "(of lists) see ``share``",
        "flag": "see ``share``",
        "kind": "``one``: first.\n``two``: second.",
        "seed": "of what is drawn.",
    }
    assert prose_and_settings(Listed) == (
        "As a list.",
        {"first": "of two lines, which\ngo on.", "second": "both.", "third": "see ``second``"},
    )


def test_what_differs_from_another_record_is_told():
    class Other(Base):
        name: str = "x"
        more: int = 1

    assert settings_apart_from(Other, Base) == ["name", "more"]
    assert settings_apart_from(Base, Base) == []
