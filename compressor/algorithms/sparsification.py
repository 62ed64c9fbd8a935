"""Zeros put into a whole ranker at once, by any of the methods that need no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from compressor.algorithms.calibration import calibration_batches
from compressor.algorithms.layer_by_layer import Read, changed_layer_by_layer
from compressor.algorithms.layerwise_sparsity import sparsegpt, wanda
from compressor.algorithms.second_order import BlockCurvature, DiagonalCurvature
from compressor.algorithms.sparse_masks import Scope, kept_weights, of_units
from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.algorithms.sparsity_settings import FisherSettings
from compressor.algorithms.weight_gradients import measured_curvatures
from compressor.ranker.ranker import Ranker
from compressor.ranker.sparsity import prunable_linears

Method = Literal["magnitude", "wanda", "sparsegpt", "fisher_diagonal", "obert"]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Sparsifier:
    """How zeros are chosen.

    Attributes:
        method: by which worth.
        pattern: where they may stand.
        scope: among which weights the least are looked for.
        pairs: the calibration set, several candidates of each query; magnitudes need none.
        fisher: how curvature is measured, where the method asks for it.
    """

    method: Method
    pattern: SparsityPattern
    scope: Scope
    pairs: Pairs = field(default=(), repr=False)
    fisher: FisherSettings = field(default_factory=FisherSettings)

    def weights(self, ranker: Ranker, sparsity: float) -> dict[str, Tensor]:
        """Return the ranker's weights with this share of those in attentions and feed-forwards zero.

        What is zero stays zero and counts. With several recomputations, the kept share falls by the same factor each.
        """
        names, n_steps = list(prunable_linears(ranker.spec)), self.fisher.recomputations
        for step in range(1, n_steps + 1):
            share = sparsity if step == n_steps else 1 - (1 - sparsity) ** (step / n_steps)
            ranker = ranker.changed(weights={**ranker.weights, **self._pruned(ranker, names, share)})
        return dict(ranker.weights)

    def _pruned(self, ranker: Ranker, names: Sequence[str], sparsity: float) -> Mapping[str, Tensor]:
        pattern = self.pattern.at(sparsity)
        if self.method == "magnitude":
            weights = {f"{name}.weight": ranker.weights[f"{name}.weight"] for name in names}
            return by_magnitude(weights, sparsity, pattern, self.scope)
        if self.method == "fisher_diagonal":
            return self._by_diagonal(ranker, names, sparsity, pattern)
        if self.method == "obert":
            return self._by_blocks(ranker, names, sparsity, pattern)
        batches = calibration_batches(ranker, self.pairs)
        prune = partial(sparsegpt, sparsity=sparsity, pattern=pattern)
        if self.method == "wanda":
            prune = partial(wanda, sparsity=sparsity, pattern=pattern, scope=self.scope)

        def change(weights: Mapping[str, Tensor], reads: Mapping[str, Read]) -> dict[str, Tensor]:
            return {name: prune(weights[name], read) for name, read in reads.items()}

        return changed_layer_by_layer(ranker.trainable().eval(), batches, names, change, "Pruning layers")

    def _by_diagonal(
        self, ranker: Ranker, names: Sequence[str], sparsity: float, pattern: SparsityPattern
    ) -> dict[str, Tensor]:
        units = {}
        found = measured_curvatures(ranker, self.pairs, names, DiagonalCurvature, self.fisher.temperature)
        for name, curvature in (one for group in found for one in group.items()):
            weight = ranker.weights[f"{name}.weight"]
            units[name] = of_units(0.5 * weight.square() * curvature.damped(self.fisher.damping), weight, pattern)
        kept = kept_weights(units, sparsity, pattern, self.scope)
        return {f"{name}.weight": ranker.weights[f"{name}.weight"] * stays for name, stays in kept.items()}

    def _by_blocks(
        self, ranker: Ranker, names: Sequence[str], sparsity: float, pattern: SparsityPattern
    ) -> dict[str, Tensor]:
        """Prune as oBERT does. A global choice needs every matrix's losses first: curvature is kept until then, or,
        where memory has no room for that of all layers, measured twice."""
        size = self.fisher.block_size

        def measured() -> Iterable[Mapping[str, BlockCurvature]]:
            return measured_curvatures(
                ranker, self.pairs, names, partial(BlockCurvature, size=size, damping=self.fisher.damping),
                self.fisher.temperature, bytes_per_weight=4 * size,
            )  # fmt: skip

        def losses(curvatures: Mapping[str, BlockCurvature]) -> dict[str, Tensor]:
            return {name: one.losses(ranker.weights[f"{name}.weight"], pattern) for name, one in curvatures.items()}

        groups: Iterable[Mapping[str, BlockCurvature]] = measured()
        kept: dict[str, Tensor] = {}
        if pattern.kept is None and self.scope == "global":
            units: dict[str, Tensor] = {}
            last: Mapping[str, BlockCurvature] = {}
            for last in groups:
                units |= losses(last)
                if len(last) < len(names):
                    last = {}  # room for the next
            kept = kept_weights(units, sparsity, pattern, "global")
            groups = [last] if len(last) == len(names) else measured()
        result = {}
        for name, curvature in (one for group in groups for one in group.items()):
            weight = ranker.weights[f"{name}.weight"]
            if pattern.kept is not None:
                stays = curvature.best_of_groups(weight, pattern)
            elif name in kept:
                stays = kept[name]
            else:
                stays = kept_weights(losses({name: curvature}), sparsity, pattern, self.scope)[name]
            result[f"{name}.weight"] = curvature.made_up(weight, stays)
        return result


def by_magnitude(
    weights: Mapping[str, Tensor], sparsity: float, pattern: SparsityPattern, scope: Scope
) -> dict[str, Tensor]:
    """Return weights by name without the smallest (of blocks: those of smallest norm)."""
    units = {name: of_units(weight.square(), weight, pattern) for name, weight in weights.items()}
    kept = kept_weights(units, sparsity, pattern, scope)
    return {name: weight * kept[name] for name, weight in weights.items()}
