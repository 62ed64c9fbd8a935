from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from compressor.bench.latency import RowTimes, Timing, latency_figures, measure_latency, plan_rounds
from compressor.bench.speed_ratios import speedup
from compressor.bench.worker_process import WorkerProcess
from compressor.bench.workload import choose_workload
from compressor.errors import RunError
from compressor.gate_settings import BenchSettings


def test_rows_take_turns_on_the_same_queries(make_row, make_data, monkeypatch):
    turns = []
    score = WorkerProcess.score

    def watched(self, pairs):
        turns.append((self.row.name, pairs[0][0]))
        return score(self, pairs)

    monkeypatch.setattr(WorkerProcess, "score", watched)
    rows = [make_row(name) for name in ("a", "b", "c")]
    settings = BenchSettings(n_queries=4, rounds=3, warmup_queries=1, candidates=3)
    workload = choose_workload([make_data()], n_queries=4, candidates=3, seed=0)
    timing = measure_latency(rows, workload, settings, threads=1)
    timed = turns[3:]
    assert len(timed) == 3 * 4 * 3
    groups = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert all(len({query for _, query in group}) == 1 for group in groups)
    assert all({name for name, _ in group} == {"a", "b", "c"} for group in groups)
    assert len({tuple(name for name, _ in group) for group in groups}) > 1
    assert [query for _, query in timed[: 4 * 3 : 3]] == [query.pairs[0][0] for query in workload]
    assert timing.rows["a"].total_s.shape == (3, 4)
    assert timing.rows["b"].lengths.shape == (12,)
    assert [len(scores) for scores in timing.rows["c"].scores] == [3, 3, 3, 3]


def test_a_failing_row_ends_the_others_too(make_row, make_data, monkeypatch):
    started = []
    close = WorkerProcess.close

    def noted(self):
        close(self)
        started.append(self._process)

    monkeypatch.setattr(WorkerProcess, "close", noted)
    rows = [make_row("good"), make_row("bad", break_on="query")]
    workload = choose_workload([make_data()], n_queries=2, candidates=3, seed=0)
    with pytest.raises(RunError, match="row 'bad'"):
        measure_latency(rows, workload, BenchSettings(n_queries=2, rounds=1), threads=1)
    assert [process.returncode is not None for process in started] == [True, True]


def test_speedup_is_a_median_of_paired_ratios():
    drift = np.array([[1.0], [3.0], [10.0]])  # the machine slows tenfold; the pairs do not notice
    row = np.array([[1.0, 2.0, 4.0]]) * drift
    found = speedup(row * 2.5, row)
    assert (found.ratio, found.low, found.high) == pytest.approx((2.5, 2.5, 2.5))


def test_one_hiccup_does_not_move_the_speedup():
    row = np.ones((5, 20))
    baseline = np.full((5, 20), 3.0)
    baseline[2, 7] = 500
    assert speedup(baseline, row).ratio == 3
    assert speedup(baseline, row).high == 3


def test_the_interval_covers_the_true_ratio_and_narrows_with_queries():
    rng = np.random.default_rng(0)

    def draw(n_queries):
        per_query = np.exp(rng.normal(0, 0.2, (1, n_queries)))
        noise = np.exp(rng.normal(0, 0.05, (5, n_queries)))
        return speedup(2 * per_query * noise, np.ones((5, n_queries)))

    found = [draw(20) for _ in range(100)]
    assert 80 <= sum(one.low <= 2 <= one.high for one in found) <= 100  # two one-sided 95 % bounds: 90 %
    widths = [np.mean([one.high - one.low for one in (draw(n) for _ in range(10))]) for n in (10, 40, 160)]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


def test_figures_have_units():
    times = RowTimes(
        tokenize_s=np.full((2, 4), 0.001), forward_s=np.full((2, 4), 0.009), scores=[], lengths=np.ones(4, np.int64),
        load_s=0.3, import_s=0.1, peak_memory_bytes=5, weights_path="x",
    )  # fmt: skip
    slow = RowTimes(
        tokenize_s=np.full((2, 4), 0.001), forward_s=np.full((2, 4), 0.039), scores=[], lengths=np.ones(4, np.int64),
        load_s=0.3, import_s=0.1, peak_memory_bytes=5, weights_path="x",
    )  # fmt: skip
    timing = Timing(threads=2, rows={"fast": times, "slow": slow}, notes=())
    found = latency_figures(timing, "fast", ["slow", "fast"], np.full(4, 100))
    assert (found.p50_ms, found.p99_ms, found.tokenize_p50_ms, found.forward_p50_ms) == (10, 10, 1, 9)
    assert found.pairs_per_s == 10_000
    assert found.speedup == {"slow": 4}
    assert found.speedup_interval == {"slow": (4, 4)}
    assert found.samples_ms == [[10, 10, 10, 10]] * 2


@pytest.mark.parametrize(
    ("budget_s", "rounds", "n_queries"),
    [(None, 5, 20), (1000, 5, 20), (120, 3, 20), (60, 2, 15), (10, 2, 5), (0.001, 2, 5)],
)
def test_a_budget_cuts_rounds_then_queries(budget_s, rounds, n_queries):
    settings = BenchSettings(time_budget_s=budget_s, rounds=5, threads=(1, 2))
    plan = plan_rounds(1.0, 20, settings)
    assert (plan.rounds, plan.n_queries) == (rounds, n_queries)
    assert bool(plan.notes) == ((rounds, n_queries) != (5, 20))


def test_a_budget_never_adds_rounds():
    assert plan_rounds(0.001, 3, BenchSettings(time_budget_s=100, rounds=1)).rounds == 1
