"""Importance of parts of a ranker, measured by what the scores do without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from compressor.algorithms.calibration import CalibrationBatch, calibration_batches, head_result, run_layers, scores_of
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import Ranker


class Removal(TypedDict):
    """One layer's removal: which it was, and the score change of every layer that could have been it."""

    dropped: int
    score_change: dict[str, float]


def score_change(scores: np.ndarray, reference: np.ndarray, queries: Sequence[str]) -> float:
    """Return the root mean square change of scores, each query's mean change taken out.

    A shift that moves all candidates of a query alike cannot change their order, so it does not count. Where no query
    has two candidates there is no order to change, and the changes count as they are.

    Args:
        scores: float ``[n]``.
        reference: float ``[n]``.
        queries: ``n`` query texts or ids.
    """
    change = scores.astype(np.float64) - reference.astype(np.float64)
    _, group = np.unique(np.asarray(queries), return_inverse=True)
    if group.max(initial=0) + 1 == len(group):
        return float(np.sqrt(np.mean(change**2)))
    means = np.bincount(group, weights=change) / np.bincount(group)
    return float(np.sqrt(np.mean((change - means[group]) ** 2)))


def drop_least_important_layers(
    ranker: Ranker, pairs: Sequence[tuple[str, str]], n_keep: int
) -> tuple[list[int], list[Removal]]:
    """Choose layers to keep by leave-one-out, one at a time: the layer whose absence changes scores least goes first.

    After each removal the remaining layers are measured anew, since a layer's neighbor may matter more without it. A
    trial re-runs only the layers behind the one left out.

    Args:
        ranker: the ranker, fp32.
        pairs: calibration (query, document) texts.
        n_keep: how many layers stay.

    Returns:
        The indices kept, ascending, and one record per removal: the layer dropped and every candidate's score change.
    """
    batches = calibration_batches(ranker, pairs)
    queries = [query for query, _ in pairs]
    kept = list(range(len(ranker.spec.layers)))
    n_trials = sum(range(n_keep + 1, len(kept) + 1))
    removals: list[Removal] = []
    with torch.inference_mode(), progress("Measuring layer importance", n_trials) as advance:
        reference = _leave_one_out(ranker.module, batches, kept, [None], len(pairs))[None]
        while len(kept) > n_keep:
            trials = _leave_one_out(ranker.module, batches, kept, kept, len(pairs))
            changes = {layer: score_change(trials[layer], reference, queries) for layer in kept}
            least = min(kept, key=lambda layer: (changes[layer], -layer))
            advance(len(kept))
            kept.remove(least)
            removals.append({"dropped": least, "score_change": {str(k): round(v, 6) for k, v in changes.items()}})
    return kept, removals


def _leave_one_out(
    module: Encoder, batches: list[CalibrationBatch], kept: list[int], trials: Sequence[int | None], n_pairs: int
) -> dict[int | None, np.ndarray]:
    """Return the scores without each trial layer (None: with all kept); states before the layer are computed once."""
    results: dict[int | None, list[np.ndarray]] = {trial: [] for trial in trials}
    for batch in batches:
        values = batch.embedded
        for place, layer in enumerate([*kept, None]):
            if layer in results:
                finished = run_layers(module, batch, values, kept[place + 1 :])
                results[layer].append(head_result(module, batch, finished))
            if layer is not None:
                values = module.layers[layer](values, batch.layout)
    return {trial: scores_of(batches, found, n_pairs) for trial, found in results.items()}
