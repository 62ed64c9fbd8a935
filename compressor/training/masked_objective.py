"""An objective under which a student learns which of its units may go, while it learns all else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from compressor.training.objective_with_masks import ObjectiveWithMasks
from compressor.training.width_masks import WidthMasks

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.batches import Batch


class MaskedObjective(ObjectiveWithMasks[WidthMasks]):
    """The losses of an `Objective` behind gates, plus what the masks cost (``budget``)."""

    def prepare(self, module: Encoder, batches: Iterator[Batch]) -> None:
        self._masks.set_gates(drawn=False)
        super().prepare(module, batches)

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        self._masks.set_gates(drawn=True)
        losses = super().__call__(module, batch)
        penalty = self._masks.penalty()
        return losses if penalty is None else {**losses, "budget": penalty}
