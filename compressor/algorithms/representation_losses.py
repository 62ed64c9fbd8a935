"""Losses that make a student's inner states like its teacher's. States are packed: there is no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from compressor.ranker.tokens import TokenLayout

# A teacher whose states hardly differ from token to token must not blow the loss up: below this share of the mean
# square, variance counts as this much.
_LEAST_VARIANCE = 1e-3

# Products of token pairs that are held at once on a CPU; three such tensors fit into a core's share of the cache.
_CACHED_PRODUCTS = 2**18


def hidden_mse(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the share of the teacher's variance that the student misses: 0 when equal, 1 for a constant mean state.

    So layers weigh alike, however large their states. The variance is that of each channel over the tokens given:
    channels that hold one large constant, which encoders have, would drown the others. The embeddings' loss is this
    loss on state 0 (TinyBERT, arXiv 1909.10351).

    Args:
        student: packed states ``[T, width]``, projected where the teacher's are of another width.
        teacher: packed states ``[T, width]``, no gradient.
        weights: each token's weight, ``[T]``; default: all alike.

    Raises:
        ValueError: the shapes do not fit.
    """
    student, teacher = _matched(student, teacher)
    share = _shares(teacher, weights)
    variance = (share * (teacher - (share * teacher).sum(dim=0)).square()).sum()
    floor = _LEAST_VARIANCE * (share * teacher.square()).sum() + torch.finfo(teacher.dtype).tiny
    return (share * (student - teacher).square()).sum() / torch.maximum(variance, floor)


