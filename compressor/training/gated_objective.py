"""An objective under which a student learns which tokens may go, while it learns all else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from compressor.training.objective_with_masks import ObjectiveWithMasks
from compressor.training.token_gates import TokenGates

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.batches import Batch


class GatedObjective(ObjectiveWithMasks[TokenGates]):
    """The losses of an `Objective` behind gates on tokens, plus their distance from the budget (``budget``)."""

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        return {**super().__call__(module, batch), "budget": self._masks.penalty()}
