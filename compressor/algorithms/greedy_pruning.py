"""Greedy removal of blocks, heads and neurons, each accepted by a loss on lists (AxFormer, arXiv 2010.03688)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch, run_layers, scores_from
from compressor.algorithms.width_importance import Ranking
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import LayerSpec

Stage = Literal["blocks", "heads", "neurons"]
STAGES: tuple[Stage, ...] = ("blocks", "heads", "neurons")

_REFUSED_IN_A_ROW = 2  # the units of a layer come in the order of what they write: behind these none is worth a trial


class Unit(NamedTuple):
    """What is tried at once: a whole block, a head, or some neurons of one layer.

    Attributes:
        layer: its layer.
        part: ``attention.output`` or ``ffn.down``, the matrix that reads it.
        units: int64, which heads or neurons.
    """

    layer: int
    part: str
    units: Tensor


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """What came of the trials.

    Attributes:
        heads, neurons: per layer, int64, those that stay, ascending.
        n_trials: how many were made.
        accepted: by stage, how many were accepted.
    """

    heads: list[Tensor]
    neurons: list[Tensor]
    n_trials: int
    accepted: Mapping[str, int]


def prune_greedily(
    module: Encoder,
    batches: Sequence[CalibrationBatch],
    loss: Callable[[np.ndarray], float],
    accept: Callable[[float], bool],
    heads: Sequence[Ranking],
    neurons: Sequence[Ranking],
    group: int,
) -> Greedy:
    """Take away what can be missed: whole blocks, then heads, then groups of neurons, deep layers first.

    A trial computes only the layers from its own on: what stands before has not changed since the stage began.

    Args:
        module: the ranker; its output matrices are set to zero where parts go, in place.
        batches: the lists' pairs.
        loss: of the scores of all pairs, float32 ``[n]``.
        accept: whether a loss is good enough for the part to stay away; asked once for each trial, in their order.
        heads, neurons: for each layer, in which order its units deserve to stay.
        group: neurons that are tried together.
    """
    n_pairs = sum(len(batch.rows) for batch in batches)
    kept = {
        "attention.output": [torch.ones(layer.spec.heads, dtype=torch.bool) for layer in _layers(module)],
        "ffn.down": [torch.ones(layer.spec.ffn_width, dtype=torch.bool) for layer in _layers(module)],
    }
    found: dict[str, int] = dict.fromkeys(STAGES, 0)
    n_trials = 0
    with torch.inference_mode():
        for stage in STAGES:
            units = list(_units(stage, module, kept, heads, neurons, group))
            states = _states(module, batches)
            refused: dict[tuple[int, str], int] = {}
            with progress(f"Trying what can be missed ({stage})", len(units)) as advance:
                for unit in units:
                    advance()
                    if refused.get((unit.layer, unit.part), 0) >= _REFUSED_IN_A_ROW:
                        continue
                    with _without(module, unit) as keep_away:
                        value = loss(scores_from(module, batches, states[unit.layer], unit.layer, n_pairs))
                        n_trials += 1
                        if accept(value):
                            keep_away()
                            kept[unit.part][unit.layer][unit.units] = False
                            found[stage] += 1
                            refused.pop((unit.layer, unit.part), None)
                        else:
                            refused[unit.layer, unit.part] = refused.get((unit.layer, unit.part), 0) + 1
    return Greedy(
        heads=[each.nonzero()[:, 0] for each in kept["attention.output"]],
        neurons=[each.nonzero()[:, 0] for each in kept["ffn.down"]],
        n_trials=n_trials,
        accepted=found,
    )


def _layers(module: Encoder) -> list[Any]:
    return list(module.layers)


def _units(
    stage: Stage, module: Encoder, kept: Mapping[str, Sequence[Tensor]], heads: Sequence[Ranking],
    neurons: Sequence[Ranking], group: int,
) -> Iterator[Unit]:  # fmt: skip
    """Yield what a stage tries of what is left, deep layers first, in each layer what writes least first."""
    for index in reversed(range(len(module.layers))):
        spec: LayerSpec = _layers(module)[index].spec
        for part, ranking, count in (("ffn.down", neurons, spec.ffn_width), ("attention.output", heads, spec.heads)):
            if not kept[part][index].any():
                continue
            if stage == "blocks":
                yield Unit(index, part, torch.arange(count))
            elif (stage == "heads") == (part == "attention.output"):
                order = ranking[index].order.flip(0)
                for units in order.split(1 if stage == "heads" else group):
                    yield Unit(index, part, units)


def _states(module: Encoder, batches: Sequence[CalibrationBatch]) -> list[list[Tensor]]:
    """Return what goes into each layer, for each batch, ``[T, width]``."""
    states = [[batch.embedded for batch in batches]]
    for index in range(len(module.layers) - 1):
        states.append([run_layers(module, *pair, [index]) for pair in zip(batches, states[-1], strict=True)])
    return states


@contextmanager
def _without(module: Encoder, unit: Unit) -> Iterator[Callable[[], None]]:
    """Run without a unit, whose columns are zero in the block; yields what has it stay away."""
    block, _, output = unit.part.partition(".")
    layer = _layers(module)[unit.layer]
    weight: Tensor = getattr(getattr(layer, block), output).weight
    width = layer.spec.head_width if block == "attention" else 1
    columns = (unit.units[:, None] * width + torch.arange(width)).flatten()
    before = weight[:, columns].clone()
    stays_away: list[bool] = []
    weight[:, columns] = 0
    yield lambda: stays_away.append(True)
    if not stays_away:
        weight[:, columns] = before
