"""What a training made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compressor.training.curves import Points


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Weights, and how they came about.

    Attributes:
        weights: by name, fp32 but for indices: the best on dev data, else the moving average, else the last.
        curves: points over pairs seen: ``loss``, ``loss/PART``, ``dev/MEASURE``, ``learning_rate``.
        steps, pairs: how many were done and seen.
        seconds: of all processes that worked on it, one after another; what a killed one did behind its last checkpoint
            had to be done again and does not count.
        pairs_per_s: of this process's run, evaluations and the first steps left out.
        stopped_early: whether dev data ended it.
    """

    weights: dict[str, Tensor]
    curves: dict[str, Points]
    steps: int
    pairs: int
    seconds: float
    pairs_per_s: float
    stopped_early: bool
