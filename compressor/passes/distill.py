"""`distill`: train a ranker to score like its teacher, by the same inner states, on text that needs no judgments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from compressor.passes.contract import Need, PlanError, Supply
from compressor.passes.training_pass import TrainingPass
from compressor.ranker.spec import RankerSpec
from compressor.registry import register
from compressor.training.loss_settings import LabelLosses, Representations, TeacherLosses
from compressor.training.teachers import FileTeacher, RankerTeacher, Teacher

if TYPE_CHECKING:
    from compressor.ranker.ranker import Ranker
    from compressor.training.objective import Objective


_ON_ABSOLUTE_SCORES = ("mse", "rank_distil")
_ON_DIFFERENCES = "losses on differences: margin_mse, centered_mse, listwise_kl, ranknet, ..."


@register("distill")
class Distill(TrainingPass):
    """Train on a teacher's scores of unlabelled pairs, and on the inner states that it has while it scores them.

    ``losses``: on the teacher's scores, by name: ``{mse: 0.05, listwise_kl: {weight: 0.5, temperature: 2}}``.
    ``representations``: on states of the recipe's own teacher: ``hidden``, ``relations``, ``embeddings``. Where widths
    differ, a projection is learned along and thrown away. ``{}`` for none.
    ``labels``: losses on judgments, mixed in where the data has them: ``{softmax_labels: 0.2}``.
    ``teachers``: whose scores count; by default the recipe's own. Several are averaged. Each is a ranker, a file of
    scores, or a decoder or T5 ranker that stays as it is: ``{large: path/to/model, precision: int4}``.
    ``standardize``: bring every teacher to the mean and spread of the first, since their logits have different scales.
    ``teacher_scores``: ``stored``, scored once by the exported teacher in fp32 and kept for other runs; ``live``, out
    of the very pass that gives the states, in the precision of training; ``auto``: live where that pass is made anyway
    and its teacher is the only one.
    ``data``: ``train``, or ``in_domain``, the collection that is to be ranked (phase 2 of InRanker, arXiv 2401.06910).

    Squared errors of raw logits are large beside the share of variance that hidden states miss, hence their weight.
    """

    losses: TeacherLosses = TeacherLosses.model_validate({"mse": 0.05, "listwise_kl": 0.5})
    representations: Representations = Representations.model_validate({"hidden": 1.0})
    labels: LabelLosses = LabelLosses()
    teachers: tuple[Teacher, ...] = Field(default=(RankerTeacher(),), min_length=1)
    standardize: bool = False
    teacher_scores: Literal["auto", "stored", "live"] = "auto"
    data: Literal["train", "in_domain"] = "train"

    def needs(self) -> frozenset[Need]:
        return super().needs() | {self.data, "teacher"}

    def placed(self, base: Path) -> Self:
        teachers = tuple(teacher.placed(base) for teacher in self.teachers)
        return self if teachers == self.teachers else self.model_copy(update={"teachers": teachers})

    def fingerprints(self) -> Mapping[str, str]:
        return {name: value for teacher in self.teachers for name, value in teacher.fingerprints().items()}

    def plan(self, spec: RankerSpec) -> RankerSpec:
        super().plan(spec)
        if not (self.losses or self.representations or self.labels):
            raise PlanError("nothing to learn from", allowed="losses, representations or labels", setting="losses")
        if self.layer_drop and not (self.losses or self.labels):
            raise PlanError(
                "layer_drop with losses on inner states alone: steps that leave their layers out would learn nothing",
                allowed="losses or labels beside them",
                setting="layer_drop",
            )
        self.refuse_short_lists(self.losses.terms(), "losses")
        self.refuse_short_lists(self.labels.terms(), "labels")
        if self.teacher_scores == "live" and not self._asks_own_teacher_alone:
            raise PlanError(
                "live scores of other teachers than the recipe's own",
                allowed="stored, or auto",
                setting="teacher_scores",
            )
        if self.standardize and len(self.teachers) == 1:
            fix = "name another teacher, or take standardize away"
            raise PlanError("one teacher alone, whose scale is its own", fix=fix, setting="standardize")
        self._refuse_margins()
        self._refuse_layers_beyond(len(spec.layers))
        return spec

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        if self.epochs == 0:
            return ranker.changed()
        return self.learned(ranker, supply)

    def learned(self, ranker: Ranker, supply: Supply, make: Callable[..., Objective] | None = None) -> Ranker:
        """Return the ranker, trained on the losses that the settings name.

        Args:
            ranker: where training starts.
            supply: the pass's supply.
            make: makes the objective of the arguments of `Objective`, which it is by default.

        Raises:
            InputError: the data lacks what the losses need.
        """
        data = supply.data(self.data)
        if self.labels and not data.qrels:
            raise self.fault("labels", f"losses on labels, and no judgments in {data.name}", fix="take labels away")
        objective = self._objective(ranker, supply, make)
        stored = self.teachers if self.losses and not self._is_live else ()
        return self.train(ranker, supply, data, objective, teachers=stored, standardize=self.standardize)

    @property
    def reads_along(self) -> str:
        if self.epochs == 0:
            return ""
        return "representations" if self.representations else "teacher_scores" if self.losses and self._is_live else ""

    @property
    def loses_dimensions(self) -> bool:
        """Whether the ranker's states lose dimensions while it trains: they are then never compared one by one."""
        return False

    @property
    def _asks_own_teacher_alone(self) -> bool:
        return all(isinstance(teacher, RankerTeacher) and teacher.ranker == "self" for teacher in self.teachers)

    @property
    def _is_live(self) -> bool:
        if self.teacher_scores != "auto":
            return self.teacher_scores == "live"
        return bool(self.representations) and self._asks_own_teacher_alone

    def refuse_unknown_offsets(self, offsets_known: bool) -> None:
        if not offsets_known and self._on_absolute_scores:
            name = self._on_absolute_scores[0]
            found = f"{name}, which learns scores as they are, and a teacher that gives differences alone"
            raise self.fault(f"losses.{name}", found, allowed=_ON_DIFFERENCES)

    @property
    def _on_absolute_scores(self) -> list[str]:
        return [name for name, _ in self.losses.terms() if name in _ON_ABSOLUTE_SCORES]

    def _refuse_margins(self) -> None:
        relative = [one for one in self.teachers if one.offsets_known is False]
        absolute = self._on_absolute_scores
        if relative and absolute:
            kind = "a file of margins" if isinstance(relative[0], FileTeacher) else "a teacher of ranks within lists"
            raise PlanError(
                f"{absolute[0]}, which learns scores as they are, and {kind} ({relative[0].name})",
                allowed=_ON_DIFFERENCES,
                setting=f"losses.{absolute[0]}",
            )

    def _refuse_layers_beyond(self, n_layers: int) -> None:
        for name in ("hidden", "relations"):
            match = getattr(self.representations, name)
            beyond = (
                [layer for layer in match.layers if layer >= n_layers]
                if match and isinstance(match.layers, dict)
                else []
            )
            if beyond:
                raise PlanError(
                    f"layer {beyond[0]} of a ranker of {n_layers} layers",
                    allowed=f"student layers from 0 to {n_layers - 1}",
                    setting=f"representations.{name}.layers",
                )

    def _objective(self, ranker: Ranker, supply: Supply, make: Callable[..., Objective] | None) -> Objective:
        from compressor.passes.watched_teacher import watch
        from compressor.training.objective import Objective

        watched = watch(self, ranker, supply) if self.reads_along else None
        return (make or Objective)(
            scores=tuple(self.losses.terms()),
            labels=tuple(self.labels.terms()),
            exits=self.exits_weight(ranker.spec),
            on_exits=tuple(self.exit_losses.terms()),
            live=bool(self.losses) and self._is_live,
            watched=watched,
            heads=self.scorer_heads(ranker.spec, supply.seed),
        )
