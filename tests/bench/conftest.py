"""Rows without models, and data whose measures can be worked out by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.bench import latency, worker_process
from compressor.bench.rows import RowSpec
from compressor.data import RankingData

MakeRow = Callable[..., RowSpec]


@pytest.fixture
def make_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRow:
    """Make a row folder whose process is `fake_worker.py`; keywords that are no field of the row go to its config."""
    script = Path(__file__).with_name("fake_worker.py")
    monkeypatch.setattr(worker_process, "_COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(latency, "_SETTLE_S", 0.0)

    def make(name: str, *, kind: str = "ranker", scores_of: str | None = None, **config: Any) -> RowSpec:
        folder = tmp_path / "rows" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.onnx").write_bytes(b"\x00" * 1000)
        return RowSpec(name=name, kind=kind, folder=folder, scores_of=scores_of)

    return make


@pytest.fixture
def make_data() -> Callable[..., RankingData]:
    """Make a data set of ``n_queries`` queries with ``k`` candidates each; one of them is relevant."""

    def make(name: str = "made/test", n_queries: int = 24, k: int = 6, judged: bool = True) -> RankingData:
        queries = {f"q{i}": f"{name} query {i}" for i in range(n_queries)}
        documents = {f"d{i}": "word " * (i % 7 + 1) + str(i) for i in range(n_queries * k)}
        candidates = {query: [f"d{i * k + j}" for j in range(k)] for i, query in enumerate(queries)}
        qrels = {query: {found[i % k]: 1} for i, (query, found) in enumerate(candidates.items())} if judged else {}
        return RankingData(
            name=name, collection=name, first_stage="made", queries=queries, documents=documents, qrels=qrels,
            candidates=candidates,
        )  # fmt: skip

    return make
