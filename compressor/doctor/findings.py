"""What is found out about a consumer: a verdict, and the reasons for it, each with its place and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from compressor.doctor.folder import RankerFolder

Verdict = Literal["loads", "loads_with_note", "does_not_load"]
Evidence = Literal["run", "read"]
"""Held against the consumer, by ``benchmarks/check_conformance.py``, or read in its documentation or sources."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One thing that a consumer meets in a folder.

    Attributes:
        kind: an ``obstacle`` keeps the consumer from scoring pairs as the ranker does; a ``note`` does not.
        file: the file at issue, relative to the folder; empty for the folder as a whole.
        key: the place in it: a key, an input, an operator.
        text: what is there, and what the consumer does with it.
        fix: what to do about it.
        moves_scores: whether scores are then others than ours, beyond rounding and the consumer's own sigmoid.
    """

    kind: Literal["obstacle", "note"]
    file: str = ""
    key: str = ""
    text: str
    fix: str = ""
    moves_scores: bool = False


def obstacle(text: str, *, file: str = "", key: str = "", fix: str = "") -> Reason:
    """Return a reason why a consumer cannot use the folder."""
    return Reason(kind="obstacle", text=text, file=file, key=key, fix=fix, moves_scores=True)


def note(text: str, *, file: str = "", key: str = "", fix: str = "", moves_scores: bool = False) -> Reason:
    """Return something that whoever loads the folder there should know."""
    return Reason(kind="note", text=text, file=file, key=key, fix=fix, moves_scores=moves_scores)


@dataclass(frozen=True, kw_only=True, slots=True)
class Consumer:
    """A program that loads rankers, and its rules.

    Attributes:
        name: as a user knows it.
        version: what the rules were read from.
        evidence: whether they were held against the consumer itself, too.
        rules: yield the reasons of a folder, in the order in which the consumer would meet them.
    """

    name: str
    version: str
    evidence: Evidence = "read"
    rules: Callable[[RankerFolder], Iterable[Reason]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a consumer would do with a folder."""

    consumer: str
    version: str
    evidence: Evidence
    reasons: tuple[Reason, ...]

    @property
    def verdict(self) -> Verdict:
        """Loads, loads with something to know, or does not load."""
        if any(reason.kind == "obstacle" for reason in self.reasons):
            return "does_not_load"
        return "loads_with_note" if self.reasons else "loads"

    @property
    def moves_scores(self) -> bool:
        """Whether something is known that makes its scores others than ours."""
        return any(reason.moves_scores for reason in self.reasons)

    def as_json(self) -> dict[str, Any]:
        """Return the finding for machines; keys stay as they are while ``schema`` does."""
        return {
            "consumer": self.consumer,
            "version": self.version,
            "evidence": self.evidence,
            "verdict": self.verdict,
            "moves_scores": self.moves_scores,
            "reasons": [
                {name: getattr(reason, name) for name in ("kind", "file", "key", "text", "fix", "moves_scores")}
                for reason in self.reasons
            ],
        }


def find(consumer: Consumer, folder: RankerFolder) -> Finding:
    """Ask a consumer's rules about a folder; a reason that two rules find is told once."""
    reasons = tuple(dict.fromkeys(consumer.rules(folder)))
    return Finding(
        consumer=consumer.name, version=consumer.version, evidence=consumer.evidence, reasons=reasons
    )  # fmt: skip
