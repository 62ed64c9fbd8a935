"""Calibration texts as embedded batches, from which layers are run one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compressor.errors import RunError
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import BATCH_TOKENS, Ranker
from compressor.ranker.spec import SimilarityHead
from compressor.ranker.tokens import TokenLayout
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.tokenizer import Encoded

Inputs = dict[str, Tensor]


class CalibrationBatch(NamedTuple):
    """Some rows of the calibration set.

    Attributes:
        rows: int64 ``[B]``, their places in the set.
        inputs: what the encoder is fed, padded ``[B, S]``.
        layout: where their tokens stand.
        embedded: the packed embeddings ``[T, width]``; no padding is among them.
    """

    rows: np.ndarray
    inputs: Inputs
    layout: TokenLayout
    embedded: Tensor


def calibration_batches(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> list[CalibrationBatch]:
    """Embed pairs in batches of similar length; of a bi-encoder all queries' rows, then all documents'.

    Raises:
        RunError: the ranker has token rules: layers that are run one by one all see the same tokens.
    """
    if ranker.spec.rule_layers:
        raise RunError("layers are run one by one here, and token rules would not be heeded")
    batches = []
    with torch.inference_mode():
        for rows, inputs in _fed(ranker, pairs):
            layout = ranker.module.lay_out(inputs["input_ids"], inputs["attention_mask"])
            embedded = ranker.module.embed(layout, inputs["input_ids"], inputs.get("token_type_ids"))
            batches.append(CalibrationBatch(rows, inputs, layout, embedded))
    return batches


def calibration_inputs(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> list[Inputs]:
    """Return what the encoder is fed for pairs, in batches of similar length, padded ``[B, S]``.

    Whoever runs the whole encoder on them heeds its token rules.
    """
    return [inputs for _, inputs in _fed(ranker, pairs)]


def _fed(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[np.ndarray, Inputs]]:
    encoded = _encoded(ranker, pairs)
    for rows in token_budget_batches(encoded.lengths, BATCH_TOKENS):
        yield rows, {k: torch.from_numpy(v) for k, v in padded(encoded, rows, ranker.spec.pad_id).items()}


def _encoded(ranker: Ranker, pairs: Sequence[tuple[str, str]]) -> Encoded:
    if isinstance(ranker.spec.head, SimilarityHead):
        return ranker.tokenizer.encode_texts([query for query, _ in pairs] + [document for _, document in pairs])
    return ranker.tokenizer.encode_pairs(pairs)


def run_layers(module: Encoder, batch: CalibrationBatch, values: Tensor, layers: Sequence[int]) -> Tensor:
    """Return packed states ``[T, width]`` after some of the layers."""
    for layer in layers:
        values = module.layers[layer](values, batch.layout)
    return values


def scores_from(
    module: Encoder, batches: Sequence[CalibrationBatch], states: Sequence[Tensor], begin: int, n_pairs: int
) -> np.ndarray:
    """Return the scores float32 ``[n_pairs]`` when the layers run from one of them on, the last as the ranker does.

    Args:
        module: the ranker.
        batches: the set.
        states: for each batch, what goes into the layer, packed ``[T, width]``.
        begin: the layer.
        n_pairs: pairs in the set.
    """
    last = len(module.layers) - 1
    first_only = module.spec.reads_first_token_only
    results = []
    for batch, values in zip(batches, states, strict=True):
        below = run_layers(module, batch, values, range(begin, last))
        pooled = module.pool(module.layers[last](below, batch.layout, first_only), batch.layout, first_only)
        results.append(module.head(pooled).numpy())
    return scores_of(batches, results, n_pairs)


def head_result(module: Encoder, batch: CalibrationBatch, values: Tensor) -> np.ndarray:
    """Return what the head makes of a batch's last states: logits ``[B, 1]``, or vectors ``[B, width]``."""
    return module.head(module.pool(values, batch.layout, first_only=False)).numpy()


def scores_of(batches: Sequence[CalibrationBatch], results: Sequence[np.ndarray], n_pairs: int) -> np.ndarray:
    """Return the scores float32 ``[n_pairs]``, in the set's order, of each batch's head result."""
    gathered = np.empty((sum(map(len, results)), results[0].shape[1]), dtype=np.float32)
    for batch, result in zip(batches, results, strict=True):
        gathered[batch.rows] = result
    if len(gathered) == n_pairs:
        return gathered[:, 0]
    return (gathered[:n_pairs] * gathered[n_pairs:]).sum(axis=1)  # a bi-encoder's
