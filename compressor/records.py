"""The base of every record that is read from or written to JSON and YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator


class Record(BaseModel):
    """A frozen record that refuses unknown keys, truth values where numbers belong, and numbers for truth values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _truth_is_no_number(cls, value: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        # pydantic reads `true` as 1, also inside lists and mappings; its strict mode would refuse lists for tuples too.
        record = read(value)
        if isinstance(value, Mapping):
            given = {name: value[name] for name in cls.model_fields if name in value}
            faults = list(_mixed_up(given, {name: getattr(record, name) for name in given}, ()))
            if faults:
                raise ValidationError.from_exception_data(cls.__name__, faults)
        return record

    def changed(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced, checked like a new record (`model_copy` would not check)."""
        return type(self).model_validate({**dict(self), **changes})


def _mixed_up(given: Any, read: Any, place: tuple[int | str, ...]) -> Iterator[Any]:
    """Yield places where a truth value was read as a number, or a number as a truth value, as pydantic's details."""
    if isinstance(given, bool) != isinstance(read, bool):
        if isinstance(read, bool) and isinstance(given, int | float):
            yield {"type": "bool_type", "loc": place, "input": given}
        elif isinstance(given, bool) and isinstance(read, int | float):
            kind = "int_type" if isinstance(read, int) else "float_type"
            yield {"type": kind, "loc": place, "input": given}
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _mixed_up(one, other, (*place, index))
    elif isinstance(given, Mapping) and isinstance(read, Mapping) and len(given) == len(read):
        for (key, one), (other_key, other) in zip(given.items(), read.items(), strict=True):
            yield from _mixed_up(key, other_key, (*place, str(key)))
            yield from _mixed_up(one, other, (*place, str(key)))
