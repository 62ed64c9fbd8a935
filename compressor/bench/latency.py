"""Latency of several rows, in interleaved rounds.

A machine's speed drifts: clocks, neighbors, caches. So all rows stand loaded side by side, each in its own process,
and take turns: one query to every row, in an order drawn anew, then the next query. A ratio of two rows is taken
within one such turn, seconds apart, and what drifts from turn to turn cancels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.bench.machine import cpu_seconds
from compressor.bench.rows import RowSpec
from compressor.bench.schema import Latency
from compressor.bench.speed_ratios import speedup
from compressor.bench.worker_process import WorkerProcess
from compressor.bench.workload import TimedQuery
from compressor.gate_settings import BenchSettings
from compressor.progress import progress

# Thread pools may spin on for some milliseconds after their work; the next row must not pay for it.
_SETTLE_S = 0.02
_FEWEST_ROUNDS, _FEWEST_QUERIES = 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTimes:
    """What one row took at one thread count.

    Attributes:
        tokenize_s, forward_s: float64 [rounds, queries].
        scores: per timed query, float32 [k], from the first round.
        lengths: tokens of every pair of the workload.
        stages: of a cascade, how many stages each of these pairs passed.
    """

    tokenize_s: np.ndarray
    forward_s: np.ndarray
    scores: list[np.ndarray]
    lengths: np.ndarray
    load_s: float
    import_s: float
    peak_memory_bytes: int
    weights_path: str
    stages: np.ndarray | None = None

    @property
    def stage_shares(self) -> list[float] | None:
        """Share of the pairs that went on behind each stage of a cascade."""
        if self.stages is None or not len(self.stages):
            return None
        return [float((self.stages > stage).mean()) for stage in range(int(self.stages.max()))]

    @property
    def total_s(self) -> np.ndarray:
        """Seconds per query, float64 [rounds, queries]."""
        return self.tokenize_s + self.forward_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """All rows at one thread count.

    Attributes:
        notes: what was cut to keep the time budget.
        busy_share: share of the machine's CPU time that was taken while every row rested; None if not to be told.
    """

    threads: int
    rows: dict[str, RowTimes]
    notes: tuple[str, ...]
    busy_share: float | None = None


def measure_latency(
    rows: Sequence[RowSpec], workload: Sequence[TimedQuery], settings: BenchSettings, *, threads: int
) -> Timing:
    """Time every row on every query of the workload, in interleaved rounds.

    Raises:
        InputError, RunError: a row cannot be loaded or run; names it.
    """
    with ExitStack() as stack:
        workers = []
        with progress(f"Loading {len(rows)} rows, {threads} thread(s)", len(rows)) as advance:
            for row in rows:
                worker = WorkerProcess(row, threads, padded_batch_pairs=settings.padded_batch_pairs)
                workers.append(stack.enter_context(worker))
                advance()
        turn_s = _warm_up(workers, workload[: settings.warmup_queries])
        plan = plan_rounds(turn_s, len(workload), settings)
        queries = workload[: plan.n_queries]
        _announce(plan, threads)
        tokenize_s = np.zeros((len(rows), plan.rounds, len(queries)))
        forward_s = np.zeros_like(tokenize_s)
        first: list[list[dict[str, Any]]] = [[] for _ in rows]
        rng = np.random.default_rng(settings.seed)
        rest = _Rest()
        turns = plan.rounds * len(queries) * len(rows)
        with progress(f"Timing, {threads} thread(s)", turns) as advance:
            for turn in range(plan.rounds):
                for q, query in enumerate(queries):
                    for r in rng.permutation(len(rows)):
                        reply = workers[r].score(query.pairs)
                        tokenize_s[r, turn, q], forward_s[r, turn, q] = reply["tokenize_s"], reply["forward_s"]
                        if turn == 0:
                            first[r].append(reply)
                        rest.take()
                        advance()
        times = {
            row.name: RowTimes(
                tokenize_s=tokenize_s[r], forward_s=forward_s[r],
                scores=[np.array(reply["scores"], dtype=np.float32) for reply in first[r]],
                lengths=np.concatenate([np.array(reply["lengths"], dtype=np.int64) for reply in first[r]]),
                load_s=workers[r].load_s, import_s=workers[r].import_s,
                peak_memory_bytes=workers[r].peak_memory_bytes(), weights_path=str(workers[r].weights_path),
                stages=_stages(first[r]),
            )
            for r, row in enumerate(rows)
        }  # fmt: skip
    return Timing(threads=threads, rows=times, notes=plan.notes, busy_share=rest.busy_share)


def _stages(replies: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """Return how many stages each pair passed; None of what has no cascade."""
    known = [reply["stages"] for reply in replies if reply["stages"] is not None]
    return np.concatenate([np.array(one, dtype=np.int64) for one in known]) if known else None


class _Rest:
    """Pauses between turns. What runs on the machine meanwhile is not ours."""

    def __init__(self) -> None:
        self._busy_s = self._total_s = 0.0

    def take(self) -> None:
        before = cpu_seconds()
        time.sleep(_SETTLE_S)
        after = cpu_seconds()
        if before and after:
            self._busy_s, self._total_s = self._busy_s + after[0] - before[0], self._total_s + after[1] - before[1]

    @property
    def busy_share(self) -> float | None:
        return min(1.0, max(0.0, self._busy_s / self._total_s)) if self._total_s > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """How many rounds and queries fit the time budget."""

    rounds: int
    n_queries: int
    expected_s: float
    notes: tuple[str, ...] = ()


def plan_rounds(turn_s: float, n_queries: int, settings: BenchSettings) -> RoundPlan:
    """Cut rounds, then queries, until the expected time fits this thread count's share of the budget.

    Args:
        turn_s: seconds for one query on all rows.
    """
    rounds = settings.rounds
    if settings.time_budget_s is not None:
        turns = max(1, int(settings.time_budget_s / len(settings.threads) / max(turn_s, 1e-9)))
        rounds = min(rounds, max(min(_FEWEST_ROUNDS, rounds), turns // n_queries))
        wanted = n_queries
        n_queries = min(wanted, max(min(_FEWEST_QUERIES, wanted), turns // rounds))
        if (rounds, n_queries) != (settings.rounds, wanted):
            note = (
                f"the time budget of {settings.time_budget_s:g} s left room for {rounds} rounds of {n_queries} queries "
                f"({settings.rounds} of {wanted} asked)"
            )
            return RoundPlan(rounds=rounds, n_queries=n_queries, expected_s=turn_s * rounds * n_queries, notes=(note,))
    return RoundPlan(rounds=rounds, n_queries=n_queries, expected_s=turn_s * rounds * n_queries)


def _announce(plan: RoundPlan, threads: int) -> None:
    minutes, seconds = divmod(round(plan.expected_s), 60)
    about = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    print(
        f"{threads} thread(s): {plan.rounds} rounds of {plan.n_queries} queries take about {about}.",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _warm_up(workers: Sequence[WorkerProcess], queries: Sequence[TimedQuery]) -> float:
    """Let every row rank some queries; return the seconds that the last of them took on all rows."""
    turn_s = 0.0
    with progress("Warming up", len(workers) * len(queries)) as advance:
        for query in queries:
            start = time.perf_counter()
            for worker in workers:
                worker.score(query.pairs)
                time.sleep(_SETTLE_S)
                advance()
            turn_s = time.perf_counter() - start
    return turn_s


def latency_figures(timing: Timing, row: str, references: Sequence[str], n_pairs: np.ndarray) -> Latency:
    """Put one row's times into report form.

    Args:
        references: rows that speed-ups refer to; the row itself is left out.
        n_pairs: pairs of each timed query.
    """
    times = timing.rows[row]
    total_s = times.total_s
    p50, p95, p99 = np.quantile(total_s, [0.5, 0.95, 0.99]) * 1e3
    ratios = {name: speedup(timing.rows[name].total_s, total_s) for name in references if name != row}
    return Latency(
        threads=timing.threads,
        p50_ms=_rounded(p50), p95_ms=_rounded(p95), p99_ms=_rounded(p99),
        tokenize_p50_ms=_rounded(np.median(times.tokenize_s) * 1e3),
        forward_p50_ms=_rounded(np.median(times.forward_s) * 1e3),
        pairs_per_s=_rounded(n_pairs[: total_s.shape[1]].sum() * total_s.shape[0] / total_s.sum()),
        load_s=_rounded(times.load_s), import_s=_rounded(times.import_s), peak_memory_bytes=times.peak_memory_bytes,
        speedup={name: _rounded(ratio.ratio) for name, ratio in ratios.items()},
        speedup_interval={name: (_rounded(ratio.low), _rounded(ratio.high)) for name, ratio in ratios.items()},
        samples_ms=[[_rounded(value * 1e3) for value in turn] for turn in total_s],
    )  # fmt: skip


def _rounded(value: float) -> float:
    return round(float(value), 4)
