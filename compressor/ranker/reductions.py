"""What a token rule makes of packed tokens: fewer of them, some perhaps means of several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.ranker.tokens import TokenLayout, take_tokens


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What a rule makes of T packed tokens: T' of them, in their old order.

    Attributes:
        layout: where the T' tokens stand; positions are those that they had.
        kept: int64 ``[T']``, which tokens they are.
        owner: int64 ``[T]``, the new token that each old one goes into; None where states stay as they are.
        margins: ``[B]``, how clear the choice was: the score of the worst token that stays less that of the best one
            that goes, as a share of the former where scores are shares; infinite where nothing was to be chosen. Near
            zero, rounding may choose otherwise in another runtime.
        judged: ``[n]``, the relative scores of all document tokens that a threshold was held against.
    """

    layout: TokenLayout
    kept: Tensor
    owner: Tensor | None = None
    margins: Tensor | None = None
    judged: Tensor | None = None

    def states(self, values: Tensor) -> Tensor:
        """Return what becomes of packed values, ``[T, width] -> [T', width]``: a choice of them, or means."""
        if self.owner is None:
            return take_tokens(values, self.kept)
        exact = torch.promote_types(values.dtype, torch.float32)
        sums = values.new_zeros(len(self.kept), values.shape[1], dtype=exact).index_add(0, self.owner, values.to(exact))
        sizes = torch.bincount(self.owner, minlength=len(self.kept))[:, None]
        return (sums / sizes).to(values.dtype)
