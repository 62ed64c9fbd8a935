"""The contract of a pass: what it needs, what it will do to the shape, what it does, and what it promises to keep.

A pass is a frozen record of settings. `plan` and `apply` must agree: the pipeline checks that the shape that `apply`
returns is the one that `plan` foretold. Settings and plans import no torch, so recipes are checked in no time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from compressor.errors import RunError
from compressor.ranker.spec import RankerSpec
from compressor.records import Record

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData
    from compressor.ranker.ranker import Ranker

Need = Literal["train", "in_domain", "calibration", "dev", "teacher"]
DATA_NEEDS: tuple[Need, ...] = ("train", "in_domain", "calibration", "dev")  # the teacher is always there


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
        scratch: a folder for checkpoints of this pass alone: it survives a kill, and goes once the result is stored.
        load_teacher: loads the recipe's teacher; called on first use.
    """

    granted: frozenset[Need]
    load: Callable[[Need], RankingData]
    seed: int
    scratch: Path
    load_teacher: Callable[[], Ranker]
    _notes: dict[str, object] = field(default_factory=dict)
    _curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def data(self, need: Need) -> RankingData:
        """Return the collection that serves a need.

        Raises:
            NeedError: the pass did not declare it.
        """
        if need not in self.granted:
            raise NeedError(f"the pass asked for {need} data without declaring the need")
        return self.load(need)

    def teacher(self) -> Ranker:
        """Return the recipe's teacher, as loaded.

        Raises:
            NeedError: the pass did not declare it.
        """
        if "teacher" not in self.granted:
            raise NeedError("the pass asked for the teacher without declaring the need")
        return self.load_teacher()

    def pairs(self, need: Need, n_pairs: int, per_query: int = 1) -> list[tuple[str, str]]:
        """Return up to ``n_pairs`` (query, document) texts: first-stage candidates, spread over queries and ranks.

        With ``per_query``, fewer queries with at least so many candidates each, for what is measured within lists.
        """
        data = self.data(need)
        return data.texts(data.sample_pairs(n_pairs, self.seed, per_query))

    def note(self, key: str, value: object) -> None:
        """Record a decision or measurement (JSON) in the ranker's history."""
        self._notes[key] = value

    def curve(self, name: str, points: Sequence[tuple[float, float]]) -> None:
        """Record a curve, such as the loss over pairs seen, in the ranker's history; the report plots it."""
        self._curves[name] = [(float(x), float(y)) for x, y in points]

    @property
    def notes(self) -> dict[str, object]:
        return dict(self._notes)

    @property
    def curves(self) -> dict[str, list[tuple[float, float]]]:
        return dict(self._curves)


class Pass(Record, ABC):
    """Settings of one pass; subclasses are registered under a verb."""

    verb: ClassVar[str]

    def needs(self) -> frozenset[Need]:
        """Return the data that these settings call for."""
        return frozenset()

    @property
    def without_data(self) -> str:
        """Settings by which the pass needs no data, as the fix of an unmet need goes on: "scheme: int8_dynamic"."""
        return ""

    def placed(self, base: Path) -> Self:
        """Return the settings with relative paths made absolute, starting from ``base``."""
        return self

    def fingerprints(self) -> Mapping[str, str]:
        """Return a hash of the content of each file or model that the settings name; a stored result depends on it.

        Raises:
            InputError: there is no such file or model.
        """
        return {}

    @property
    def starts_anew(self) -> str:
        """The checkpoint that takes the place of the ranker at hand, if one does; such a pass stands first."""
        return ""

    @property
    def reads_along(self) -> str:
        """The setting by which the teacher reads the ranker's own rows, if one does; both must cut text alike then."""
        return ""

    @property
    def changes_weights(self) -> bool:
        """Whether the ranker's own weights may become others: what was made for them no longer fits then."""
        return True

    @property
    def made_for_base(self) -> str:
        """What was made for the weights as they were loaded, if the settings name such a thing."""
        return ""

    def check_data(self, load: Callable[[Need], RankingData]) -> None:
        """Refuse data that the settings cannot be used with, before anything is run.

        Args:
            load: loads the data of a declared need.

        Raises:
            InputError: names the pass, the setting and what the data has.
        """

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


def at_most_its_parameters(result: Ranker) -> list[Promise]:
    """Return the promise that a ranker never gets more parameters again; exits may be added, no export has them."""
    from compressor.ranker.cost import parameters

    most = parameters(result.spec.without_exits())

    def check(ranker: Ranker) -> str | None:
        found = parameters(ranker.spec.without_exits())
        return f"{found:,} parameters" if found > most else None

    return [Promise(text=f"at most {most:,} parameters, those of exits not counted", check=check)]
