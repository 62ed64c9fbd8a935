"""`prune_greedily`: whole blocks, heads and neurons that a list's order can do without, found one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from compressor.errors import Fault, InputError
from compressor.passes.contract import Need, Pass, Promise, Supply, at_most_its_parameters
from compressor.passes.kept_layers import CANDIDATES_OF_A_LIST
from compressor.passes.refusals import (
    refuse_bi_encoder,
    refuse_factorized_outputs,
    refuse_quantized,
    refuse_sparse,
    refuse_token_rules,
)
from compressor.ranker.spec import RankerSpec
from compressor.registry import register

if TYPE_CHECKING:
    from compressor.algorithms.greedy_pruning import Greedy
    from compressor.data import RankingData
    from compressor.ranker.ranker import Ranker
    from compressor.training.lists import TrainingList

_ANEW = 1  # added to the seed: other lists, of which some queries may have been seen


@register("prune_greedily")
class PruneGreedily(Pass):
    """Try what a ranker can do without: each attention and each feed-forward, then heads, then groups of neurons.

    Deep layers first; what a trial takes away stays away if the loss on calibration lists allows it. After AxFormer
    (arXiv 2010.03688). Slow (hundreds of trials over half the layers each); `prune_widths` takes minutes.

    ``loss``: ``teacher``, the divergence of a list's softmax from that of the ranker as it came, without labels; or
    ``labels``, the cross entropy of judged lists, which need a relevant document each.
    ``mode``: ``speed`` accepts losses up to a limit; ``accuracy``, with labels alone, only what lowers the loss so far
    or leaves it.
    ``max_divergence``: the limit for ``teacher``, in nats a list. ``max_rise``: for ``labels``, as a share of the
    loss at the start.
    ``n_lists``: calibration lists of 8. ``neuron_group``: neurons that are tried together.
    ``compensate``: ``refit``, new output matrices by regression once all is chosen; or ``none``.

    What is accepted was chosen on these lists; the notes hold the loss on lists drawn anew from the same queries, too.
    """

    loss: Literal["teacher", "labels"] = "teacher"
    mode: Literal["speed", "accuracy"] = "speed"
    max_divergence: NonNegativeFloat = 0.02
    max_rise: NonNegativeFloat = 0.02
    n_lists: Annotated[int, Field(ge=2)] = 64
    neuron_group: PositiveInt = 128
    compensate: Literal["refit", "none"] = "refit"

    @model_validator(mode="after")
    def _accuracy_is_judged(self) -> Self:
        if self.mode == "accuracy" and self.loss == "teacher":
            raise ValueError("the teacher's own scores cannot be bettered: mode: accuracy needs loss: labels")
        return self

    def needs(self) -> frozenset[Need]:
        return frozenset({"calibration"})

    def plan(self, spec: RankerSpec) -> RankerSpec:
        refuse_quantized(spec, self.verb)
        refuse_sparse(spec, self.verb)
        refuse_token_rules(spec, self.verb)
        refuse_bi_encoder(spec)
        refuse_factorized_outputs(spec, self.verb)
        return spec  # what goes is not known before it is tried; layers stay, be they empty

    def apply(self, ranker: Ranker, supply: Supply) -> Ranker:
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.folding import measure_inputs
        from compressor.algorithms.greedy_pruning import prune_greedily
        from compressor.algorithms.width_importance import Evidence, ranked_widths

        data = supply.data("calibration")
        lists = self._lists(data, supply.seed)
        pairs = _pairs(data, lists)
        batches = calibration_batches(ranker, pairs)
        inputs = measure_inputs(ranker.module, batches)
        evidence = Evidence(spec=ranker.spec, weights=ranker.weights, queries=(), inputs=inputs)
        heads, neurons = ranked_widths("wanda", evidence)
        reference = ranker.score(pairs)
        loss = self._loss(lists, reference)
        found = prune_greedily(
            ranker.trainable().eval().requires_grad_(False), batches, loss, self._accept(loss(reference)),
            heads, neurons, self.neuron_group,
        )  # fmt: skip
        cut = self._cut(ranker, found, pairs)
        supply.note("trials", found.n_trials)
        supply.note("accepted", dict(found.accepted))
        supply.note("heads", [layer.heads for layer in cut.spec.layers])
        supply.note("ffn_widths", [layer.ffn_width for layer in cut.spec.layers])
        others = self._lists(data, supply.seed + _ANEW)
        for name, own in (("chosen_on", lists), ("drawn_anew", others)):
            texts = _pairs(data, own)
            before = ranker.score(texts)
            own_loss = self._loss(own, before)
            values = [round(own_loss(before), 5), round(own_loss(cut.score(texts)), 5)]
            supply.note(f"loss_{name}", dict(zip(("before", "after"), values, strict=True)))
        return cut

    def promises(self, result: Ranker) -> Sequence[Promise]:
        return at_most_its_parameters(result)

    def _lists(self, data: RankingData, seed: int) -> list[TrainingList]:
        """Draw lists.

        Raises:
            InputError: the data has too few of them.
        """
        from compressor.training.lists import ListSettings, draw_lists

        settings = ListSettings(list_size=CANDIDATES_OF_A_LIST)
        found = draw_lists(data, settings, epoch=0, seed=seed, by_positive=self.loss == "labels")
        if len(found) < 2:
            need = "judged queries with relevant candidates" if self.loss == "labels" else "queries with candidates"
            raise InputError(
                Fault(
                    source=data.name, found=f"{len(found)} lists for {self.verb}", allowed=f"at least 2 {need}",
                    fix="name other data.calibration" + (", or set loss: teacher" if self.loss == "labels" else ""),
                )
            )  # fmt: skip
        return found[: self.n_lists]

    def _loss(self, lists: Sequence[TrainingList], reference: np.ndarray) -> Callable[[np.ndarray], float]:
        """Return the mean loss over lists of the scores of all pairs, list by list."""
        import torch

        from compressor.algorithms.label_losses import softmax_labels
        from compressor.algorithms.teacher_losses import listwise_kl

        sizes = [len(one.documents) for one in lists]

        def padded(values: Sequence[float] | np.ndarray) -> torch.Tensor:
            parts = torch.tensor(np.asarray(values, dtype=np.float32)).split(sizes)
            return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

        mask = padded(np.ones(sum(sizes))).bool()
        function: Callable[..., torch.Tensor] = listwise_kl if self.loss == "teacher" else softmax_labels
        labels = [label for one in lists for label in one.labels or ()]
        targets = padded(reference if self.loss == "teacher" else labels)
        return lambda scores: float(function(padded(scores), targets, mask).mean())

    def _accept(self, start: float) -> Callable[[float], bool]:
        if self.mode == "speed":
            limit = self.max_divergence if self.loss == "teacher" else (1 + self.max_rise) * start
            return lambda value: value <= limit
        best = start

        def is_no_worse(value: float) -> bool:
            nonlocal best
            if value > best:
                return False
            best = value
            return True

        return is_no_worse

    def _cut(self, ranker: Ranker, found: Greedy, pairs: Sequence[tuple[str, str]]) -> Ranker:
        from compressor.algorithms.absent_blocks import with_biases_of_absent
        from compressor.algorithms.calibration import calibration_batches
        from compressor.algorithms.compensation import refitted
        from compressor.algorithms.subcloning import sliced, within_layers
        from compressor.ranker.narrowing import narrowed

        spec = ranker.spec
        kept = within_layers(spec, found.heads, found.neurons)
        small = narrowed(
            spec, width=spec.width, heads=list(map(len, found.heads)), ffn_widths=list(map(len, found.neurons))
        )
        weights = with_biases_of_absent(spec, ranker.weights, small, sliced(spec, ranker.weights, kept))
        cut = ranker.changed(spec=small, weights=weights)
        if self.compensate == "none" or small == spec:
            return cut
        fitted = refitted(ranker.module, cut.trainable().eval(), calibration_batches(ranker, pairs))
        return cut.changed(weights={**cut.weights, **fitted})


def _pairs(data: RankingData, lists: Sequence[TrainingList]) -> list[tuple[str, str]]:
    return data.texts((one.query, document) for one in lists for document in one.documents)
