"""Hard-concrete masks: gates between 0 and 1 that are exactly 0 or 1 with some chance, and learn (arXiv 1712.01312)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 2 / 3  # beta of the paper
LOW, HIGH = -0.1, 1.1  # gamma and zeta: the interval that a binary concrete variable is stretched to, then clamped

_THRESHOLDS = 16  # at which means are integrated


def sampled_gates(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return gates drawn from hard-concrete distributions, with a gradient for the logits.

    Args:
        logits: log alpha, float ``[n]``.
        uniform: random numbers between 0 and 1, float ``[n]``; equal ones give equal gates.
    """
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    noise = uniform.log() - (-uniform).log1p()
    return _stretched(torch.sigmoid((logits + noise) / TEMPERATURE))


def expected_gates(logits: Tensor) -> Tensor:
    """Return the gates of evaluation, without noise: the sigmoid of the logits, stretched and clamped."""
    return _stretched(torch.sigmoid(logits))


def mean_gates(logits: Tensor) -> Tensor:
    """Return the mean of what is drawn of each gate, with a gradient that never quite vanishes.

    The mean of a gate between 0 and 1 is the integral, over thresholds, of the chance that it is above one.
    """
    thresholds = (torch.arange(_THRESHOLDS, device=logits.device, dtype=logits.dtype) + 0.5) / _THRESHOLDS
    return torch.sigmoid(logits[..., None] - TEMPERATURE * torch.logit((thresholds - LOW) / (HIGH - LOW))).mean(dim=-1)


def open_chances(logits: Tensor) -> Tensor:
    """Return with what chance each gate is not 0; its sum is the expected L0 norm."""
    return torch.sigmoid(logits - TEMPERATURE * math.log(-LOW / HIGH))


def _stretched(values: Tensor) -> Tensor:
    return (values * (HIGH - LOW) + LOW).clamp(0, 1)
