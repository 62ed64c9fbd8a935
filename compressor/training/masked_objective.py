"""An objective under which a student learns which of its units may go, while it learns all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compressor.training.objective import Objective

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.batches import Batch
    from compressor.training.width_masks import WidthMasks


class MaskedObjective(Objective):
    """The losses of an `Objective` behind gates, plus what the masks cost (``budget``).

    Args:
        masks: trained along.
        losses: as of `Objective`.
    """

    def __init__(self, masks: WidthMasks, **losses: Any) -> None:
        super().__init__(**losses)
        self._masks = masks
        projections = super().extra
        self._extra = nn.ModuleDict({"masks": masks} | ({} if projections is None else {"projections": projections}))

    @property
    def extra(self) -> nn.Module:
        return self._extra

    @property
    def rates(self) -> Mapping[str, float]:
        return {f"masks.{name}": rate for name, rate in self._masks.rates.items()}

    def begin(self, module: Encoder, n_steps: int) -> None:
        self._masks.install(module, n_steps)

    def prepare(self, module: Encoder, batches: Iterator[Batch]) -> None:
        self._masks.set_gates(drawn=False)
        super().prepare(module, batches)

    def after_step(self) -> None:
        self._masks.after_step()

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        self._masks.set_gates(drawn=True)
        losses = super().__call__(module, batch)
        penalty = self._masks.penalty()
        return losses if penalty is None else {**losses, "budget": penalty}
