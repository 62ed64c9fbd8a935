"""An objective under which a student loses weights, while those that stay learn to do without them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compressor.training.objective import Objective

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.batches import Batch
    from compressor.training.weight_masks import WeightMasks


class SparseObjective(Objective):
    """The losses of an `Objective`, and what masks on weights add to them.

    Args:
        masks: trained, or pruned, along.
        losses: as of `Objective`.
    """

    def __init__(self, masks: WeightMasks, **losses: Any) -> None:
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

    @property
    def rewinds(self) -> Collection[int]:
        return self._masks.rewinds

    def begin(self, module: Encoder, n_steps: int) -> None:
        self._masks.install(module, n_steps)

    def after_step(self) -> None:
        self._masks.after_step()

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        return {**super().__call__(module, batch), **self._masks.penalties()}
