"""The packed layout: which real token stands where in the padded batch.

Linear layers, norms and feed-forwards work on ``[T, width]``, the T real tokens of all rows one after another; only
attention looks at the padded view ``[B, S, ...]``. Gathers lead there and back, so padding cannot change a score.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_NEAR = 0.7  # of the longest row of a group
_WORTHWHILE = 0.8  # of attention's scores; below, groups cost what they save


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Where T packed tokens stand in a padded batch of B rows and S columns.

    Attributes:
        mask: bool ``[B, S]``, true where a real token stands.
        to_packed: int64 ``[T]``, the padded slot (row * S + column) of each packed token.
        to_padded: int64 ``[B * S]``, the packed token of each padded slot; padding repeats the last one before it.
        positions: int64 ``[T]``, each token's position in its row before any token was dropped.
        first: int64 ``[B]``, the packed index of each row's first token.
        log_gates: ``[B, S]``, the logarithm of how far each token stays while a choice is learned, added to its score
            as a key; 0 for tokens that surely stay. None where tokens stay or go.
        query_ends: int64 ``[B]``, the column in which each row's query is over, where queries are isolated: its tokens
            stand from the second column up to that one, in which none of them stands any more. It never moves, as all
            before the document stays.
    """

    mask: Tensor
    to_packed: Tensor
    to_padded: Tensor
    positions: Tensor
    first: Tensor
    log_gates: Tensor | None = None
    query_ends: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, positions: Tensor | None = None, query_ends: Tensor | None = None) -> TokenLayout:
        """Lay out a batch from its attention mask ``[B, S]``; rows are padded on the right.

        ``positions``: int64 ``[T]``, of tokens that stand elsewhere than at their position; by default they do not.
        ``query_ends``: int64 ``[B]``, where queries are isolated.
        """
        mask = mask.bool()
        flat = mask.reshape(-1)
        counts = mask.sum(dim=1)
        to_packed = flat.nonzero().squeeze(1)
        return cls(
            mask=mask,
            to_packed=to_packed,
            to_padded=(flat.long().cumsum(0) - 1).clamp(min=0),
            positions=to_packed % mask.shape[1] if positions is None else positions,
            first=counts.cumsum(0) - counts,
            query_ends=query_ends,
        )

    def keep_tokens(self, kept: Tensor) -> tuple[TokenLayout, Tensor]:
        """Lay out the tokens that stay, in their order.

        Args:
            kept: bool ``[T]``; true for one token of each row at least, its first where the head reads that.

        Returns:
            The new layout, its positions those of the tokens that stay; and which they are, int64 ``[T']``.
        """
        index = kept.nonzero().squeeze(1)
        counts = self.mask.new_zeros(self.mask.shape, dtype=torch.long)
        counts.view(-1)[self.to_packed[index]] = 1
        return TokenLayout.of(_mask_of(counts.sum(dim=1)), self.positions[index], self.query_ends), index

    def keep_rows(self, rows: Tensor) -> tuple[TokenLayout, Tensor]:
        """Lay out the rows that stay, in the order in which they are named, trimmed to the longest of them.

        Args:
            rows: int64 ``[B']``, which rows stay.

        Returns:
            The new layout, and which packed tokens its own are, int64 ``[T']``.
        """
        mask = _mask_of(self.mask.sum(dim=1)[rows])
        row, place = mask.nonzero(as_tuple=True)
        index = self.first[rows[row]] + place
        query_ends = None if self.query_ends is None else self.query_ends[rows]
        return TokenLayout.of(mask, self.positions[index], query_ends), index

    @cached_property
    def length_groups(self) -> list[tuple[TokenLayout, Tensor]]:
        """Rows of like length apart, the longest first, each group as `keep_rows` returns it; its own whole if none is.

        What is computed on a padded view of each group costs less: attention grows with the square of the longest row.
        """
        lengths = self.mask.sum(dim=1)
        left, groups = lengths.argsort(descending=True, stable=True), []
        while len(left):
            is_near = lengths[left] >= _NEAR * lengths[left[0]]
            groups.append(self.keep_rows(left[is_near]))
            left = left[~is_near]
        if sum(_area(layout.mask) for layout, _ in groups) > _WORTHWHILE * _area(self.mask):
            return [(self, torch.arange(len(self.to_packed), device=self.mask.device))]
        return groups

    def pad(self, values: Tensor) -> Tensor:
        """Spread packed values ``[T, ...]`` to the padded view ``[B, S, ...]``; what padding holds is never read."""
        return _Rows.apply(values, self.to_padded, self.to_packed, False).unflatten(0, self.mask.shape)

    def pack(self, values: Tensor) -> Tensor:
        """Gather a padded view ``[B, S, ...]`` back to packed values ``[T, ...]``."""
        return _Rows.apply(values.flatten(0, 1), self.to_packed, self.to_packed, True)

    def marked_slots(self, marks: Tensor) -> Tensor:
        """Return marks of packed tokens, bool ``[T]``, in the padded view, bool ``[B, S]``, false on padding."""
        padded = self.mask.new_zeros(self.mask.numel())
        padded[self.to_packed] = marks
        return padded.view(self.mask.shape)

    def row_means(self, values: Tensor) -> Tensor:
        """Return the mean of each row's tokens, ``[T, width] -> [B, width]``, each as far as it stays."""
        if self.log_gates is not None:
            values = values * self.pack(self.log_gates.exp())[:, None]
        rows = torch.div(self.to_packed, self.mask.shape[1], rounding_mode="floor")
        sums = values.new_zeros(self.mask.shape[0], values.shape[1]).index_add(0, rows, values)
        return sums / self.n_tokens[:, None]

    @property
    def isolated(self) -> Tensor | None:
        """Which slots hold tokens of an isolated query, bool ``[B, S]``; None where queries are not isolated."""
        if self.query_ends is None:
            return None
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (columns > 0) & (columns < self.query_ends[:, None])

    @property
    def n_tokens(self) -> Tensor:
        """How many tokens each row has, ``[B]``, each counted as far as it stays."""
        return self.mask.sum(dim=1) if self.log_gates is None else (self.log_gates.exp() * self.mask).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a layer's tokens see where that is not themselves: packed states ``[T, width]``, and where these stand."""

    values: Tensor
    layout: TokenLayout


