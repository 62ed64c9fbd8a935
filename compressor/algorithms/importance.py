"""Importance of parts of a ranker, measured by what the scores do without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import BATCH_TOKENS, Ranker
from compressor.ranker.tokens import TokenLayout
from compressor.runtime.batching import padded, token_budget_batches


class Removal(TypedDict):
    """One layer's removal: which it was, and the score change of every layer that could have been it."""

    dropped: int
    score_change: dict[str, float]


def score_change(scores: np.ndarray, reference: np.ndarray, queries: Sequence[str]) -> float:
    """Return the root mean square change of scores, each query's mean change taken out.

    A shift that moves all candidates of a query alike cannot change their order, so it does not count.

    Args:
        scores: float ``[n]``.
        reference: float ``[n]``.
        queries: ``n`` query texts or ids.
    """
    change = scores.astype(np.float64) - reference.astype(np.float64)
    _, group = np.unique(np.asarray(queries), return_inverse=True)
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
    batches = _batches(ranker, pairs)
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


_Batch = tuple[np.ndarray, TokenLayout, Tensor]


def _batches(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> list[_Batch]:
    encoded = ranker.tokenizer.encode_pairs(pairs)
    batches = []
    with torch.inference_mode():
        for rows in token_budget_batches(encoded.lengths, BATCH_TOKENS):
            inputs = {k: torch.from_numpy(v) for k, v in padded(encoded, rows, ranker.spec.pad_id).items()}
            layout = TokenLayout.of(inputs["attention_mask"])
            embedded = ranker.module.embed(layout, inputs["input_ids"], inputs.get("token_type_ids"))
            batches.append((rows, layout, embedded))
    return batches


def _leave_one_out(
    module: Encoder, batches: list[_Batch], kept: list[int], trials: Sequence[int | None], n_pairs: int
) -> dict[int | None, np.ndarray]:
    """Return the scores without each trial layer (None: with all kept); states before the layer are computed once."""
    scores: dict[int | None, np.ndarray] = {trial: np.empty(n_pairs) for trial in trials}
    for rows, layout, values in batches:
        for place, layer in enumerate([*kept, None]):
            if layer in scores:
                scores[layer][rows] = _finish(module, layout, values, kept[place + 1 :])
            if layer is not None:
                values = module.layers[layer](values, layout)
    return scores


def _finish(module: Encoder, layout: TokenLayout, values: Tensor, layers: list[int]) -> np.ndarray:
    for layer in layers:
        values = module.layers[layer](values, layout)
    return module.head(module.pool(values, layout, first_only=False))[:, 0].numpy()
