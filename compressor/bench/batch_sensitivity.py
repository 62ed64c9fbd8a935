"""How far a pair's score moves with its batch mates.

A score should not depend on who else is in the batch. Dynamic int8 breaks this, because it takes one activation scale
per batch; padding breaks it where a model lets padding leak.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.bench.rows import RowSpec
from compressor.bench.schema import BatchSensitivity
from compressor.bench.worker_process import WorkerProcess
from compressor.bench.workload import TimedQuery

_PROBES = 16
_MATES = 8


def batch_sensitivity(
    row: RowSpec, workload: Sequence[TimedQuery], score_std: float, *, threads: int
) -> BatchSensitivity:
    """Score short pairs alone and in one batch with the longest pairs of the workload, and compare.

    Args:
        score_std: standard deviation of the row's scores within a query, the yardstick of the shift.
    """
    pairs = sorted({pair for query in workload for pair in query.pairs}, key=lambda pair: len(pair[0]) + len(pair[1]))
    half = max(1, len(pairs) // 2)
    probes = [pairs[i] for i in np.unique(np.linspace(0, half - 1, min(_PROBES, half)).astype(int))]
    mates = pairs[half:][-_MATES:]
    with WorkerProcess(row, threads) as worker:
        alone = np.array([worker.score_in_one_batch([probe])[0] for probe in probes])
        together = np.array(worker.score_in_one_batch([*probes, *mates])[: len(probes)])
    shifts = np.abs(alone - together)
    largest = float(shifts.max())
    return BatchSensitivity(
        n_pairs=len(probes),
        max_shift=largest,
        mean_shift=float(shifts.mean()),
        max_shift_share=largest / score_std if score_std > 0 else None,
    )
