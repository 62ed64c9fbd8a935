"""Document tokens that resemble each other become one: which of them merge, and into which."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.reductions import Reduction
from compressor.ranker.spec import MergeRule
from compressor.ranker.token_scores import Reached

NO_LENGTH = 1e-12  # of a key, below which it has no direction
FURTHEST = 7.5  # further tokens count as near as this, exp(-7.5^2): exponentials that are denormal numbers cost much
GRID = 2.0**15  # steps of a cosine and of a nearness: sums of so few bits are exact, and copies of a token equally near
_NO_ENERGY = 1e-30


class Merge(nn.Module):
    """Merges tokens that have many near-copies in their row (PiToMe, arXiv 2405.16148, in its form for text).

    Unlike in the paper's code, padding neither has an energy nor adds to one, and of a row only document tokens do;
    the rest never merges. Finding pairs in two halves is after ToMe (arXiv 2210.09461), which halves by position.
    """

    @torch.no_grad()
    def forward(self, reached: Reached, spec: MergeRule) -> Reduction:
        layout, parts = reached.layout, reached.parts
        document = parts.document_slots(layout)  # [B, S]
        may_merge = document
        if spec.keep_query_terms and parts.query_terms is not None:
            may_merge = document & ~layout.marked_slots(parts.query_terms)
        similarity = key_similarities(reached)  # [B, S, S]
        energy = energies(similarity, document, spec.margin)
        n_gone = merges_of(document, may_merge, spec)
        into, margins = matches(similarity, energy, may_merge, n_gone)
        columns = torch.arange(into.shape[1], device=into.device)
        stays = layout.pack(into == columns)
        new_layout, kept = layout.keep_tokens(stays)
        number = layout.pad(stays.cumsum(0) - 1)  # [B, S], which new token each slot becomes, where it stays
        return Reduction(layout=new_layout, kept=kept, owner=layout.pack(number.gather(1, into)), margins=margins)


def key_similarities(reached: Reached) -> Tensor:
    """Return the cosines between the keys of all tokens of a row, ``[B, S, S]``, fp32 or finer; padding's say nothing.

    Keys are the layer's own, of the states that it read, summed over heads. They are not rotated: how far apart two
    tokens stand is not what makes them alike.
    """
    layer: Any = reached.layer
    values = reached.read
    if layer.spec.norm_placement == "pre":
        values = layer.attention_norm.forward(values)
    keys = layer.attention.keys(values)  # [T, H, d]
    exact = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        units = reached.layout.pad(F.normalize(keys.to(exact).sum(dim=1), dim=-1, eps=NO_LENGTH))  # [B, S, d]
        return _on_grid(torch.matmul(units, units.transpose(1, 2)))


def energies(similarity: Tensor, document: Tensor, margin: float) -> Tensor:
    """Return the energy of each slot, ``[B, S]``: how near it is to its row's other document tokens.

    In the paper's code a token is near to itself, too. That adds the same to all, beside which fp32 knows nothing of
    what the others add where these are far.

    Args:
        similarity: cosines ``[B, S, S]``.
        document: bool ``[B, S]``, the tokens that count.
        margin: the cosine at which a token counts ``exp(-1/2)``.
    """
    away = ((1 - similarity) * (0.5**0.5 / (1 - margin))).clamp(max=FURTHEST)
    itself = torch.eye(away.shape[1], dtype=torch.bool, device=away.device)
    near = _on_grid(torch.exp(-away.square())).masked_fill(itself, 0.0)
    with torch.autocast(near.device.type, enabled=False):
        total = torch.matmul(near, document[:, :, None].to(near.dtype))[:, :, 0]
    return total / (document.sum(dim=1, keepdim=True) - 1).clamp(min=1)


def _on_grid(values: Tensor) -> Tensor:
    """Round to steps, so that what is equal is so in every order of sums: copies of a token are common in a row."""
    return torch.round(values * GRID) / GRID


def merges_of(document: Tensor, may_merge: Tensor, spec: MergeRule) -> Tensor:
    """Return how many tokens of each row merge into another, int64 ``[B]``."""
    part, whole = spec.fraction
    n_document = document.sum(dim=1)
    n_left = torch.div(n_document * part + whole - 1, whole, rounding_mode="floor")
    pairs = torch.div(may_merge.sum(dim=1), 2, rounding_mode="floor")
    return torch.minimum(n_document - n_left, pairs)


def matches(similarity: Tensor, energy: Tensor, may_merge: Tensor, n_gone: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column that each one merges into, its own if it stays, int64 ``[B, S]``; and how clear it is, ``[B]``.

    The margin is the least of the gaps between energies where the ranking is cut, as shares of the larger, and of
    those between the most similar token and the next one, in cosines.

    Args:
        similarity: cosines ``[B, S, S]``.
        energy: ``[B, S]``.
        may_merge: bool ``[B, S]``.
        n_gone: int64 ``[B]``, how many merge into another: half of those that may, at most.
    """
    columns = torch.arange(energy.shape[1], device=energy.device)
    judged = energy.masked_fill(~may_merge, -torch.inf)
    ranked = judged.sort(dim=1, descending=True, stable=True)  # of equal ones the first
    rank = torch.zeros_like(ranked.indices).scatter(1, ranked.indices, columns.expand_as(ranked.indices))
    goes, takes = rank < n_gone[:, None], (rank >= n_gone[:, None]) & (rank < 2 * n_gone[:, None])
    found = similarity.masked_fill(~takes[:, None], -torch.inf)
    best = found.argmax(dim=2)  # [B, S]; of equal ones the first
    into = torch.where(goes, best, columns)
    lead = found.amax(dim=2) - found.scatter(2, best[:, :, None], -torch.inf).amax(dim=2)
    lead = torch.where(goes, lead, torch.inf).amin(dim=1)  # infinite where there is one token to merge into
    return into, torch.minimum(lead, _gaps(ranked.values, n_gone, may_merge.sum(dim=1)))


def _gaps(ranked: Tensor, n_gone: Tensor, n_ranked: Tensor) -> Tensor:
    """Return the smaller gap in sorted energies, ``[B, S] -> [B]``, of those behind the first r and the first 2r."""
    found = []
    for place in (n_gone, 2 * n_gone):
        above, below = (ranked.gather(1, at.clamp(0, ranked.shape[1] - 1)[:, None])[:, 0] for at in (place - 1, place))
        is_cut = (n_gone > 0) & (place < n_ranked)
        found.append(torch.where(is_cut, (above - below) / above.clamp(min=_NO_ENERGY), math.inf))
    return torch.minimum(*found)
