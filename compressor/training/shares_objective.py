"""An objective under which a student learns which shares of its tokens stay, while it learns all else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.training.objective_with_masks import ObjectiveWithMasks
from compressor.training.share_gates import ShareGates
from compressor.training.token_order import TokenOrder

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.training.batches import Batch


class SharesObjective(ObjectiveWithMasks[ShareGates]):
    """The losses of an `Objective` behind gates on ranks of tokens, plus what these cost (``budget``).

    And ``token_order``, how early layers put tokens in order, as long as its weight is not down to 0.

    Args:
        gates: what is learned.
        order: the loss on order; None for none.
        losses: as of `Objective`.
    """

    def __init__(self, gates: ShareGates, order: TokenOrder | None, **losses: Any) -> None:
        super().__init__(gates, **losses)
        self._order = order

    def prepare(self, module: Encoder, batches: Iterator[Batch]) -> None:
        self._masks.set_gates(drawn=False)
        super().prepare(module, batches)

    def __call__(self, module: Encoder, batch: Batch) -> dict[str, Tensor]:
        self._masks.set_gates(drawn=True)
        rows = self._rows(batch)
        weight = self._order.settings.weight * (1 - self._masks.progress) if self._order else 0.0
        if self._order and weight:
            with self._order.watched(module) as read:
                losses = super().__call__(module, batch)
            losses["token_order"] = weight * self._order.loss(module, read, batch, rows)
        else:
            losses = super().__call__(module, batch)
        penalty = self._masks.penalty(*rows)
        return losses if penalty is None else {**losses, "budget": penalty}

    def _rows(self, batch: Batch) -> tuple[TokenLayout, RowParts]:
        """Return where all tokens of a batch stand, and what they are."""
        layout = TokenLayout.of(batch.inputs["attention_mask"])
        separator = self._masks.spec.separator_id
        if separator is None:
            raise TypeError("a ranker without a separator has no documents")
        return layout, RowParts.of(layout, batch.inputs["input_ids"], separator)
