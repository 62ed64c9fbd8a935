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
from compressor.ranker.spec import DenseSparseForm, RankerSpec
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


def refuse_bi_encoder(spec: RankerSpec) -> None:
    """Refuse a ranker that gives no scores of pairs.

    Raises:
        PlanError: its head gives a vector for each text.
    """
    from compressor.ranker.spec import ClassifierHead

    if not isinstance(spec.head, ClassifierHead):
        raise PlanError(
            "a bi-encoder, which gives a vector for each text",
            allowed="a cross-encoder, which gives a score for a pair",
            fix="put start_from before it: it gives an encoder a scoring head",
        )


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


def refuse_sparse(spec: RankerSpec, verb: str) -> None:
    """Refuse to reshape or fit anew matrices whose zeros are to stay, or that are stored as atoms and sparse codes.

    Raises:
        PlanError: some matrix is one of these.
    """
    from compressor.ranker.cost import linears_of
    from compressor.ranker.sparsity import sparse_linears

    for name, linear in linears_of(spec):
        if isinstance(linear.form, DenseSparseForm):
            raise PlanError(f"{name}, stored as atoms and sparse codes", fix=f"put {verb} before dense_sparse")

    if found := sparse_linears(spec):
        raise PlanError(
            f"a ranker with {len(found)} sparse matrices, whose zeros {verb} would move or fill",
            allowed="a ranker before sparsify",
            fix=f"put {verb} before sparsify: shapes first, then zeros",
        )


def refuse_cascade(spec: RankerSpec, what: str) -> None:
    """Refuse to change the layers of a ranker whose lists are cut behind some of them.

    Raises:
        PlanError: it has a cascade; ``what`` says in the fix what to put before it.
    """
    if spec.cascade:
        raise PlanError(
            "a ranker with a cascade, which was set up for the layers that it has",
            allowed="a ranker without a cascade",
            fix=f"put {what} before cascade",
        )


def refuse_token_rules(spec: RankerSpec, verb: str, setting: str = "") -> None:
    """Refuse to choose or fit parts of layers one by one where some let tokens go.

    Raises:
        PlanError: names the first layer with a token rule, and ``setting`` where another value of it would do.
    """
    if spec.rule_layers:
        raise PlanError(
            f"a ranker that lets tokens go behind layer {spec.rule_layers[0]}",
            allowed="a ranker all of whose layers see the same tokens",
            fix=f"put {verb} before pool_tokens and keep_tokens: which layers and widths there are comes first, "
            "where tokens go second",
            setting=setting,
        )


def refuse_factorized_outputs(spec: RankerSpec, verb: str, setting: str = "") -> None:
    """Refuse to fit output matrices of heads or neurons anew where they are products of two.

    Raises:
        PlanError: names the layer, and ``setting`` where another value of it would do.
    """
    for index, layer in enumerate(spec.layers):
        outputs = [layer.attention and layer.attention.output, layer.ffn and layer.ffn.down]
        if not all(one.is_one_matrix for one in outputs if one):
            raise PlanError(
                f"layer {index} with factorized matrices", fix=f"put {verb} before what factorizes", setting=setting
            )


def refuse_factorized(spec: RankerSpec, verb: str) -> None:
    """Refuse to change whole matrices where layers have factors in their place.

    Raises:
        PlanError: names the first linear.
    """
    from compressor.ranker.forms import layer_linears

    for name, linear in layer_linears(spec).items():
        if not linear.is_one_matrix:
            raise PlanError(f"{name}, of which there are factors alone", fix=f"put {verb} before what factorizes")


def at_most_its_parameters(result: Ranker) -> list[Promise]:
    """Return the promise that a ranker never gets more parameters again; exits may be added, no export has them."""
    from compressor.ranker.cost import parameters

    most = parameters(result.spec.without_exits())

    def check(ranker: Ranker) -> str | None:
        found = parameters(ranker.spec.without_exits())
        return f"{found:,} parameters" if found > most else None

    return [Promise(text=f"at most {most:,} parameters, those of exits not counted", check=check)]
