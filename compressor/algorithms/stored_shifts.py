"""Shifts of scores that take long to measure, kept one by one in a file, so that a killed run goes on from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.algorithms.score_shifts import ScoreShift
from compressor.errors import InputError
from compressor.storage import read_json, sha256_json, write_json


class StoredShifts:
    """What has been measured so far, in memory and in a file."""

    def __init__(self, store: Path | None, key: str, shifts: dict[str, ScoreShift]) -> None:
        self.store, self.key, self.shifts = store, key, shifts

    @classmethod
    def of(cls, store: Path | None, measured: Any) -> StoredShifts:
        """Return what a file holds of these very measurements: nothing, where it is of others or cannot be read.

        Args:
            store: the file; None for memory alone.
            measured: JSON that says what is measured and on what.
        """
        key = sha256_json(measured)
        shifts: dict[str, ScoreShift] = {}
        if store and store.is_file():
            try:
                stored = read_json(store)
                if stored["key"] == key:
                    shifts = {name: ScoreShift(**values) for name, values in stored["shifts"].items()}
            except (InputError, KeyError, TypeError, AttributeError):
                pass  # what cannot be read is measured again
        return cls(store, key, shifts)

    def add(self, name: str, shift: ScoreShift) -> None:
        """Keep one measurement, at once."""
        self.shifts[name] = shift
        if self.store:
            self.store.parent.mkdir(parents=True, exist_ok=True)
            shifts = {each: asdict(one) for each, one in self.shifts.items()}
            write_json(self.store, {"key": self.key, "shifts": shifts})
