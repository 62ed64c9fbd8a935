from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from compressor.bench import worker_process
from compressor.bench.worker_process import WorkerProcess
from compressor.errors import InputError, RunError


def test_scores_come_back_exactly_and_prints_do_not_disturb(make_row):
    row = make_row("one")
    with WorkerProcess(row, 2) as worker:
        first, again = worker.score([("a", "b c"), ("a", "d")]), worker.score([("a", "b c")])
        assert first["scores"][0] == again["scores"][0]
        assert first["lengths"] == [5, 4]
        assert (worker.load_s, worker.import_s) == (0.5, 0.25)
        assert worker.weights_path == row.folder / "model.onnx"


def test_memory_is_the_process_s_own(make_row):
    ballast = bytearray(200_000_000)  # a child must not inherit its parent's peak
    with WorkerProcess(make_row("one"), 1) as worker:
        assert 1e6 < worker.peak_memory_bytes() < len(ballast)


def test_every_thread_pool_is_limited(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = worker_process._environment(3)
    assert {found[name] for name in worker_process._THREAD_VARIABLES} == {"3"}
    assert found["HF_HUB_OFFLINE"] == "1"


def test_a_refused_folder_is_bad_input_that_names_the_row(make_row):
    with pytest.raises(InputError, match=r"^row 'bad': .*/bad: found a model that nobody can load$"):
        WorkerProcess(make_row("bad", refuse=True), 1)


def test_a_failing_model_names_the_row(make_row):
    with WorkerProcess(make_row("bad", break_on="poison"), 1) as worker:
        with pytest.raises(RunError, match="row 'bad': the graph failed"):
            worker.score([("poison", "b")])
        assert len(worker.score([("fine", "b")])["scores"]) == 1


def test_a_process_that_dies_leaves_its_last_words(make_row):
    with (
        WorkerProcess(make_row("bad", break_on="poison", how="die"), 1) as worker,
        pytest.raises(RunError, match=r"row 'bad': its process died \(exit code 7; last words of a dying model\)"),
    ):
        worker.score([("poison", "b")])


def test_the_process_ends_with_its_block(make_row):
    with WorkerProcess(make_row("one"), 1) as worker:
        process = worker._process
    assert process.returncode is not None


def test_the_real_worker_answers_line_by_line_and_imports_no_torch():
    requests = [{"do": "memory"}, {"do": "score", "pairs": []}, {"do": "dance", "pairs": []}]
    code = (
        "import sys, compressor.bench.worker as w; w.serve(sys.stdin, sys.stdout);"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    answered = subprocess.run(
        [sys.executable, "-c", code], input="".join(json.dumps(one) + "\n" for one in requests), text=True,
        capture_output=True, check=True, env={**os.environ, **worker_process._environment(1)},
    )  # fmt: skip
    memory, unloaded, _ = map(json.loads, answered.stdout.splitlines())
    assert memory["ok"]["peak_bytes"] > 1e6
    assert unloaded["error"] == {"message": "ValueError: nothing is loaded yet"}
