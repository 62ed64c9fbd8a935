"""Scores of every pair of the data, once per row, kept on disk.

A query's candidates are scored together, as they are served: with dynamic int8 a score depends on its batch mates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.bench.rows import RowSpec, row_fingerprint
from compressor.bench.worker_process import WorkerProcess
from compressor.bench.workload import query_pairs
from compressor.errors import RunError
from compressor.gate_settings import BenchSettings
from compressor.progress import progress
from compressor.storage import sha256_json

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData

_FLUSH_INTERVAL_S = 5.0


def score_data(
    row: RowSpec, data: Sequence[RankingData], settings: BenchSettings, *, threads: int, cache: Path | None
) -> dict[str, dict[str, np.ndarray]]:
    """Score all candidates of all queries; return data name → query id → float32 [k], in first-stage order.

    With a ``cache`` folder, scores that are there are not computed again, and a run that dies keeps what it has.

    Raises:
        InputError, RunError: the row cannot be loaded or run; names it.
    """
    fingerprint = row_fingerprint(row) if cache else ""
    scores = {}
    with ExitStack() as stack:
        worker: WorkerProcess | None = None
        for one in data:
            queries = {query: one.candidates[query][: settings.candidates] for query in one.queries
                       if one.candidates.get(query)}  # fmt: skip
            starts = np.cumsum([0, *map(len, queries.values())])
            values = _open_store(cache, [fingerprint, one.fingerprint, settings.candidates, _batching(row, settings)],
                                 int(starts[-1]))  # fmt: skip
            spans = {query: slice(starts[i], starts[i + 1]) for i, query in enumerate(queries)}
            missing = [query for query, span in spans.items() if np.isnan(values[span]).any()]
            if missing and worker is None:
                opened = WorkerProcess(row, threads, padded_batch_pairs=settings.padded_batch_pairs)
                worker = stack.enter_context(opened)
            if missing and worker is not None:
                _fill(worker, one, missing, spans, values, settings.candidates)
            scores[one.name] = {query: np.array(values[span]) for query, span in spans.items()}
    return scores


def _fill(
    worker: WorkerProcess, data: RankingData, missing: Sequence[str], spans: dict[str, slice], values: np.ndarray,
    candidates: int,
) -> None:  # fmt: skip
    flushed = time.monotonic()
    with progress(f"Scoring {data.name}, {worker.row.name}", sum(_size(spans[query]) for query in missing)) as advance:
        for query in missing:
            found = np.array(worker.score(query_pairs(data, query, candidates))["scores"], dtype=np.float32)
            if not np.isfinite(found).all():
                raise RunError(f"row {worker.row.name!r}: NaN or infinite scores for query {query!r} of {data.name}")
            values[spans[query]] = found
            advance(_size(spans[query]))
            if isinstance(values, np.memmap) and time.monotonic() - flushed > _FLUSH_INTERVAL_S:
                values.flush()
                flushed = time.monotonic()
    if isinstance(values, np.memmap):
        values.flush()


def _open_store(cache: Path | None, key: list[object], n_pairs: int) -> np.ndarray:
    """Return float32 [n_pairs], NaN where a score is still missing."""
    if cache is None or not n_pairs:
        return np.full(n_pairs, np.nan, np.float32)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{sha256_json(key)}.npy"
    if path.is_file():
        try:
            stored = np.load(path, mmap_mode="r+", allow_pickle=False)
            if stored.dtype == np.float32 and stored.shape == (n_pairs,):
                return stored
        except (ValueError, EOFError):
            pass  # a file cut short by a crash is written anew
    partial = path.with_suffix(".partial")
    store = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(n_pairs,))
    store[:] = np.nan
    store.flush()
    partial.replace(path)  # the mapping stays with the file under its new name
    return store


def _batching(row: RowSpec, settings: BenchSettings) -> int:
    return 0 if row.is_graph else settings.padded_batch_pairs


def _size(span: slice) -> int:
    return int(span.stop - span.start)
