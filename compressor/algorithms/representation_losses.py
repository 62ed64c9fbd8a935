"""Losses that make a student's inner states like its teacher's. States are packed: there is no padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.ranker.tokens import TokenLayout

# A teacher whose states hardly differ from token to token must not blow the loss up: below this share of the mean
# square, variance counts as this much.
_LEAST_VARIANCE = 1e-3


def hidden_mse(
    student: Tensor, teacher: Tensor, project: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Return the share of the teacher's variance that the student misses: 0 when equal, 1 for a constant mean state.

    So layers weigh alike, however large their states. The variance is that of each channel over the tokens given:
    channels that hold one large constant, which encoders have, would drown the others. The embeddings' loss is this
    loss on state 0 (TinyBERT, arXiv 1909.10351).

    Args:
        student: packed states ``[T, width]``.
        teacher: packed states ``[T, teacher width]``, no gradient.
        project: ``[teacher width, width]``, needed where widths differ.
        weights: each token's weight, ``[T]``; default: all alike.

    Raises:
        ValueError: the shapes do not fit.
    """
    student, teacher = _matched(student, teacher, project)
    share = _shares(teacher, weights)
    variance = (share * (teacher - (share * teacher).sum(dim=0)).square()).sum()
    floor = _LEAST_VARIANCE * (share * teacher.square()).sum() + torch.finfo(teacher.dtype).tiny
    return (share * (student - teacher).square()).sum() / torch.maximum(variance, floor)


def hidden_cosine(
    student: Tensor, teacher: Tensor, project: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Return the mean of 1 less the cosine of each token's states (DistilBERT, arXiv 1910.01108).

    Arguments as in `hidden_mse`.
    """
    student, teacher = _matched(student, teacher, project)
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
    with torch.no_grad():
        wanted = _relations(*teacher, layout, heads)
    found = _relations(*student, layout, heads)
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1)  # [B, heads, S]
    real = layout.mask[:, None, :]
    return divergence.masked_fill(~real, 0.0).sum() / (n_tokens * heads)


def _relations(asking: Tensor, asked: Tensor, layout: TokenLayout, heads: int) -> Tensor:
    """Return log-probabilities ``[B, heads, S, S]`` of each token's relation to the real tokens of its row, fp32."""
    left, right = (_heads(values, layout, heads) for values in (asking, asked))
    with torch.autocast(left.device.type, enabled=False):  # products rounded to bf16 would never match
        products = (left * left.shape[-1] ** -0.5) @ right.transpose(-1, -2)
    hidden = ~layout.mask[:, None, None, :]
    return products.masked_fill(hidden, torch.finfo(products.dtype).min).log_softmax(dim=-1)


def _heads(values: Tensor, layout: TokenLayout, heads: int) -> Tensor:
    """Spread packed ``[T, width]`` to ``[B, heads, S, width / heads]``, zero at padding."""
    # Not `layout.pad`: the gradient of its gather adds up, far slower than the gather that undoes this copy.
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    padded = values.new_zeros(layout.mask.numel(), values.shape[1]).index_copy(0, layout.to_packed, values)
    return padded.view(*layout.mask.shape, heads, -1).transpose(1, 2)


def _matched(student: Tensor, teacher: Tensor, project: Tensor | None) -> tuple[Tensor, Tensor]:
    if project is not None:
        student = F.linear(student, project.to(student.dtype))
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
