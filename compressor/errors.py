"""Errors that a user can act on: where, what was found, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXIT_PASS, EXIT_GATE_FAILED, EXIT_UNDECIDED, EXIT_BAD_INPUT, EXIT_RUN_FAILED = 0, 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault in one place of the input.

    Args:
        source: the file or folder at fault, or ``command line``.
        where: the place inside it: ``line 12``, ``passes.0.keep``, ``--threads``; empty for the whole.
        found: what stands there.
        allowed: what may stand there.
        fix: what to do about it.
    """

    source: str | Path
    where: str = ""
    found: str
    allowed: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.source}: {self.where}" if self.where else str(self.source)
        parts = [f"{place}: found {self.found}"]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.fix:
            parts.append(self.fix)
        return "; ".join(parts)


class RankpressError(Exception):
    """Base of every error that rankpress raises on purpose; ``exit_code`` is what the command returns."""

    exit_code = EXIT_RUN_FAILED


class InputError(RankpressError):
    """Bad input. Carries all faults that were found, so that a user mends them in one go."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, faults: Fault | Iterable[Fault]) -> None:
        self.faults = [faults] if isinstance(faults, Fault) else list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class RunError(RankpressError):
    """A run that had good input and still failed: a broken promise, a parity failure, NaN scores."""


def suggest(found: str, allowed: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest allowed word, or an empty string."""
    words = list(allowed)
    longer = [word for word in words if len(found) > 2 and word.startswith(found)]
    near = difflib.get_close_matches(found, words, n=1, cutoff=0.6) or longer
    return f"did you mean '{near[0]}'?" if near else ""
