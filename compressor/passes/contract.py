"""The contract of a pass: what it needs, what it will do to the shape, what it does, and what it promises to keep.

A pass is a frozen record of settings. `plan` and `apply` must agree: the pipeline checks that the shape that `apply`
returns is the one that `plan` foretold. Settings and plans import no torch, so recipes are checked in no time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from compressor.errors import RunError
from compressor.ranker.spec import RankerSpec
from compressor.records import Record

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData
    from compressor.ranker.ranker import Ranker

Need = Literal["train", "calibration", "dev"]


class PlanError(Exception):
    """A pass cannot be applied to a ranker of this shape. ``setting`` names the key at fault, if one is."""

    def __init__(self, found: str, *, allowed: str = "", fix: str = "", setting: str = "") -> None:
        super().__init__(found)
        self.found, self.allowed, self.fix, self.setting = found, allowed, fix, setting


class NeedError(RunError):
    """A pass asked for data that it had not declared: a defect of the pass, not of the recipe."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """Something that stays true of a ranker through all later passes.

    Attributes:
        text: the promise in words.
        check: returns what is broken, or None.
    """

    text: str
    check: Callable[[Ranker], str | None]


@dataclass(frozen=True, kw_only=True)
class Supply:
    """What the pipeline gives a pass: the data that it declared, and a seed. Asking for more is an error.

    Attributes:
        granted: the declared needs.
        load: loads the data of one need; called on first use.
        seed: for all that is drawn at random.
    """

    granted: frozenset[Need]
    load: Callable[[Need], RankingData]
    seed: int
    _notes: dict[str, object] = field(default_factory=dict)

    def data(self, need: Need) -> RankingData:
        """Return the collection that serves a need.

        Raises:
            NeedError: the pass did not declare it.
        """
        if need not in self.granted:
            raise NeedError(f"the pass asked for {need} data without declaring the need")
        return self.load(need)

    def pairs(self, need: Need, n_pairs: int) -> list[tuple[str, str]]:
        """Return up to ``n_pairs`` (query, document) texts: first-stage candidates, spread over queries and ranks."""
        data = self.data(need)
        return data.texts(data.sample_pairs(n_pairs, self.seed))

    def note(self, key: str, value: object) -> None:
        """Record a decision or measurement (JSON) in the ranker's history."""
        self._notes[key] = value

    @property
    def notes(self) -> dict[str, object]:
        return dict(self._notes)


class Pass(Record, ABC):
    """Settings of one pass; subclasses are registered under a verb."""

    verb: ClassVar[str]

    def needs(self) -> frozenset[Need]:
        """Return the data that these settings call for."""
        return frozenset()

    @abstractmethod
    def plan(self, spec: RankerSpec) -> RankerSpec:
        """Return the shape that the pass makes of a ranker, without looking at weights.

        Raises:
            PlanError: the pass makes no sense on this shape; says why.
        """

    @abstractmethod
    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        """Return the new ranker. The input is not changed; history is written by the pipeline."""

    def promises(self, result: Ranker) -> Sequence[Promise]:
        """Return what stays true of ``result`` through all later passes."""
        return ()


def refuse_quantized(spec: RankerSpec, verb: str) -> None:
    """Refuse to change the shape of a quantized ranker.

    Raises:
        PlanError: some linear or table is not fp32 any more.
    """
    from compressor.ranker.cost import linears_of, tables_of

    kinds = [part.precision.kind for _, part in linears_of(spec)] + [part.precision.kind for _, part in tables_of(spec)]
    rounded = [kind for kind in kinds if kind != "fp32"]
    if rounded:
        raise PlanError(
            f"a quantized ranker ({len(rounded)} rounded matrices)",
            allowed="an fp32 ranker",
            fix=f"put {verb} before quantize: its choices are made with exact scores, and rounding is set up "
            "for the final weights",
        )
