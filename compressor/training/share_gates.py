"""Gates on ranks of tokens: which shares of a row's document tokens stay, learned along with a ranker's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.algorithms.hard_concrete import expected_gates, mean_gates, sampled_gates
from compressor.algorithms.share_choice import LearnedShare
from compressor.ranker.cost import macs_of_lengths, macs_of_rows
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import RankerSpec
from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.training.lagrangian import Lagrangian
from compressor.training.mask_settings import ShareGateSettings

_START_LOGIT = 2.4  # where a gate without noise is just 1; below 0, just 0
_MOST_LOGIT = math.log(100)  # beyond, a gate would not come back in time
_CLOSED = 1e-9  # how far a token stays that is gone: its logarithm is finite
_ROUNDING = 1e-6  # of a rank in bins


class ShareGates(nn.Module):
    """Hard-concrete masks on bins of ranks, and one on each place (ToP, arXiv 2306.14393).

    A document token whose rank among those that are left there falls into a bin stays as far as
    ``1 - (1 - bin's mask) * place's mask``, times what the places before left of it. The paper's code multiplies states
    by that while it trains, which leaves zeroed tokens as keys; here its logarithm is added to the token's score as a
    key, in all layers behind, so that a closed mask is a token that is gone, in training as in use. Bins are of
    document tokens alone, and a row's best token stays in any case.

    All that the next step depends on is a parameter or a buffer, so that a killed training goes on exactly.

    Args:
        spec: the ranker, with a `KeepShareRule` behind each place; shares are not read.
        budget: the share of its multiply-adds that is to stay.
        settings: how shares learn.
        seed: for what is drawn.
    """

    step: Tensor

    def __init__(self, spec: RankerSpec, budget: float, settings: ShareGateSettings, seed: int) -> None:
        super().__init__()
        self.spec, self.budget, self.settings, self.seed = spec, budget, settings, seed
        self.places, self.n_steps = list(spec.rule_layers), 1
        self.bins = nn.Parameter(torch.full((len(self.places), settings.bins), _START_LOGIT))
        self.gates = nn.Parameter(torch.full((len(self.places),), -_START_LOGIT))
        self.lagrangian = Lagrangian()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._stays = self._combined(expected_gates(self.bins), expected_gates(self.gates)).detach()

    @property
    def rates(self) -> Mapping[str, float]:
        """Constant learning rates of parameters, by the beginning of their names."""
        rate = self.settings.learning_rate
        return {"bins": rate, "gates": rate, **self.lagrangian.rates("lagrangian", self.n_steps)}

    @property
    def progress(self) -> float:
        """How much of the way from the whole ranker to the budget is over, from 0 to 1."""
        return self.settings.progress(int(self.step), self.n_steps)

    def install(self, module: Encoder, n_steps: int) -> None:
        """Put the gates behind the layers of a module that is trained for ``n_steps``."""
        self.n_steps = n_steps
        for number, place in enumerate(self.places):
            rule: Any = module.layers[place].token_rule
            rule.gate = partial(self._gate, number)

    def set_gates(self, *, drawn: bool) -> None:
        """Set the gates of the forward passes to come, drawn or as they are expected; equal steps draw equal gates."""
        if not drawn:
            self._stays = self._combined(expected_gates(self.bins), expected_gates(self.gates))
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step))
        self._stays = self._combined(
            *(
                sampled_gates(each, torch.rand(each.shape, generator=generator).to(each.device))
                for each in (self.bins, self.gates)
            )
        )

    @torch.no_grad()
    def after_step(self) -> None:
        """Count a step of the optimizer, and hold the masks where gradients can move them."""
        self.step += 1
        for each in (self.bins, self.gates):
            each.clamp_(-_MOST_LOGIT, _MOST_LOGIT)

    def shares(self) -> Tensor:
        """Return which share of the document tokens that reach each place stays there, in the mean, ``[places]``."""
        return self._combined(mean_gates(self.bins), mean_gates(self.gates)).mean(dim=1)

    def expected_cost(self, layout: TokenLayout, parts: RowParts) -> Tensor:
        """Return the multiply-adds of some rows at these shares, as a share of those with all of their tokens.

        What judges tokens counts in full at every place.

        Args:
            layout: of the rows as they come, without padding in their lengths.
            parts: what their tokens are.
        """
        n_tokens = layout.mask.sum(dim=1).double()
        rows = torch.div(layout.to_packed, layout.mask.shape[1], rounding_mode="floor")
        n_document = torch.bincount(rows[parts.document], minlength=len(n_tokens)).double()
        left = {place: partial(torch.mul, share) for place, share in zip(self.places, self.shares(), strict=True)}
        cost = macs_of_rows(self.spec, n_tokens, n_document, parts.n_asking.double(), left).sum()
        return (cost / macs_of_lengths(self.spec, [n_tokens] * len(self.spec.layers)).sum()).float()

    def penalty(self, layout: TokenLayout, parts: RowParts) -> Tensor | None:
        """Return what is added to the loss: the Lagrangian of the cost of these rows; None before its target falls."""
        if not self.progress:
            return None  # noisy gates are never all open: multipliers would learn to push against the start
        return self.lagrangian(self.expected_cost(layout, parts) - (1 - (1 - self.budget) * self.progress))

    @torch.no_grad()
    def learned(self) -> dict[int, LearnedShare]:
        """Return what was learned, by place: bins that are open in the mean come first, as the best ranks have to."""
        kept = mean_gates(self.bins).sum(dim=1).round() / self.settings.bins
        pairs = zip(kept.tolist(), mean_gates(self.gates).tolist(), strict=True)
        return {
            place: LearnedShare(share=share, gate=gate) for place, (share, gate) in zip(self.places, pairs, strict=True)
        }

    def _combined(self, bins: Tensor, gates: Tensor) -> Tensor:
        """Return how far a token of each bin stays, ``[places, bins]``."""
        return 1 - (1 - bins) * gates[:, None]

    def _gate(self, number: int, scores: Tensor, document: Tensor, before: Tensor) -> Tensor:
        order, bins = rank_bins(scores, document, before, self.settings.bins)
        stays = self._stays[number][bins].clamp(min=_CLOSED).log()
        is_best = torch.zeros_like(document).scatter(1, order[:, :1], True)
        return before + stays.masked_fill(~document | is_best, 0.0)


@torch.no_grad()
def rank_bins(scores: Tensor, document: Tensor, log_gates: Tensor, n_bins: int) -> tuple[Tensor, Tensor]:
    """Return the columns of each row by rank and the bin of each column, both int64 ``[B, S]``.

    A token's rank is how many tokens are before it, each as far as it stayed so far, of how many there are: where those
    that are gone stay not at all, it is the rank among those that are left.

    Args:
        scores: ``[B, S]``; of equal ones the first comes first.
        document: bool ``[B, S]``, which columns are ranked; bins of others mean nothing.
        log_gates: ``[B, S]``, the logarithms of how far tokens stayed so far.
        n_bins: bins of equal size.
    """
    order = scores.masked_fill(~document, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    sizes = (log_gates.double().exp() * document).gather(1, order)
    ahead, total = sizes.cumsum(dim=1) - sizes, sizes.sum(dim=1, keepdim=True)
    ranked = (ahead / total.clamp(min=_CLOSED) * n_bins + _ROUNDING).long().clamp(max=n_bins - 1)
    return order, torch.zeros_like(order).scatter(1, order, ranked)
