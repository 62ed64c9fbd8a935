"""Zeros put into a whole ranker at once, by any of the methods that need no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from compressor.algorithms.calibration import calibration_batches
from compressor.algorithms.layerwise_sparsity import pruned_layer_by_layer, sparsegpt, wanda
from compressor.algorithms.sparse_masks import Scope, kept_weights, of_units
from compressor.algorithms.sparsity_patterns import SparsityPattern
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
        pairs: the calibration set, whole lists together; magnitudes need none.
    """

    method: Method
    pattern: SparsityPattern
    scope: Scope
    pairs: Pairs = field(default=(), repr=False)

    def weights(self, ranker: Ranker, sparsity: float) -> dict[str, Tensor]:
        """Return the ranker's weights with this share of those in attentions and feed-forwards zero.

        What is zero stays zero and counts.
        """
        names = list(prunable_linears(ranker.spec))
        return {**ranker.weights, **self._pruned(ranker, names, sparsity)}

    def _pruned(self, ranker: Ranker, names: Sequence[str], sparsity: float) -> Mapping[str, Tensor]:
        pattern = self.pattern.at(sparsity)
        if self.method == "magnitude":
            return by_magnitude(
                {f"{name}.weight": ranker.weights[f"{name}.weight"] for name in names}, sparsity, pattern, self.scope
            )
        batches = calibration_batches(ranker, self.pairs)
        prune = partial(sparsegpt, sparsity=sparsity, pattern=pattern)
        if self.method == "wanda":
            prune = partial(wanda, sparsity=sparsity, pattern=pattern, scope=self.scope)
        return pruned_layer_by_layer(ranker.trainable().eval(), batches, names, prune)


def by_magnitude(
    weights: Mapping[str, Tensor], sparsity: float, pattern: SparsityPattern, scope: Scope
) -> dict[str, Tensor]:
    """Return weights by name without the smallest (of blocks: those of smallest norm)."""
    units = {name: of_units(weight.square(), weight, pattern) for name, weight in weights.items()}
    kept = kept_weights(units, sparsity, pattern, scope)
    return {name: weight * kept[name] for name, weight in weights.items()}
