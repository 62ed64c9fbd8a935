"""Training in several processes, each of which takes its share of every step's lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import reduce
from torch import nn


def average_gradients(parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Give each parameter the sum of what all processes found, each of which weighs its lists by all lists' number."""
    has_gradient = torch.tensor([one.grad is not None for one in parameters], dtype=torch.int32, device=device)
    for parameter, count in zip(parameters, reduce(has_gradient, "sum").tolist(), strict=True):
        if count:  # what no process ran keeps its weights and moments, as it does in one process
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient, "sum")
