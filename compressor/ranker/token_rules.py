"""Token rules at work: which packed tokens go on behind a layer, and with which states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.ranker.spec import KeepShareRule, PoolRule, TokenRule
from compressor.ranker.token_scores import Reached, build_scorer
from compressor.ranker.tokens import TokenLayout, take_tokens

_NOTHING = 1e-20  # scores below are not told apart


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What a rule makes of T packed tokens: T' of them, in their old order.

    Attributes:
        layout: where the T' tokens stand; positions are those that they had.
        kept: int64 ``[T']``, which tokens they are.
        owner: int64 ``[T]``, the new token that each old one goes into; None where states stay as they are.
        margins: ``[B]``, how clear the choice was: the score of the worst token that stays less that of the best one
            that goes, as a share of the former; infinite where nothing was to be chosen. Near zero, rounding may choose
            otherwise in another runtime.
    """

    layout: TokenLayout
    kept: Tensor
    owner: Tensor | None = None
    margins: Tensor | None = None

    def states(self, values: Tensor) -> Tensor:
        """Return what becomes of packed values, ``[T, width] -> [T', width]``: a choice of them, or means."""
        if self.owner is None:
            return take_tokens(values, self.kept)
        exact = torch.promote_types(values.dtype, torch.float32)
        sums = values.new_zeros(len(self.kept), values.shape[1], dtype=exact).index_add(0, self.owner, values.to(exact))
        sizes = torch.bincount(self.owner, minlength=len(self.kept))[:, None]
        return (sums / sizes).to(values.dtype)


class Pool(nn.Module):
    """Averages windows of document tokens (LTC, arXiv 2605.20683; Funnel-Transformer, arXiv 2006.03236)."""

    @torch.no_grad()
    def forward(self, reached: Reached, spec: PoolRule) -> Reduction:
        layout, document = reached.layout, reached.parts.document
        rows = torch.div(layout.to_packed, layout.mask.shape[1], rounding_mode="floor")
        place = layout.to_packed % layout.mask.shape[1] - reached.parts.start[rows]
        # No row begins with a document token, so the token before one is of the same row.
        opens = ~document | (place % spec.stride == 0) | ~document.roll(1)
        new_layout, kept = layout.keep_tokens(opens)
        return Reduction(layout=new_layout, kept=kept, owner=opens.cumsum(0) - 1)


class KeepShare(nn.Module):
    """Keeps the best share of each row's document tokens; ``scorer`` gives them scores ``[B, S]``."""

    def __init__(self, spec: KeepShareRule) -> None:
        super().__init__()
        self.scorer = build_scorer(spec.scorer)

    @torch.no_grad()
    def forward(self, reached: Reached, spec: KeepShareRule) -> Reduction:
        layout = reached.layout
        document = layout.mask.new_zeros(layout.mask.numel())
        document[layout.to_packed] = reached.parts.document
        document = document.view(layout.mask.shape)
        part, whole = spec.fraction
        n_kept = torch.div(document.sum(dim=1) * part + whole - 1, whole, rounding_mode="floor")
        chosen, margins = best_of_rows(self.scorer(reached), document, n_kept)
        new_layout, kept = layout.keep_tokens(~reached.parts.document | layout.pack(chosen))
        return Reduction(layout=new_layout, kept=kept, margins=margins)


def best_of_rows(scores: Tensor, eligible: Tensor, n_kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's best columns, bool ``[B, S]``, of equal ones the first, and how clear the choice was, ``[B]``.

    Args:
        scores: ``[B, S]``.
        eligible: bool ``[B, S]``, among which columns to choose.
        n_kept: int64 ``[B]``, how many; at most as many as are eligible.
    """
    finite = scores.clamp(min=torch.finfo(scores.dtype).min)  # so that nothing stands behind what is not eligible
    ranked = finite.masked_fill(~eligible, -torch.inf).sort(dim=1, descending=True, stable=True)
    columns = torch.arange(scores.shape[1], device=scores.device)
    chosen = torch.zeros_like(eligible).scatter(1, ranked.indices, columns < n_kept[:, None])
    last = (n_kept - 1).clamp(min=0)[:, None]
    worst, next_one = (ranked.values.gather(1, place.clamp(max=len(columns) - 1))[:, 0] for place in (last, last + 1))
    is_choice = (n_kept > 0) & (n_kept < eligible.sum(dim=1))
    gap = (worst - next_one) / worst.abs().clamp(min=_NOTHING)
    return chosen, torch.where(is_choice, gap, torch.inf)


def build_token_rule(spec: TokenRule) -> nn.Module:
    """Build what takes a `Reached` and a spec to a `Reduction`: this spec, or one with other numbers while training."""
    return Pool() if isinstance(spec, PoolRule) else KeepShare(spec)
