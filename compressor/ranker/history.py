"""What was done to a ranker: one record per applied pass."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from compressor.records import Record


class StageRecord(Record):
    """One applied pass.

    Attributes:
        verb: the pass's recipe name, or ``import`` for the teacher's origin.
        settings: its settings, defaults written out.
        series: curves that it recorded, ``(x, y)`` points by name, such as the loss over pairs seen.
        notes: what it decided or measured, as JSON: decisions that cannot be recomputed are kept here.
        seconds: how long it took.
    """

    verb: str
    settings: dict[str, Any] = Field(default_factory=dict)
    notes: dict[str, Any] = Field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = Field(default_factory=dict)
    seconds: float = 0.0
