"""A report made by hand, for the gate and the page."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.bench.schema import (
    Agreed,
    BatchSensitivity,
    DataSummary,
    HistoryEntry,
    Latency,
    Machine,
    Measured,
    Report,
    Row,
    Workload,
)  # fmt: skip
from compressor.bench.speed_ratios import speedup
from compressor.gate_settings import BenchSettings

DATA = "hand/test"


def made_row(
    name: str, values: list[float], teacher: list[float], *, kind: str = "ranker", speed: float = 1.0,
    tau: list[float] | None = None, noise: float = 0.0, n_timed: int = 20, size_bytes: int | None = 30_000_000,
    data: str = DATA,
) -> Row:  # fmt: skip
    """Make a row that is ``speed`` times as fast as the baseline's 100 ms, give or take ``noise``."""
    n = len(values)
    tau = tau or [1.0] * n
    jitter = 1 + noise * np.random.default_rng(0).normal(size=(5, n_timed))
    seconds = 0.1 / speed * jitter
    latencies = []
    for threads in (1, 2):
        found = speedup(np.full((5, n_timed), 0.1), seconds)
        against = {"stock_onnx_fp32": found} if name != "stock_onnx_fp32" else {}
        latency = Latency(
            threads=threads, p50_ms=100 / speed, p95_ms=110 / speed, p99_ms=120 / speed, tokenize_p50_ms=1,
            forward_p50_ms=100 / speed - 1, pairs_per_s=1000 * speed, load_s=0.2, import_s=0.1,
            peak_memory_bytes=200_000_000, speedup={other: one.ratio for other, one in against.items()},
            speedup_interval={other: (one.low, one.high) for other, one in against.items()},
            samples_ms=(seconds * 1e3).tolist(),
        )  # fmt: skip
        latencies.append(latency)
    mean, reference = float(np.mean(values)), float(np.mean(teacher))
    quality = Measured(
        mean=mean, loss=reference - mean, loss_share=(reference - mean) / reference if reference else None,
        loss_bound=0.01, per_query=values,
    )  # fmt: skip
    agreement = {
        "kendall_tau": Agreed(mean=float(np.mean(tau)), bound=0.9, per_query=tau),
        "overlap@10": Agreed(mean=1.0, bound=1.0, per_query=[1.0] * n),
        "score_rmse": Agreed(mean=0.2, bound=0.2, per_query=[0.04] * n),
    }
    return Row(
        name=name, kind=kind, engine="onnx", folder=f"runs/{name}", file="onnx/model.onnx",
        fingerprint="ab" * 32, quality={data: {"nDCG@10": quality}}, agreement={data: agreement}, tie_rate={data: 0.0},
        latency=latencies, batch_sensitivity=BatchSensitivity(n_pairs=8, max_shift=0.1, mean_shift=0.05,
        max_shift_share=0.03), size_bytes=size_bytes, parameters=22_000_000, macs_per_pair=1.1e9, macs_scope="all",
    )  # fmt: skip


def made_report(*rows: Row, teacher: str = "stock_onnx_fp32", judged: bool = True, **changes: Any) -> Report:
    """Make a report whose first data set has as many queries as the first row has values."""
    data = next(iter(rows[0].agreement))
    n = len(rows[0].agreement[data]["kendall_tau"].per_query)
    ids = [f"q{i}" for i in range(n)]
    fields: dict[str, Any] = {
        "title": "made by hand", "created": "2026-01-01T00:00:00+00:00", "teacher": teacher,
        "settings": BenchSettings(measures=("nDCG@10",)),
        "machine": Machine(cpu="A CPU", isa=["avx2"], logical_cpus=2, available_threads=2, os="Linux",
                           architecture="x86_64", versions={"rankpress": "0.1.0"}),
        "data": {data: DataSummary(fingerprint="cd" * 32, first_stage="made", n_queries=n, n_pairs=10 * n,
                                   candidates=10, judged_ids=ids if judged else [], agreement_ids=ids)},
        "workload": Workload(n_queries=20, n_pairs=2000, rounds=5, mean_tokens=90.0, p95_tokens=160.0),
        "rows": list(rows),
        "history": [HistoryEntry(verb="drop_layers", settings={"keep": "every_other"}, seconds=2.0)],
    }  # fmt: skip
    return Report(**{**fields, **changes})
