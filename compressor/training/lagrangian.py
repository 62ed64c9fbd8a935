"""A Lagrangian: what brings an expected cost to its target while a ranker learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# How far the multipliers can climb in one training, whatever its length. The quadratic one climbs faster, which damps:
# with equal rates the linear one is wound up by the time that masks need to close, and far too much is closed.
_MOST_LINEAR, _MOST_QUADRATIC = 16.0, 480.0


class Lagrangian(nn.Module):
    """Two multipliers of a gap between a cost and its target, which climb where what is learned descends.

    CoFi (arXiv 2204.00408), ToP (arXiv 2306.14393). Where the cost is below its target the linear one falls, below 0 in
    the end, so that the cost is pushed up again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.quadratic = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def rates(self, name: str, n_steps: int) -> Mapping[str, float]:
        """Return constant learning rates of the multipliers in a training of ``n_steps``, by the module's name."""
        return {f"{name}.linear": _MOST_LINEAR / n_steps, f"{name}.quadratic": _MOST_QUADRATIC / n_steps}

    def forward(self, gap: Tensor) -> Tensor:
        """Return what is added to the loss for a cost less its target."""
        # As large as the multipliers, and with their gradient turned round: what minimizes the loss makes them climb.
        linear, quadratic = (2 * each.detach() - each for each in (self.linear, self.quadratic))
        return linear * gap + quadratic * gap.square()
