"""A ranker whose matrices lie on the grids of their precisions, layer by layer: GPTQ and AWQ over all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from compressor.algorithms.activation_aware import activation_aware
from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.layer_by_layer import Read, changed_layer_by_layer
from compressor.algorithms.weight_rounding import gptq, relative_error
from compressor.ranker.channel_links import channel_links
from compressor.ranker.cost import linears_of
from compressor.ranker.quantizers import WholeNumbers, rounded_weight
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import Int4Blocks, Int8Blocks, SparseForm

Rounding = Literal["gptq", "awq"]
Errors = dict[str, tuple[float, float]]


def rounded_layer_by_layer(
    ranker: Ranker, batches: Sequence[CalibrationBatch], linears: Sequence[str], precision: WholeNumbers, how: Rounding
) -> tuple[Ranker, Errors]:
    """Return an fp32 ranker whose weights lie on the grid of a precision, and what that does to outputs.

    Each layer reads what rounded layers give; within a layer, all matrices are rounded by what its own exact ones give.

    Args:
        ranker: its linears are fp32, none of them stored as atoms and sparse codes.
        batches: the calibration set.
        linears: those to round.
        precision: of all of them.
        how: ``awq`` for blocks alone.

    Returns:
        The ranker, and by name of a matrix which share of the mean square of its outputs rounding to the nearest would
        move, and which share was moved.

    Raises:
        ValueError: ``awq`` with a precision that has no blocks.
    """
    sparse = {f"{name}.weight" for name, one in linears_of(ranker.spec) if isinstance(one.form, SparseForm)}
    links = channel_links(ranker.spec)
    errors: Errors = {}

    def change(weights: Mapping[str, Tensor], reads: Mapping[str, Read]) -> dict[str, Tensor]:
        seconds = {name: read.second(centered=False) for name, read in reads.items()}
        if how == "gptq":
            changed = {name: gptq(weights[name], read, precision, name in sparse) for name, read in reads.items()}
            moved = {name: relative_error(weights[name], changed[name], seconds[name]) for name in reads}
        else:
            if not isinstance(precision, Int8Blocks | Int4Blocks):
                raise ValueError(f"awq rounds by blocks, not to {precision.kind}")
            own = [link for link in links if f"{link.giver}.weight" in weights or f"{link.giver}.up" in weights]
            changed, moved = activation_aware(weights, reads, own, precision)
        for name, second in seconds.items():
            nearest = relative_error(weights[name], rounded_weight(weights[name], precision), second)
            errors[name] = (nearest, moved[name])
        return changed

    found = changed_layer_by_layer(ranker.trainable().eval(), batches, linears, change, "Rounding layers")
    return ranker.changed(weights={**ranker.weights, **found}), errors
