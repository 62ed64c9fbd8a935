"""The parts of each linear's matrix, those that scores need most first, and rankers with the first of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.folding import Inputs
from compressor.algorithms.linear_gradients import Fisher, measure_fisher, measure_output_sensitivity
from compressor.algorithms.low_rank import Decomposition, decomposed
from compressor.progress import progress
from compressor.ranker.forms import with_forms
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import ClassifierHead, LowRankForm

Method = Literal["activation", "fisher", "svd"]


def decompositions(
    ranker: Ranker, names: Sequence[str], method: Method, batches: Sequence[CalibrationBatch], inputs: Inputs
) -> dict[str, Decomposition]:
    """Return the parts of some matrices, with losses that can be compared between them.

    Args:
        ranker: of one matrix in each of these linears.
        names: the linears.
        method: ``activation``, the norm of what matrices give on calibration texts; their losses are the variance of
            scores that they cause, where the ranker gives scores of pairs, else shares of their variance. ``fisher``,
            each weight by its Fisher information, taken as a product of one of rows and one of columns; losses are that
            information. ``svd``, all weights alike; losses are shares of the squared weights.
        batches: calibration texts; none are needed for ``svd``.
        inputs: what the linears read, for ``activation``.
    """
    sensitivity: dict[str, Tensor] = {}
    fisher: dict[str, Fisher] = {}
    if method == "fisher":
        fisher = measure_fisher(ranker.module, batches, names)
    elif method == "activation" and isinstance(ranker.spec.head, ClassifierHead):
        sensitivity = measure_output_sensitivity(ranker.module, batches, names)
    found = {}
    with progress("Decomposing", len(names)) as advance:
        for name in names:
            weight = ranker.weights[f"{name}.weight"]
            if method == "fisher":
                by_row, by_column = fisher[name]
                found[name] = decomposed(weight, by_column, by_row / by_row.mean().clamp(min=_TINY))
            elif method == "activation":
                second = inputs[name].second(centered=f"{name}.bias" in ranker.weights)
                found[name] = decomposed(weight, second, judge=sensitivity.get(name))
            else:
                found[name] = decomposed(weight)
            if not (fisher or sensitivity):
                found[name] = found[name].relative()
            advance()
    return found


_TINY = 1e-30


def factorized(
    ranker: Ranker, parts: Mapping[str, Decomposition], ranks: Mapping[str, int], inputs: Inputs | None
) -> Ranker:
    """Return the ranker with factors for some of its matrices.

    Args:
        ranker: with one matrix in each of these linears.
        parts: of the matrices.
        ranks: how many of them stay.
        inputs: what the linears read: biases then take in the mean of what is lost. None leaves biases.
    """
    weights = dict(ranker.weights)
    for name, rank in ranks.items():
        matrix = weights.pop(f"{name}.weight")
        up, down = parts[name].factors(rank)
        weights[f"{name}.up"], weights[f"{name}.down"] = up, down
        if inputs is not None and f"{name}.bias" in weights:
            lost = (matrix.double() - up.double() @ down.double()) @ inputs[name].mean
            weights[f"{name}.bias"] = weights[f"{name}.bias"] + lost.float()
    forms = {name: LowRankForm(rank=rank) for name, rank in ranks.items()}
    return ranker.changed(spec=with_forms(ranker.spec, forms), weights=weights)
