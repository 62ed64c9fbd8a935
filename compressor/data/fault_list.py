"""All faults of a data file at once, without flooding the terminal when every line is wrong."""

from __future__ import annotations

from pathlib import Path

from compressor.errors import Fault, InputError

_SHOWN = 20


class FaultList:
    """Faults gathered while reading; the first twenty are kept, the rest are counted."""

    def __init__(self) -> None:
        self._shown: list[Fault] = []
        self.count = 0

    def add(self, source: str | Path, where: str | int, found: str, allowed: str = "", fix: str = "") -> None:
        """Note a fault; a number for ``where`` is a line number."""
        self.count += 1
        if self.count <= _SHOWN:
            place = f"line {where}" if isinstance(where, int) else where
            self._shown.append(Fault(source=source, where=place, found=found, allowed=allowed, fix=fix))

    def raise_if_any(self) -> None:
        """Raise what was found.

        Raises:
            InputError: at least one fault was added.
        """
        if not self.count:
            return
        rest = self.count - len(self._shown)
        more = [Fault(source=self._shown[-1].source, found=f"{rest} more faults of this collection")] if rest else []
        raise InputError(self._shown + more)
