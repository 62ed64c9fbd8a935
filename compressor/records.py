"""The base of every record that is read from or written to JSON and YAML."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def changed(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced, checked like a new record (`model_copy` would not check)."""
        return type(self).model_validate({**dict(self), **changes})
