"""Multi-head attention: linears on packed tokens, the product of queries and keys on the padded view."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.linears import Linear
from compressor.ranker.quantizers import to_float_kind
from compressor.ranker.spec import (
    AttentionPattern,
    AttentionSpec,
    CausalPattern,
    FloatKind,
    RotarySpec,
    WindowPattern,
)
from compressor.ranker.tokens import Seen, TokenLayout, take_tokens


class Attention(nn.Module):
    """Attention of one layer, ``[T, width] -> [T, width]``, or ``[B, width]`` where only first tokens ask.

    ``states``: what all between its linears is computed in.
    """

    def __init__(self, spec: AttentionSpec, dropout: float, states: FloatKind = "fp32") -> None:
        super().__init__()
        self.spec = spec
        self.states = states
        self.dropout = dropout
        self.query = Linear(spec.query)
        self.key = Linear(spec.key)
        self.value = Linear(spec.value)
        self.output = Linear(spec.output)

    def forward(
        self, values: Tensor, layout: TokenLayout, first_only: bool = False, seen: Seen | None = None
    ) -> Tensor:
        """Attend.

        Args:
            values: packed states ``[T, width]``.
            layout: where they stand.
            first_only: compute the result for each row's first token alone.
            seen: states that keys and values are made of; by default those that ask.
        """
        shown, places = (seen.values, seen.layout) if seen else (values, layout)
        key = self._rotate(self._heads(self.key(shown)), places.positions)  # [T, H, d]
        value = self._heads(self.value(shown))
        if first_only:
            asking = self._heads(self.query(values[layout.first]))
            query = self._rotate(asking, layout.positions[layout.first])  # [B, H, d]
        else:
            query = self._rotate(self._heads(self.query(values)), layout.positions)
        if first_only or seen or layout.log_gates is not None or not _is_trained_on_cpu(key):
            mixed = self._mixed(query, key, value, layout, places, first_only)
        else:
            mixed = self._mixed_by_groups(query, key, value, layout)
        return to_float_kind(self.output(mixed), self.states)

    def _mixed(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, places: TokenLayout, first_only: bool
    ) -> Tensor:
        """Return mixed values, ``[T or B, H, d] -> [T or B, H * d]``; keys and values stand in places of their own."""
        mask = visible(self.spec.pattern, layout, first_only, places)
        if places.log_gates is not None:
            mask = torch.where(mask, places.log_gates[:, None, None, :], -1e4).to(query.dtype)
        asking = query[:, None] if first_only else layout.pad(query)  # [B, S or 1, H, d]
        key, value = places.pad(key), places.pad(value)
        mixed = self._attend(asking.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask)
        mixed = mixed.transpose(1, 2).flatten(2)  # [B, S or 1, H * d]
        return mixed[:, 0] if first_only else layout.pack(mixed)

    def _mixed_by_groups(self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> Tensor:
        """Return what `_mixed` does of all tokens, rows of like length apart: one long row makes no others longer.

        For training on a CPU, where a step of 32 rows of 50 to 97 tokens with two of 180 and 230 so takes half of the
        time. Scores are taken in sorted batches, and keep their last bits.
        """
        groups = layout.length_groups
        if len(groups) == 1:
            return self._mixed(query, key, value, layout, layout, False)
        order = torch.cat([index for _, index in groups])
        sizes = [len(index) for _, index in groups]
        queries, keys, values = (take_tokens(part, order).split(sizes) for part in (query, key, value))
        mixed = [
            self._mixed(asking, seen, held, group, group, False)
            for asking, seen, held, (group, _) in zip(queries, keys, values, groups, strict=True)
        ]
        return take_tokens(torch.cat(mixed), order.argsort())

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if self.states != "fp32":
            return _attend_in_products(query, key, value, mask, dropout, self.states)
        if _is_trained_on_cpu(key):
            return _attend_in_products(query, key, value, mask, dropout)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def queries_and_keys(self, values: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Return queries and keys by heads, ``[B, S, H, d]`` each, as `forward` makes them of the same values.

        They pass by all hooks, which watch the layer's own forward pass and not who looks on.
        """
        query, key = (self._heads(part.forward(values)) for part in (self.query, self.key))
        return layout.pad(self._rotate(query, layout.positions)), layout.pad(self._rotate(key, layout.positions))

    def keys(self, values: Tensor) -> Tensor:
        """Return keys by heads before any rotation, ``[T, H, d]``; like `queries_and_keys` they pass by all hooks."""
        return self._heads(self.key.forward(values))

    def _heads(self, values: Tensor) -> Tensor:
        heads = values.unflatten(-1, (self.spec.heads, self.spec.head_width))  # [T, H, d]
        return to_float_kind(heads, self.states)

    def _rotate(self, values: Tensor, positions: Tensor) -> Tensor:
        if not self.spec.positions:
            return values
        return to_float_kind(rotate(values, positions, self.spec.positions), self.states)


