"""An objective under which a student loses weights, while those that stay learn to do without them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import Tensor

from compressor.training.objective_with_masks import ObjectiveWithMasks
from compressor.training.weight_masks import WeightMasks

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.batches import Batch


class SparseObjective(ObjectiveWithMasks[WeightMasks]):
    """The losses of an `Objective`, and what masks on weights add to them."""

    @property
    def rewinds(self) -> Collection[int]:
        return self._masks.rewinds

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        return {**super().__call__(module, batch), **self._masks.penalties()}
