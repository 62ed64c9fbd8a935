"""What it would cost a ranker's order to lose heads and neurons: six importances and one prediction, one interface.

Each gives, for every layer, the order in which its heads and neurons deserve to stay, and the loss when only the first
so many of them do. Losses of one importance can be compared between layers, and between heads and neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from compressor.algorithms.calibration import CalibrationBatch
from compressor.algorithms.folding import Inputs, measure_inputs
from compressor.algorithms.linear_fits import Moments, in_telling_order
from compressor.algorithms.query_clusters import means_by_cluster
from compressor.algorithms.score_gradients import ScoreGradients, measure_score_gradients, numbered, rank_centered
from compressor.progress import progress
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec

Importance = Literal["predicted", "fisher", "clustered", "taylor", "hessian", "wanda", "magnitude"]
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)
NEEDS_GRADIENTS = frozenset({"predicted", "fisher", "clustered", "taylor"})
NEEDS_INPUTS = frozenset({"predicted", "hessian", "wanda"})

_NEURONS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Heads, or neurons, of one layer.

    Attributes:
        order: int64 ``[units]``, the one that should stay longest first.
        losses: float32 ``[units + 1]``, the loss when the first 0, 1, 2 ... of them stay.
    """

    order: Tensor
    losses: Tensor


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What importances are computed from.

    Attributes:
        spec, weights: the ranker, dense.
        queries: the query of each calibration pair.
        inputs: what its linears read; None where no importance asks.
        gradients: how scores answer; None where no importance asks.
        temperature: of the listwise softmax in ``fisher``; None weighs all candidates alike.
    """

    spec: RankerSpec
    weights: Mapping[str, Tensor]
    queries: Sequence[str]
    inputs: Inputs | None = None
    gradients: ScoreGradients | None = None
    temperature: float | None = None

    def moments(self, name: str) -> Moments:
        """Return what a linear reads.

        Raises:
            ValueError: inputs were not measured.
        """
        if self.inputs is None:
            raise ValueError("this importance needs what linears read (NEEDS_INPUTS)")
        return self.inputs[name]

    def answers(self) -> ScoreGradients:
        """Return how scores answer.

        Raises:
            ValueError: gradients were not measured.
        """
        if self.gradients is None:
            raise ValueError("this importance needs gradients of scores (NEEDS_GRADIENTS)")
        return self.gradients

    @cached_property
    def shares_by_cluster(self) -> list[dict[str, Tensor]]:
        """Return for each layer and part ``[clusters, units]``, what each unit is of all that a cluster needs."""
        parts = ("attention.output", "ffn.down")
        found = {(i, part): _fisher_by_query(self, i, part) for i in range(len(self.spec.layers)) for part in parts}
        means = means_by_cluster(torch.cat(list(found.values()), dim=1))
        split = dict(zip(found, means.split([one.shape[1] for one in found.values()], dim=1), strict=True))
        return [{part: split[index, part] for part in parts} for index in range(len(self.spec.layers))]


def measured_evidence(
    ranker: Ranker, batches: Sequence[CalibrationBatch], queries: Sequence[str], importance: Importance,
    *, temperature: float | None = None, needs_inputs: bool = False,
) -> Evidence:  # fmt: skip
    """Measure what an importance is computed from, and nothing else.

    Args:
        ranker: dense.
        batches: calibration pairs.
        queries: the query of each pair.
        importance: what will be asked for.
        temperature: as in `Evidence`.
        needs_inputs: measure what linears read in any case.
    """
    wants_inputs = needs_inputs or importance in NEEDS_INPUTS
    wants_gradients = importance in NEEDS_GRADIENTS
    return Evidence(
        spec=ranker.spec,
        weights=ranker.weights,
        queries=queries,
        inputs=measure_inputs(ranker.module, batches) if wants_inputs else None,
        gradients=measure_score_gradients(ranker.module, batches) if wants_gradients else None,
        temperature=temperature,
    )


def ranked_widths(importance: Importance, evidence: Evidence) -> tuple[list[Ranking], list[Ranking]]:
    """Return the rankings of every layer's heads and of every layer's neurons.

    ``predicted``: the variance of scores that a cut would cause when what is cut is predicted from what stays
    (`compressor.algorithms.folding`): the errors of a block's output, weighed by the gradients of scores. It looks at
    what parts share, where the others add up parts as if each were alone.
    ``fisher``: the mean square of a mask's gradient, rank-centered (Kwon et al., arXiv 2204.09656).
    ``clustered``: the same for each kind of queries (`compressor.algorithms.query_clusters`), as a share of all that
    the kind needs, and of these the largest: a unit stays that one kind alone needs (after X-Pruner, arXiv 2303.04935,
    whose classes a ranker does not have).
    ``taylor``: the mean size of the same (Michel et al., arXiv 1905.10650).
    ``hessian``: the error of a block's output when the others make up for it, one at a time (Optimal Brain Surgeon).
    ``wanda``: the size of what a part writes (arXiv 2306.11695, summed over a part).
    ``magnitude``: the norms of the matrices that write and read a part.
    """
    heads: list[Ranking] = []
    neurons: list[Ranking] = []
    measure = _MEASURES.get(importance)
    with progress(f"Ranking widths ({importance})", len(evidence.spec.layers)) as advance:
        for index, layer in enumerate(evidence.spec.layers):
            for found, part, units, group in (
                (heads, "attention.output", layer.heads, layer.head_width), (neurons, "ffn.down", layer.ffn_width, 1),
            ):  # fmt: skip
                if not units:
                    found.append(_alone(torch.zeros(0)))
                elif measure is None:
                    found.append(_predicted(evidence, index, part, group))
                else:
                    found.append(_alone(measure(evidence, index, part, group)))
            advance()
    return heads, neurons


def _alone(losses: Tensor) -> Ranking:
    """Rank units by what each costs; together they cost the sum."""
    found = losses.sort(descending=True, stable=True)
    kept = torch.cat([torch.zeros(1, dtype=losses.dtype), found.values.cumsum(0)])
    return Ranking(order=found.indices, losses=(kept[-1] - kept).clamp(min=0))


def _predicted(evidence: Evidence, index: int, part: str, group: int) -> Ranking:
    gradients = evidence.answers()
    products = (gradients.attention_outputs if part.startswith("attention") else gradients.ffn_outputs)[index]
    values, vectors = torch.linalg.eigh(products)
    sensitivity = values.clamp(min=0).sqrt()[:, None] * vectors.T
    reader = sensitivity @ evidence.weights[f"layers.{index}.{part}.weight"]
    second = _second(evidence, index, part)
    count = reader.shape[1] // group
    at_once = _NEURONS_AT_ONCE if group == 1 else 1
    found = in_telling_order([second], [reader], count, group, at_once)
    return Ranking(order=found.order, losses=found.left)


def _fisher(evidence: Evidence, index: int, part: str, _: int) -> Tensor:
    centered, weights = _mask_gradients(evidence, index, part)
    return (weights[:, None] * centered.square()).sum(dim=0)


def _fisher_by_query(evidence: Evidence, index: int, part: str) -> Tensor:
    """Return the same for each query alone, ``[queries, units]``."""
    centered, weights = _mask_gradients(evidence, index, part)
    rows, n_queries = numbered(evidence.queries)
    return torch.zeros(n_queries, centered.shape[1]).index_add_(0, rows, weights[:, None] * centered.square())


def _clustered(evidence: Evidence, index: int, part: str, _: int) -> Tensor:
    shares = evidence.shares_by_cluster
    return shares[index][part].max(dim=0).values


def _taylor(evidence: Evidence, index: int, part: str, _: int) -> Tensor:
    centered, weights = _mask_gradients(evidence, index, part)
    return (weights[:, None] * centered.abs()).sum(dim=0)


def _hessian(evidence: Evidence, index: int, part: str, group: int) -> Tensor:
    weight = evidence.weights[f"layers.{index}.{part}.weight"].double()
    second = _second(evidence, index, part)
    ridge = 1e-4 * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    inverse = torch.linalg.inv(second + ridge)
    total = ((weight @ second) * weight).sum()
    losses = []
    for start in range(0, len(second), group):
        own = slice(start, start + group)
        block = torch.linalg.inv(inverse[own, own])
        losses.append(((weight[:, own] @ block) * weight[:, own]).sum() / total)
    return torch.stack(losses).float()


def _wanda(evidence: Evidence, index: int, part: str, group: int) -> Tensor:
    weight = evidence.weights[f"layers.{index}.{part}.weight"]
    sizes = evidence.moments(f"layers.{index}.{part}").second(centered=False).diagonal().float()
    losses = (weight.square().sum(dim=0) * sizes).unflatten(0, (-1, group)).sum(dim=1)
    return losses / losses.sum()


def _magnitude(evidence: Evidence, index: int, part: str, group: int) -> Tensor:
    weights, layer = evidence.weights, f"layers.{index}"
    writes = weights[f"{layer}.{part}.weight"].square().sum(dim=0).unflatten(0, (-1, group)).sum(dim=1)
    readers = ("attention.value",) if part.startswith("attention") else ("ffn.up", "ffn.gate")
    reads = torch.stack(
        [
            weights[f"{layer}.{name}.weight"].square().sum(dim=1).unflatten(0, (-1, group)).sum(dim=1)
            for name in readers
            if f"{layer}.{name}.weight" in weights
        ]
    ).sum(dim=0)
    losses = (writes * reads).sqrt()
    return losses / losses.sum()


_MEASURES: Mapping[str, Callable[[Evidence, int, str, int], Tensor]] = {
    "fisher": _fisher,
    "clustered": _clustered,
    "taylor": _taylor,
    "hessian": _hessian,
    "wanda": _wanda,
    "magnitude": _magnitude,
}


def mask_gradients(evidence: Evidence, index: int, part: str) -> Tensor:
    """Return rank-centered mask gradients ``[n, units]``, each row times the root of its weight."""
    centered, weights = _mask_gradients(evidence, index, part)
    return centered * weights.sqrt()[:, None]


def _mask_gradients(evidence: Evidence, index: int, part: str) -> tuple[Tensor, Tensor]:
    gradients = evidence.answers()
    found = (gradients.heads if part.startswith("attention") else gradients.neurons)[index]
    return rank_centered(found, gradients.scores, evidence.queries, evidence.temperature)


def _second(evidence: Evidence, index: int, part: str) -> Tensor:
    name = f"layers.{index}.{part}"
    return evidence.moments(name).second(centered=f"{name}.bias" in evidence.weights)