def _is_trained_on_cpu(states: Tensor) -> bool:
    return states.requires_grad and not states.is_cuda


def _attend_in_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, states: FloatKind = "fp32"
) -> Tensor:
    """Attend in plain products: on a CPU the fused operator's backward pass takes 27 % of a training step.

    Training a 6-layer MiniLM in bf16, this gave 1.3 times as many pairs a second; results are equal up to rounding.
    The written graph attends so, too: ``states`` is the float kind of what stands between its operators. A mask of
    floats is added to the scores.
    """
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))  # [B, H, S or 1, S]
    scores = to_float_kind(scores, states)
    # Nobody needs the scores as they were: in place, a copy of them all is saved.
    scores = scores.masked_fill_(~mask, -1e4) if mask.dtype == torch.bool else scores + mask
    shares = scores.softmax(dim=-1).to(value.dtype)
    shares = to_float_kind(shares, states)
    return to_float_kind(torch.matmul(F.dropout(shares, dropout) if dropout else shares, value), states)


def rotate(values: Tensor, positions: Tensor, spec: RotarySpec) -> Tensor:
    """Turn each head's halves by the angle of its position (RoFormer, arXiv 2104.09864).

    Args:
        values: ``[T, H, d]`` with d even.
        positions: int64 ``[T]``.
        spec: the base of the angles.
    """
    half = values.shape[-1] // 2
    frequencies = spec.base ** (-torch.arange(half, device=values.device, dtype=torch.float32) / half)
    angles = (positions[:, None].float() * frequencies)[:, None, :]  # [T, 1, d / 2]
    cosine, sine = angles.cos().to(values.dtype), angles.sin().to(values.dtype)
    left, right = values[..., :half], values[..., half:]
    return torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)


def visible(
    pattern: AttentionPattern, layout: TokenLayout, first_only: bool, seen: TokenLayout | None = None
) -> Tensor:
    """Return which keys each query may see: bool ``[B, 1, S or 1, S]``, broadcast over heads.

    No query sees nothing, which would give NaN: padding stands where its row's last real token stands. A row's first
    token is none of an isolated query's.

    Args:
        pattern: which tokens see each other.
        layout: where those stand that ask.
        first_only: whether each row's first token asks alone.
        seen: where keys stand; by default where those stand that ask.
    """
    seen = seen or layout
    keys = seen.mask[:, None, None, :]
    if isinstance(pattern, WindowPattern | CausalPattern):
        positions = layout.pad(layout.positions)  # [B, S]
        asking = positions[:, :1] if first_only else positions
        distance = asking[:, :, None] - seen.pad(seen.positions)[:, None, :]
        near = distance.abs() <= pattern.reach if isinstance(pattern, WindowPattern) else distance >= 0
        keys = keys & near[:, None]
    if layout.isolated is not None and seen.isolated is not None and not first_only:
        keys = keys & (~layout.isolated[:, None, :, None] | seen.isolated[:, None, None, :])
    return keys
