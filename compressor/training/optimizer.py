"""AdamW with a schedule, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.training.settings import TrainingSettings


def build_optimizer(
    parameters: dict[str, nn.Parameter], settings: TrainingSettings, rates: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Return AdamW over parameters by name; norms and biases do not decay.

    Args:
        parameters: all of them.
        settings: those of the training.
        rates: constant learning rates by name; these parameters do not decay, and their groups are marked
            ``constant``.
    """
    rates = rates or {}
    scheduled = [parameter for name, parameter in parameters.items() if name not in rates]
    matrices = [parameter for parameter in scheduled if parameter.dim() > 1]
    vectors = [parameter for parameter in scheduled if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        *(
            {"params": [parameters[name]], "weight_decay": 0.0, "lr": rate, "constant": True}
            for name, rate in rates.items()
        ),
    ]
    # The second moment forgets sooner than by default: compressed rankers are trained for hundreds of steps.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=settings.learning_rate, betas=(0.9, 0.98), fused=True
    )


def learning_rate(settings: TrainingSettings, step: int, n_steps: int, rewinds: Collection[int] = ()) -> float:
    """Return the learning rate of a step from 0: a linear warm-up, then the schedule, which ends near zero.

    With ``rewinds``, steps before which the schedule begins anew, it ends at the next of them; there is one warm-up.
    """
    n_warm_up = max(1, round(settings.warmup_share * n_steps))
    if step < n_warm_up:
        return settings.learning_rate * (step + 1) / n_warm_up
    begin = max((one for one in rewinds if n_warm_up <= one <= step), default=n_warm_up)
    end = min((one for one in rewinds if one > step), default=n_steps)
    share = (step - begin) / max(1, end - begin)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
    return settings.learning_rate * (1 - share if settings.schedule == "linear" else 1)


class MovingAverage:
    """The exponential moving average of weights; early steps count evenly, so that the start does not linger."""

    def __init__(self, decay: float, weights: dict[str, Tensor]) -> None:
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], step: int) -> None:
        """Take the weights after a step, counted from 1, in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.weights.items():
            if average.is_floating_point():
                average.lerp_(weights[name].detach(), 1 - decay)
            else:  # indices and counters
                average.copy_(weights[name])
