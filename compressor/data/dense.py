"""Exact search for the nearest vectors: blocked matrix products, no index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.progress import progress

_QUERIES_AT_ONCE = 1024


def nearest(queries: np.ndarray, chunks: Sequence[np.ndarray], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each query, the rows with the largest dot products, and these, best first; ties by row.

    Each chunk is read once; memory holds what a block of queries has with one chunk, and the best so far.

    Args:
        queries: float32 ``[n, width]``.
        chunks: the vectors that are searched, each float32 ``[rows, width]``; rows count on from chunk to chunk.
        depth: how many to return; all where there are fewer.

    Returns:
        Rows, int64 ``[n, depth]``, and dot products, float32 ``[n, depth]``.
    """
    rows = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    first = 0
    with progress("Searching", len(chunks)) as advance:
        for chunk in chunks:
            vectors = np.asarray(chunk)
            own = np.arange(first, first + len(vectors), dtype=np.int64)
            parts = [
                _best(rows[block], scores[block], own, queries[block] @ vectors.T, depth) for block in _blocks(queries)
            ]
            rows = np.concatenate([part for part, _ in parts]) if parts else rows
            scores = np.concatenate([part for _, part in parts]) if parts else scores
            first += len(vectors)
            advance()
    order = np.argsort(-scores, axis=1, kind="stable")  # rows ascend, so that ties stay in their order
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _blocks(queries: np.ndarray) -> list[slice]:
    return [slice(start, start + _QUERIES_AT_ONCE) for start in range(0, len(queries), _QUERIES_AT_ONCE)]


def _best(
    rows: np.ndarray, scores: np.ndarray, new_rows: np.ndarray, new_scores: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best ``depth`` of old and new ones, in the order of their rows; of equal ones the smaller rows."""
    scores = np.concatenate([scores, new_scores], axis=1)
    rows = np.concatenate([rows, np.broadcast_to(new_rows, new_scores.shape)], axis=1)
    if scores.shape[1] <= depth:
        return rows, scores
    last = np.partition(scores, -depth, axis=1)[:, -depth, None]
    better, equal = scores > last, scores == last
    kept = better | (equal & (np.cumsum(equal, axis=1) <= depth - better.sum(axis=1, keepdims=True)))
    shape = (len(scores), depth)
    return rows[kept].reshape(shape), scores[kept].reshape(shape)
