"""Token rules at work: which packed tokens go on behind a layer, and with which states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from compressor.ranker.reductions import Reduction
from compressor.ranker.spec import (
    KeepRule,
    KeepShareRule,
    KeepThresholdRule,
    LearnedScorer,
    MergeRule,
    PoolRule,
    TokenRule,
)
from compressor.ranker.token_merges import Merge
from compressor.ranker.token_scores import Reached, build_scorer

_NOTHING = 1e-20  # scores below are not told apart


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


Gate = Callable[[Tensor, Tensor, Tensor], Tensor]


class Keep(nn.Module):
    """What rules share that keep document tokens; ``scorer`` gives them scores ``[B, S]``.

    ``gate``: set while it is learned which tokens stay; no token goes then. It takes scores, which of them are of
    document tokens, and the logarithms of the gates so far, all ``[B, S]``, and returns the new logarithms.
    """

    gate: Gate | None = None

    def __init__(self, spec: KeepRule, width: int) -> None:
        super().__init__()
        self.scorer = build_scorer(spec.scorer, width)

    def gated(self, gate: Gate, reached: Reached, scores: Tensor) -> Reduction:
        """Return all tokens, each as far as a gate lets it through."""
        layout = reached.layout
        before = torch.zeros_like(scores) if layout.log_gates is None else layout.log_gates
        gates = gate(scores, reached.parts.document_slots(layout), before)
        everything = torch.arange(len(layout.to_packed), device=scores.device)
        return Reduction(layout=replace(layout, log_gates=gates), kept=everything)


class KeepShare(Keep):
    """Keeps the best share of each row's document tokens; a gate takes their scores as they are."""

    def forward(self, reached: Reached, spec: KeepShareRule) -> Reduction:
        if self.gate is None:
            return self._chosen(reached, spec)
        with torch.no_grad():  # the order counts alone, which has no gradient
            scores = self.scorer(reached)
        return self.gated(self.gate, reached, scores)

    @torch.no_grad()
    def _chosen(self, reached: Reached, spec: KeepShareRule) -> Reduction:
        layout, document = reached.layout, reached.parts.document_slots(reached.layout)
        part, whole = spec.fraction
        n_kept = torch.div(document.sum(dim=1) * part + whole - 1, whole, rounding_mode="floor")
        unit = 1.0 if isinstance(spec.scorer, LearnedScorer) else None
        chosen, margins = best_of_rows(self.scorer(reached), document, n_kept, unit)
        new_layout, kept = layout.keep_tokens(~reached.parts.document | layout.pack(chosen))
        return Reduction(layout=new_layout, kept=kept, margins=margins)


class KeepThreshold(Keep):
    """Keeps document tokens whose relative score reaches a threshold (LTP, arXiv 2107.00910), and each row's best one.

    Two things are not as in the paper's code: scores are relative to the mean of a row's real tokens, which padding and
    length do not move, and a gate takes them so; and first token, query and separators stay.
    """

    def forward(self, reached: Reached, spec: KeepThresholdRule) -> Reduction:
        if self.gate is None:
            with torch.no_grad():
                return self._chosen(reached, spec.threshold)
        return self.gated(self.gate, reached, self.scorer(reached) * reached.layout.n_tokens[:, None])

    def _chosen(self, reached: Reached, threshold: float) -> Reduction:
        layout, document = reached.layout, reached.parts.document_slots(reached.layout)
        relative = self.scorer(reached) * layout.n_tokens[:, None]
        chosen, margins = at_least(relative, document, threshold)
        new_layout, kept = layout.keep_tokens(~reached.parts.document | layout.pack(chosen))
        return Reduction(layout=new_layout, kept=kept, margins=margins, judged=relative[document])


def at_least(scores: Tensor, eligible: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the columns that reach a threshold, or else the best, bool ``[B, S]``, and how clear that is, ``[B]``.

    Args:
        scores: ``[B, S]``.
        eligible: bool ``[B, S]``, among which columns to choose.
        threshold: what is to be reached; where no column does, all that have the row's highest score stay.
    """
    judged = scores.masked_fill(~eligible, -torch.inf)
    best = judged.amax(dim=1, keepdim=True)
    chosen = eligible & (judged >= best.clamp(max=threshold))
    gaps = (judged - threshold).abs().masked_fill(~eligible, torch.inf).amin(dim=1) / max(abs(threshold), _NOTHING)
    is_other = torch.ones_like(eligible).scatter(1, judged.argmax(dim=1, keepdim=True), False)
    runner_up = judged.masked_fill(~is_other, -torch.inf).amax(dim=1)
    lead = (best[:, 0] - runner_up) / best[:, 0].abs().clamp(min=_NOTHING)
    margins = torch.where(best[:, 0] >= threshold, gaps, lead)
    return chosen, torch.where(eligible.sum(dim=1) > 1, margins, torch.inf)


def best_of_rows(scores: Tensor, eligible: Tensor, n_kept: Tensor, unit: float | None = None) -> tuple[Tensor, Tensor]:
    """Return each row's best columns, bool ``[B, S]``, of equal ones the first, and how clear the choice was, ``[B]``.

    Args:
        scores: ``[B, S]``.
        eligible: bool ``[B, S]``, among which columns to choose.
        n_kept: int64 ``[B]``, how many; at most as many as are eligible.
        unit: what a gap between scores is measured in; by default the score of the worst that stays.
    """
    finite = scores.clamp(min=torch.finfo(scores.dtype).min)  # so that nothing stands behind what is not eligible
    ranked = finite.masked_fill(~eligible, -torch.inf).sort(dim=1, descending=True, stable=True)
    columns = torch.arange(scores.shape[1], device=scores.device)
    chosen = torch.zeros_like(eligible).scatter(1, ranked.indices, columns < n_kept[:, None])
    last = (n_kept - 1).clamp(min=0)[:, None]
    worst, next_one = (ranked.values.gather(1, place.clamp(max=len(columns) - 1))[:, 0] for place in (last, last + 1))
    is_choice = (n_kept > 0) & (n_kept < eligible.sum(dim=1))
    gap = (worst - next_one) / (unit or worst.abs().clamp(min=_NOTHING))
    return chosen, torch.where(is_choice, gap, torch.inf)


def build_token_rule(spec: TokenRule, width: int) -> nn.Module:
    """Build what takes a `Reached` and a spec to a `Reduction`: this spec, or one with other numbers while training."""
    if isinstance(spec, PoolRule | MergeRule):
        return Pool() if isinstance(spec, PoolRule) else Merge()
    return KeepThreshold(spec, width) if isinstance(spec, KeepThresholdRule) else KeepShare(spec, width)
