"""The objective of a training pass: losses on scores, labels, exits and inner states, mixed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compressor.algorithms.curriculum import curriculum_weights
from compressor.algorithms.loss_options import LossOptions
from compressor.algorithms.ranking_losses import RANKING_LOSSES
from compressor.algorithms.representation_losses import (
    attention_kl,
    hidden_cosine,
    hidden_mse,
    qkv_relation_kl,
)
from compressor.algorithms.teacher_losses import listwise_kl, margin_mse, mse
from compressor.training.matches import RelationMatch, StateMatch, same_relations, same_tokens

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.token_scores import Reached
    from compressor.ranker.trace import Trace
    from compressor.training.batches import Batch
    from compressor.training.projections import Projections
    from compressor.training.scorer_heads import ScorerHeads

ScoreTerm = tuple[str, LossOptions]  # a loss of `RANKING_LOSSES` and its options


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A teacher that reads each batch along with its student.

    Attributes:
        module: the teacher, in evaluation mode; moved to wherever the batches are.
        states, relations: what is matched.
        projections: where the widths differ.
    """

    module: Encoder
    states: Sequence[StateMatch] = ()
    relations: RelationMatch | None = None
    projections: Projections | None = None

    def trace(self, batch: Batch) -> Trace:
        """Return the teacher's scores, states and relations, without gradient and in its own precision."""
        device = batch.mask.device
        self.module.to(device)
        layers = set(self.relations.layers.values()) if self.relations else set[int]()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.module.trace(**batch.inputs, relations=layers)


