"""Scores by which a token rule chooses: a side look at the layer's queries and keys, beside its fused attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.ranker.attention import visible
from compressor.ranker.spec import FullPattern, LearnedScorer, PageRankScorer, TokenScorer
from compressor.ranker.tokens import RowParts, TokenLayout

if TYPE_CHECKING:
    from compressor.ranker.encoder import Encoder
    from compressor.ranker.layers import Layer
    from compressor.ranker.trace import Trace

STANDARDIZED_EPSILON = 1e-5  # added to the variance of a state that is judged


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What has reached a token rule.

    Attributes:
        layer: the layer that it stands behind.
        read: packed states that the layer read, ``[T, width]``.
        given: packed states that the layer gave, ``[T, width]``.
        layout: where the T tokens stand.
        parts: what they are in their rows.
    """

    layer: Layer
    read: Tensor
    given: Tensor
    layout: TokenLayout
    parts: RowParts


class AttentionScores(nn.Module):
    """Scores ``[B, S]``: the attention that each token gets from the row's asking tokens, in the mean over heads.

    It is the attention that the layer has just paid, from the states that it read: these queries and keys were trained
    on such states and not on those that the layer gives, and a graph has them at hand without another projection. What
    it says is one layer old. After ToP (arXiv 2306.14393) and LTP (arXiv 2107.00910), with the query's rows alone.
    """

    def forward(self, reached: Reached) -> Tensor:
        asking = reached.parts.asking_shares(reached.layout)  # [B, S]
        n_asking = int(reached.parts.n_asking.max())
        paid = attention_paid(reached, n_asking)  # [B, asking, S]
        return torch.matmul(asking[:, None, :n_asking].to(paid.dtype), paid)[:, 0]


class PageRankScores(nn.Module):
    """Scores ``[B, S]``: weighted PageRank over the layer's attention, personalized to the query.

    Zero-TPrune's ranking (arXiv 2305.17328) in text form: heads averaged, steps fixed, restarted at what asks.
    """

    def __init__(self, spec: PageRankScorer) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, reached: Reached) -> Tensor:
        paid = attention_paid(reached, reached.layout.mask.shape[1])  # [B, S, S]
        restart = reached.parts.asking_shares(reached.layout)[:, None].to(paid.dtype)  # [B, 1, S]
        scores = restart
        for _ in range(self.spec.steps):
            scores = (1 - self.spec.restart) * torch.matmul(scores, paid) + self.spec.restart * restart
        return scores[:, 0]


class LearnedScores(nn.Module):
    """Scores ``[B, S]``: products of tokens' own states with two learned vectors, one of which meets what asks.

    Token Cropr's linear scorer (arXiv 2412.00965), with the query in it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(width))
        self.match = nn.Parameter(torch.empty(width))

    def forward(self, reached: Reached) -> Tensor:
        states, asking = standardized(reached)
        wanted = self.direction.to(states.dtype) + self.match.to(states.dtype) * asking  # [B, width]
        return torch.matmul(states, wanted[:, :, None])[:, :, 0]


def standardized(reached: Reached) -> tuple[Tensor, Tensor]:
    """Return states less their means, over their deviations, ``[B, S, W]``, and the mean of what asks, ``[B, W]``."""
    given = reached.given
    exact = given.to(torch.promote_types(given.dtype, torch.float32))
    states = reached.layout.pad(F.layer_norm(exact, exact.shape[-1:], eps=STANDARDIZED_EPSILON))
    n_asking = int(reached.parts.n_asking.max())
    shares = reached.parts.asking_shares(reached.layout)[:, None, :n_asking].to(states.dtype)
    return states, torch.matmul(shares, states[:, :n_asking])[:, 0]


def attention_paid(reached: Reached, n_asking: int) -> Tensor:
    """Return what the first ``n_asking`` tokens of each row pay to its real tokens, ``[B, asking, S]``, heads averaged.

    fp32 or finer. Windows are not heeded: the first token's would hide most of a long document. What an isolated query
    does not see it does not pay to: documents are then judged by the first token alone.
    """
    layer: Any = reached.layer
    values = reached.read
    if layer.spec.norm_placement == "pre":
        values = layer.attention_norm.forward(values)
    query, key = layer.attention.queries_and_keys(values, reached.layout)  # [B, S, H, d]
    exact = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key = query[:, :n_asking].to(exact).transpose(1, 2), key.to(exact).permute(0, 2, 3, 1)
        products = torch.matmul(query * query.shape[-1] ** -0.5, key)  # [B, H, asking, S]
        if reached.layout.log_gates is not None:
            products = products + reached.layout.log_gates[:, None, None, :]
        seen = visible(FullPattern(), reached.layout, first_only=False)[:, :, :n_asking]
        products = products.masked_fill(~seen, torch.finfo(exact).min)
        return products.softmax(dim=-1).mean(dim=1)


def attention_of_last(module: Encoder, trace: Trace, parts: RowParts) -> Tensor:
    """Return what first tokens pay to the tokens of their rows in the last layer with attention, ``[B, S]``.

    Relative to the row's mean. It is what reaches the score where that is read at the first token.

    Args:
        module: a ranker.
        trace: of a pass in which no token went before that layer that stands in ``parts``.
        parts: what the tokens are.
    """
    layers: Any = module.layers
    last = max(index for index, layer in enumerate(module.spec.layers) if layer.attention)
    read, layout = trace.states[last], trace.layouts[last]
    reading = Reached(layer=layers[last], read=read, given=read, layout=layout, parts=parts)
    return attention_paid(reading, 1)[:, 0] * layout.n_tokens[:, None]


def build_scorer(spec: TokenScorer, width: int) -> nn.Module:
    """Build what gives each token of the padded view a score, ``[B, S]``, high for those that should stay."""
    if isinstance(spec, LearnedScorer):
        return LearnedScores(width)
    return PageRankScores(spec) if isinstance(spec, PageRankScorer) else AttentionScores()