@dataclass(frozen=True, kw_only=True)
class RowParts:
    """What the tokens of a batch are in their rows: what asks, and what may go.

    Attributes:
        document: bool ``[T]``, true for tokens behind their row's first separator that are no separators.
        n_asking: int64 ``[B]``, the row's tokens before its first separator: the first token and the query's.
        start: int64 ``[B]``, the column in which the document starts; it never moves, as all before it stays.
        query_terms: bool ``[T]``, document tokens whose id is one of what asks; None where nobody wants to know.
    """

    document: Tensor
    n_asking: Tensor
    start: Tensor
    query_terms: Tensor | None = None

    @classmethod
    def of(cls, layout: TokenLayout, input_ids: Tensor, separator_id: int, marks_query_terms: bool = False) -> RowParts:
        """Tell the parts of rows apart by their separators; a row without any has no document.

        Args:
            layout: of the whole rows.
            input_ids: int64 ``[B, S]``.
            separator_id: the id between query and document.
            marks_query_terms: whether ``query_terms`` are wanted.
        """
        separates = (input_ids == separator_id) & layout.mask
        seen = separates.long().cumsum(dim=1)
        document = (seen > 0) & ~separates & layout.mask
        columns = torch.arange(layout.mask.shape[1], device=layout.mask.device)
        n_asking = ((seen == 0) & layout.mask).sum(dim=1).clamp(min=1)
        query_terms = None
        if marks_query_terms:
            most = int(n_asking.max())
            same = input_ids[:, :, None] == input_ids[:, None, :most]
            query_terms = document & (same & (columns[:most] < n_asking[:, None])[:, None]).any(dim=2)
        return cls(
            document=layout.pack(document),
            n_asking=n_asking,
            start=torch.where(document, columns, len(columns)).amin(dim=1),
            query_terms=None if query_terms is None else layout.pack(query_terms),
        )

    def of_kept(self, kept: Tensor) -> RowParts:
        """Return the parts of the tokens that stay, int64 ``[T']``."""
        terms = None if self.query_terms is None else self.query_terms[kept]
        return replace(self, document=self.document[kept], query_terms=terms)

    def document_slots(self, layout: TokenLayout) -> Tensor:
        """Return which slots of the padded view are document tokens, bool ``[B, S]``."""
        return layout.marked_slots(self.document)

    def asking_shares(self, layout: TokenLayout) -> Tensor:
        """Return float32 ``[B, S]``: equal shares for a row's asking tokens, which add up to 1, 0 elsewhere."""
        columns = torch.arange(layout.mask.shape[1], device=layout.mask.device)
        return (columns < self.n_asking[:, None]).float() / self.n_asking[:, None]


def query_ends(input_ids: Tensor, mask: Tensor, separator_id: int) -> Tensor:
    """Return in which column each row's query is over, int64 ``[B]``: the one behind its first separator.

    A row without a separator is all query.

    Args:
        input_ids: int64 ``[B, S]``.
        mask: ``[B, S]``, 1 on real tokens.
        separator_id: the id between query and document.
    """
    separates = ((input_ids == separator_id) & mask.bool()).long()
    n_before = separates.cumsum(dim=1) - separates
    return ((n_before == 0) & mask.bool()).sum(dim=1)


def _area(mask: Tensor) -> int:
    """Return how many scores attention takes of a padded view."""
    return mask.numel() * mask.shape[1]


def take_tokens(values: Tensor, index: Tensor) -> Tensor:
    """Return some packed tokens, ``values[index]``, none of them twice, with a gradient that adds nothing up."""
    return _Rows.apply(values, index, index, True)


def _mask_of(counts: Tensor) -> Tensor:
    """Return the mask of rows with ``counts`` tokens each, ``[B] -> bool [B, S]``, S the largest of them."""
    return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]


class _Rows(torch.autograd.Function):
    """``values[take]``, whose gradient is a copy of rows where autograd's own adds up rows one by one.

    That is exact for the two moves between the views. Packing, like any choice of tokens, takes each slot once.
    Spreading takes a token again for padding, but no loss ever reads padding, so of the gradients that come back only
    those of real slots are not zero.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, take: Tensor, slots: Tensor, packs: bool) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.packs, ctx.n_rows = packs, len(values)
        return values.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (slots,) = gradients, ctx.saved_tensors
        if not ctx.packs:
            return gradient.index_select(0, slots), None, None, None
        spread = gradient.new_zeros(ctx.n_rows, *gradient.shape[1:])
        return spread.index_copy_(0, slots, gradient), None, None, None
