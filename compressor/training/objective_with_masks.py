"""The losses of a student along with which masks are trained: what objectives with masks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import nn

from compressor.training.objective import Objective

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.share_gates import ShareGates
    from compressor.training.token_gates import TokenGates
    from compressor.training.weight_masks import WeightMasks
    from compressor.training.width_masks import WidthMasks

Masks = TypeVar("Masks", bound="ShareGates | TokenGates | WeightMasks | WidthMasks")


class ObjectiveWithMasks(Objective, Generic[Masks]):
    """The losses of an `Objective`; masks are trained along with what it trains along.

    Args:
        masks: put into the student before the first step.
        losses: as of `Objective`.
    """

    def __init__(self, masks: Masks, **losses: Any) -> None:
        super().__init__(**losses)
        self._masks = masks
        others: Any = super().extra
        self._extra = nn.ModuleDict({"masks": masks, **(others or {})})

    @property
    def extra(self) -> nn.Module:
        return self._extra

    @property
    def rates(self) -> Mapping[str, float]:
        return {**super().rates, **{f"masks.{name}": rate for name, rate in self._masks.rates.items()}}

    def begin(self, module: Encoder, n_steps: int) -> None:
        self._masks.install(module, n_steps)

    def after_step(self) -> None:
        self._masks.after_step()
