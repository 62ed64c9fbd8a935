"""Random score lists with padding and missing targets, for the laws of score losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from torch import Tensor

LAW = settings(derandomize=True, deadline=None, database=None, max_examples=12)


class Lists(NamedTuple):
    scores: Tensor
    targets: Tensor
    mask: Tensor


@st.composite
def lists(draw: st.DrawFn, size: float = 3.0, least: int = 0) -> Lists:
    """Draw up to 4 lists of up to 7 items in float64, each with ``least`` valid items or more, scores within ±size."""
    shape = draw(st.integers(1, 4)), draw(st.integers(max(least, 1), 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))  # far faster than drawing cell by cell
    steps = draw(st.sampled_from([2, 64]))  # a grid: ties come up, and so do the ends
    scores, targets = torch.from_numpy(random.integers(-steps, steps + 1, (2, *shape)) * (size / steps))
    mask, missing = torch.from_numpy(random.random((2, *shape)) < np.array([0.7, 0.3])[:, None, None])
    mask[:, :least], missing[:, :least] = True, False
    return Lists(scores, targets.masked_fill(missing, torch.nan), mask)


def for_loss(name: str, drawn: Lists) -> Lists:
    """Turn the targets into grades 0 to 2 where the loss learns from labels."""
    from compressor.algorithms.ranking_losses import RANKING_LOSSES

    if RANKING_LOSSES[name].target == "teacher":
        return drawn
    return drawn._replace(targets=drawn.targets.round().clamp(0, 2))


def gradient(name: str, drawn: Lists, **options: object) -> tuple[Tensor, Tensor]:
    """Return a loss's values ``[L]`` and the gradient of their sum ``[L, K]``."""
    from compressor.algorithms.ranking_losses import RANKING_LOSSES

    scores = drawn.scores.clone().requires_grad_()
    values = RANKING_LOSSES[name].function(scores, drawn.targets, drawn.mask, **options)
    return values.detach(), torch.autograd.grad(values.sum(), scores)[0]