def hidden_cosine(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of 1 less the cosine of each token's states (DistilBERT, arXiv 1910.01108).

    Arguments as in `hidden_mse`.
    """
    student, teacher = _matched(student, teacher)
    return (_shares(teacher, weights)[:, 0] * (1 - F.cosine_similarity(student, teacher, dim=1))).sum()


def relation_kl(student: Tensor, teacher: Tensor, layout: TokenLayout, relation_heads: int) -> Tensor:
    """Return the divergence of how tokens relate: ``KL(softmax(A_t A_t^T / sqrt(d)) || softmax(A_s A_s^T / sqrt(d)))``.

    The mean over relation heads and real query tokens (MiniLM v2, arXiv 2012.15828). A is the queries, keys or values
    of one layer, all heads side by side and cut anew into relation heads, so that neither heads nor widths need match.

    Args:
        student: packed ``[T, width]``.
        teacher: packed ``[T, teacher width]``, no gradient.
        layout: where the T tokens stand.
        relation_heads: into how many heads both are cut.

    Raises:
        ValueError: a width that is no multiple of ``relation_heads``, or T that differ.
    """
    return _relation_kl((student, student), (teacher, teacher), layout, relation_heads)


def qkv_relation_kl(
    student: Sequence[Tensor], teacher: Sequence[Tensor], layout: TokenLayout, relation_heads: int
) -> Tensor:
    """Return the mean `relation_kl` of queries, keys and values, each packed ``[T, width]``."""
    losses = [relation_kl(s, t, layout, relation_heads) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(losses).mean()


def attention_kl(student: Sequence[Tensor], teacher: Sequence[Tensor], layout: TokenLayout, heads: int) -> Tensor:
    """Return the divergence of attention, `relation_kl` of queries to keys (MiniLM v1, arXiv 2002.10957).

    Args:
        student: packed queries and keys ``[T, width]``; more that follows, such as values, is not looked at.
        teacher: likewise ``[T, teacher width]``.
        layout: where the T tokens stand.
        heads: the attention heads of both.
    """
    return _relation_kl((student[0], student[1]), (teacher[0], teacher[1]), layout, heads)


def _relation_kl(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], layout: TokenLayout, heads: int
) -> Tensor:
    n_tokens = len(layout.to_packed)
    for side, tensors in (("student", student), ("teacher", teacher)):
        for tensor in tensors:
            if tensor.shape[0] != n_tokens or tensor.shape[1] % heads:
                raise ValueError(
                    f"{side} {list(tensor.shape)}; must be [{n_tokens} tokens, a multiple of {heads} relation heads]"
                )
    sides = [_heads(tensor, layout, heads) for tensor in (*student, *teacher)]
    total: Tensor = _RelationKL.apply(*sides, layout.mask)
    return total / (n_tokens * heads)


class _RelationKL(torch.autograd.Function):
    """The summed divergence of relations, with its gradient found on the way.

    Products of all pairs of tokens are by far the largest tensors of a training step. Here a few rows' products live at
    a time, in the CPU's cache, and none is kept for the way back: with P the relations, ``P_s - P_t`` is the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, asking: Tensor, asked: Tensor, teacher_asking: Tensor, teacher_asked: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the sum over heads and real tokens.

        All four are ``[B, heads, S, d]``, zero at padding: padding relates to all tokens alike in both models, and so
        costs nothing. ``mask`` is bool ``[B, S]``.
        """
        needed = any(ctx.needs_input_grad[:2])
        slopes = [torch.zeros_like(asking), torch.zeros_like(asked)] if needed else []
        scale, total = asking.shape[-1] ** -0.5, asking.new_zeros(())
        with torch.autocast(asking.device.type, enabled=False):  # products rounded to bf16 would never match
            for rows, real in _chunks(mask, asking.shape[1]):
                cut = (rows, slice(None), slice(real.shape[1]))
                wanted = _relations(teacher_asking[cut], teacher_asked[cut], real)
                found = _relations(asking[cut], asked[cut], real)
                p_wanted = wanted.exp()
                total += wanted.sub_(found).mul_(p_wanted).sum()
                if needed:
                    slope = found.exp_().sub_(p_wanted).mul_(scale)
                    slopes[0][cut] = slope @ asked[cut]
                    slopes[1][cut] = slope.transpose(-1, -2) @ asking[cut]
        ctx.save_for_backward(*slopes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slopes = ctx.saved_tensors
        return slopes[0] * gradient, slopes[1] * gradient, None, None, None


def _chunks(mask: Tensor, heads: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows and their masks, cut to the longest row; on a GPU all at once, which is fastest there."""
    n_rows, longest = mask.shape
    if mask.device.type != "cpu":
        yield slice(n_rows), mask
        return
    at_once = max(1, _CACHED_PRODUCTS // (heads * longest**2))
    for start in range(0, n_rows, at_once):
        part = mask[start : start + at_once]
        yield slice(start, start + at_once), part[:, : int(part.sum(dim=1).max())]


def _relations(asking: Tensor, asked: Tensor, real: Tensor) -> Tensor:
    """Return log-probabilities ``[B, heads, S, S]`` of each token's relation to the real tokens of its row."""
    products = (asking @ asked.transpose(-1, -2)).mul_(asking.shape[-1] ** -0.5)
    products.masked_fill_(~real[:, None, None, :], torch.finfo(products.dtype).min)
    return products.log_softmax(dim=-1)


def _heads(values: Tensor, layout: TokenLayout, heads: int) -> Tensor:
    """Spread packed ``[T, width]`` to ``[B, heads, S, width / heads]``, zero at padding; fp32 or finer."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    # Not `layout.pad`: the gradient of its gather adds up, far slower than the gather that undoes this copy.
    padded = values.new_zeros(layout.mask.numel(), values.shape[1]).index_copy(0, layout.to_packed, values)
    return padded.view(*layout.mask.shape, heads, -1).transpose(1, 2)


def _matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {list(student.shape)}, teacher {list(teacher.shape)}; states of other widths need a projection"
        )
    exact = torch.promote_types(student.dtype, torch.float32)
    return student.to(exact), teacher.detach().to(exact)


def _shares(states: Tensor, weights: Tensor | None) -> Tensor:
    """Return each token's share of the mean, ``[T, 1]``, adding up to 1."""
    if weights is None:
        return states.new_full((len(states), 1), 1 / len(states))
    weights = weights.detach().to(states.dtype)[:, None]
    return weights / weights.sum().clamp(min=torch.finfo(states.dtype).tiny)