class Objective:
    """``objective(module, batch)`` returns the weighted losses of a batch by name; training minimizes their sum.

    Args:
        scores: losses on teacher scores.
        labels: losses on labels.
        exits: the weight of the mean over exits of the losses above plus the divergence from the final scores, which
            learn nothing from it (self-distilled exits, BGE layerwise).
        on_exits: losses of exits alone beside these, on teacher scores, or on the final ones where there are none.
        watched: the teacher whose inner states are matched.
        live: take teacher scores from its forward pass too, instead of those that the batch brings.
        heads: through which learned scorers of tokens learn from the teacher's scores, or from the final ones where
            there are none.
    """

    def __init__(
        self,
        *,
        scores: Sequence[ScoreTerm] = (),
        labels: Sequence[ScoreTerm] = (),
        exits: float = 0.0,
        on_exits: Sequence[ScoreTerm] = (),
        watched: Watched | None = None,
        live: bool = False,
        heads: ScorerHeads | None = None,
    ) -> None:
        if live and watched is None:
            raise ValueError("live scores need a teacher that is watched")
        self._scores, self._labels, self._exits, self._on_exits_alone = tuple(scores), tuple(labels), exits, on_exits
        self._watched, self._live, self._heads = watched, live, heads
        self._read: tuple[Batch, Trace] | None = None

    @property
    def extra(self) -> nn.Module | None:
        """What is trained along with the student and thrown away."""
        parts = {"projections": self._watched.projections if self._watched else None, "scorers": self._heads}
        found = {name: part for name, part in parts.items() if part is not None}
        return nn.ModuleDict(found) if found else None

    @property
    def rates(self) -> Mapping[str, float]:
        """Constant learning rates of some of it, by the beginning of their names."""
        return {f"scorers.{name}": rate for name, rate in self._heads.rates.items()} if self._heads else {}

    @property
    def rewinds(self) -> Collection[int]:
        """Steps before which the schedule of the learning rate begins anew; known once training has begun."""
        return ()

    def begin(self, module: Encoder, n_steps: int) -> None:
        """Get ready for a training of so many steps, one that goes on from a checkpoint too."""

    def after_step(self) -> None:
        """Take note of a step of the optimizer."""

    def settled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the ranker's weights out of those of the module that was trained, where `begin` changed its parts."""
        return dict(weights)

    def prepare(self, module: Encoder, batches: Iterator[Batch]) -> None:
        """Fit projections to a student that is about to be trained, on some of its first batches."""
        if self._watched and self._watched.projections:
            self._watched.projections.fit(module, self._watched.trace, batches)

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Return each loss, weighted: a mean over lists for scores, over tokens for inner states.

        A curriculum weighs the lists, by the teacher's scores where there are any, else by labels. Of layers that the
        module leaves out, neither states nor relations nor exits are asked for.

        Args:
            module: the student, in training.
            batch: lists of pairs, with teacher scores and labels where they are needed.
        """
        watched = self._watched
        teacher = self._read_by(watched, batch) if watched else None
        seen = batch.listed(teacher.logits.float()) if teacher else batch.targets
        targets = seen if self._live else batch.targets
        if batch.closeness is not None:
            order = batch.labels if seen is None else seen
            weights = curriculum_weights(order, batch.closeness, batch.mask, batch.progress)
            batch = replace(batch, weights=weights)
        shows_inside = self._exits or (watched and (watched.states or watched.relations))
        relations = watched.relations.layers.keys() if watched and watched.relations else ()
        nothing: dict[int, Reached] = {}
        watching: AbstractContextManager[dict[int, Reached]] = (
            self._heads.watched(module) if self._heads else nullcontext(nothing)
        )
        with watching as reached:
            student = module.trace(**batch.inputs, relations=relations) if shows_inside else None
            scores = batch.listed(student.logits if student else module(**batch.inputs))
        losses = self._on_scores(scores, targets, batch)
        if student and self._exits and student.exits:
            losses["exits"] = self._on_exits(student, scores, targets, batch)
        if student and watched and teacher:
            losses |= _on_states(watched, student, teacher)
        if self._heads and reached:
            losses["token_scorers"] = self._on_scorers(
                self._heads, reached, scores.detach() if seen is None else seen, batch
            )
        return losses

    def _read_by(self, watched: Watched, batch: Batch) -> Trace:
        """Return what the teacher makes of a batch, once for all parts of a student that learn from it in turn."""
        if self._read is None or self._read[0] is not batch:
            self._read = None  # one at a time, for memory
            self._read = (batch, watched.trace(batch))
        return self._read[1]

    def _on_scores(self, scores: Tensor, targets: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        terms = [(name, options, targets) for name, options in self._scores]
        terms += [(name, options, batch.labels) for name, options in self._labels]
        return self._weighted(scores, terms, batch)

    def _weighted(
        self, scores: Tensor, terms: Sequence[tuple[str, LossOptions, Tensor | None]], batch: Batch
    ) -> dict[str, Tensor]:
        losses = {}
        for name, options, wanted in terms:
            if wanted is None:
                raise ValueError(f"{name} needs {RANKING_LOSSES[name].target} values, and the batch has none")
            losses[name] = options.weight * _mean(RANKING_LOSSES[name](scores, wanted, batch.mask, options), batch)
        return losses

    def _on_scorers(self, heads: ScorerHeads, reached: Mapping[int, Reached], wanted: Tensor, batch: Batch) -> Tensor:
        found = []
        for layer, each in reached.items():
            told = batch.listed(heads(layer, each))
            found += [_mean(error(told, wanted, batch.mask), batch) for error in (mse, margin_mse)]
        return heads.settings.weight * torch.stack(found).sum() / len(reached)

    def _on_exits(self, student: Trace, scores: Tensor, targets: Tensor | None, batch: Batch) -> Tensor:
        losses = []
        wanted = scores.detach() if targets is None else targets
        alone = [(name, options, wanted) for name, options in self._on_exits_alone]
        for logits in student.exits.values():
            early = batch.listed(logits)
            from_final = _mean(listwise_kl(early, scores.detach(), batch.mask), batch)
            parts = [*self._on_scores(early, targets, batch).values(), *self._weighted(early, alone, batch).values()]
            losses.append(torch.stack([from_final, *parts]).sum())
        return self._exits * torch.stack(losses).mean()


def _on_states(watched: Watched, student: Trace, teacher: Trace) -> dict[str, Tensor]:
    losses = {}
    for match in watched.states:
        measure = hidden_mse if match.measure == "mse" else hidden_cosine
        each = []
        for own, theirs in match.states.items():
            if own - 1 in student.skipped:  # state 0 is the embeddings
                continue
            left, right = same_tokens(student, own, teacher, theirs)
            if watched.projections:
                left = watched.projections.project(left, match, own)
            each.append(measure(left, right))
        if each:
            losses[match.name] = match.weight * torch.stack(each).mean()
    if relations := watched.relations:
        divergence = qkv_relation_kl if relations.kind == "qkv" else attention_kl
        each = [
            divergence(*same_relations(student, own, teacher, theirs), student.layouts[own + 1], relations.heads)
            for own, theirs in relations.layers.items()
            if own in student.relations
        ]
        if each:
            losses["relations"] = relations.weight * torch.stack(each).mean()
    return losses


def _mean(losses: Tensor, batch: Batch) -> Tensor:
    """Return the mean of ``losses [L]``, each list with its own weight."""
    return (losses * batch.weights).mean()
