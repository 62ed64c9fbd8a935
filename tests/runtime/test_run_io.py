from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.errors import InputError, RunError
from compressor.runtime import OnnxRanker
from compressor.runtime.run_io import RankSummary, rank_file
from tests.runtime.tiny_folder import UNK, graph, tables, write_folder

DOCUMENTS = ["the red sea", "iron attracts", "the blue moon", "magnets work", "bread"]
REQUESTS: list[dict[str, Any]] = [
    {"query_id": "q1", "query": "how do magnets work", "documents": DOCUMENTS},
    {"query_id": "q2", "query": "red sun", "documents": [{"id": "d1", "text": "moon"}, {"id": "d2", "text": "sea"}]},
]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in REQUESTS))
    return path


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def columns(run: str) -> list[list[str]]:
    return [line.split(" ") for line in run.splitlines()]


def test_trec_run(folder: Path, ranker: OnnxRanker, requests: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "run.trec"
    summary = rank_file(folder, requests, output, tag="mine")
    assert summary == RankSummary(n_queries=2, n_pairs=7)
    expected = ranker.rank("how do magnets work", DOCUMENTS)
    lines = columns(output.read_text())
    assert [line[:4] for line in lines[:5]] == [
        ["q1", "Q0", str(item.index), str(i)] for i, item in enumerate(expected, 1)
    ]
    np.testing.assert_allclose([float(line[4]) for line in lines[:5]], [item.score for item in expected], rtol=1e-6)
    assert {line[5] for line in lines} == {"mine"}
    assert sorted(line[2] for line in lines[5:]) == ["d1", "d2"]
    assert sorted(tmp_path.iterdir()) == sorted([output.parent, requests])  # no partial file stays


def test_tied_scores_strictly_decrease_in_first_stage_order(folder: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "in.tsv", tmp_path / "run.trec"
    path.write_text("".join(f"q1\tred\t{name}\tsea\n" for name in "zaybx") + "q1\tred\tother\tsun\n")
    rank_file(folder, path, output)
    lines = columns(output.read_text())
    assert [line[2] for line in lines if line[2] != "other"] == list("zaybx")
    written = [np.float32(line[4]) for line in lines]
    assert all(better > worse for better, worse in pairwise(written))
    tied = [score for line, score in zip(lines, written, strict=True) if line[2] != "other"]
    assert tied[0] - tied[-1] < 1e-6


def test_jsonl_keeps_the_scores(folder: Path, ranker: OnnxRanker, tmp_path: Path) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(json.dumps({"query": "red", "documents": ["sea", {"id": "ü 1", "text": "sun"}, "sea"]}) + "\n")
    rank_file(folder, path, output, format="jsonl")
    (line,) = output.read_text(encoding="utf-8").splitlines()
    ranking = ranker.rank("red", ["sea", "sun", "sea"])
    ids = ["0", "ü 1", "2"]
    found = json.loads(line)
    assert found["query_id"] == "1"
    assert [(d["id"], d["index"], d["rank"]) for d in found["documents"]] == [
        (ids[item.index], item.index, rank) for rank, item in enumerate(ranking, 1)
    ]
    np.testing.assert_allclose([d["score"] for d in found["documents"]], [item.score for item in ranking], rtol=1e-6)
    assert "ü 1" in line


def test_top_k_and_another_file_of_the_folder(
    requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "m")
    write_folder(folder, graph(weights=tables(seed=1)), file="onnx/other.onnx")
    rank_file(folder, requests, None, top_k=1, file="onnx/other.onnx", threads=1)
    lines = columns(capsys.readouterr().out)
    best = OnnxRanker.load(folder, file="onnx/other.onnx").rank("how do magnets work", DOCUMENTS, top_k=1)
    assert [line[:4] for line in lines] == [["q1", "Q0", str(best[0].index), "1"], ["q2", "Q0", lines[1][2], "1"]]


def test_a_ranking_does_not_depend_on_the_other_queries_of_the_file(
    folder: Path, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rank_file(folder, requests, None)
    together = capsys.readouterr().out
    alone = ""
    for request in REQUESTS:
        (tmp_path / "one.jsonl").write_text(json.dumps(request) + "\n")
        rank_file(folder, tmp_path / "one.jsonl", None)
        alone += capsys.readouterr().out
    assert together == alone


def test_standard_input_to_standard_output(
    folder: Path, requests: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank_file(folder, requests, None)
    from_file = capsys.readouterr().out
    feed(monkeypatch, requests.read_bytes())
    rank_file(folder, None, None)
    assert [line[:4] for line in columns(capsys.readouterr().out)] == [line[:4] for line in columns(from_file)]


def test_a_pipe_is_answered_query_by_query(folder: Path, repository: Path) -> None:
    code = (
        "import sys; from compressor.runtime.run_io import rank_file as f; f(sys.argv[1], None, None, format='jsonl')"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for request in REQUESTS:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["query_id"] == request["query_id"]
        process.stdin.close()
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("n_queries", [1, 3000])
def test_a_reader_that_goes_away_ends_it_quietly(folder: Path, repository: Path, n_queries: int) -> None:
    lines = "".join(json.dumps({**REQUESTS[0], "query_id": str(i)}) + "\n" for i in range(n_queries))
    command = [sys.executable, "cli.py", "rank", str(folder)]
    with subprocess.Popen(
        command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(lines)
            process.stdin.close()
        said = process.stderr.read()
        assert process.wait(timeout=30) == 141
    assert "rror" not in said
    assert "Traceback" not in said


def test_a_named_pipe_is_read_once(folder: Path, requests: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes(requests.read_bytes()))
    writer.start()
    assert rank_file(folder, pipe, tmp_path / "run.trec").n_queries == 2
    writer.join()


def test_cut_queries_are_counted_and_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.tsv"
    path.write_text(f"{'sun ' * 90}\tsea\nred\t{'sea ' * 90}\n")
    summary = rank_file(folder, path, tmp_path / "run.trec")
    assert summary == RankSummary(n_queries=2, n_pairs=2, n_cut_documents=1, n_cut_queries=1)
    assert "note: 1 of 2 pairs had a query so long that it was cut" in capsys.readouterr().err


def message(folder: Path, path: Path | None, output: Path | None = None, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        rank_file(folder, path, output, **settings)  # type: ignore[arg-type]
    return str(caught.value)


def test_argument_faults_come_at_once(folder: Path, tmp_path: Path) -> None:
    assert message(folder, tmp_path / "no.jsonl", tmp_path, format="trek", top_k=0, tag="my run").splitlines() == [
        f"{tmp_path}/no.jsonl: found no such file; allowed: JSONL or TSV, or standard input",
        f"{tmp_path}: found a folder; allowed: the name of the file to write",
        "format: found 'trek'; allowed: trec, jsonl; did you mean 'trec'?",
        "top_k: found 0; allowed: a whole number from 1",
        "tag: found 'my run'; allowed: a name without white space",
    ]
    assert message(folder, tmp_path) == f"{tmp_path}: found a folder; allowed: a JSONL or TSV file"


def test_faults_of_folder_and_input_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("{\n")
    lines = message(tmp_path / "none", path).splitlines()
    assert lines[0].startswith(f"{tmp_path}/none: found no such folder")
    assert lines[1].startswith(f"{path}: line 1: found broken JSON")


def test_a_file_is_checked_before_anything_is_scored(
    folder: Path, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests.write_text(requests.read_text() + "[]\n")
    monkeypatch.setattr(OnnxRanker, "score_encoded", lambda *_, **__: pytest.fail("scored"))
    assert (
        message(folder, requests) == f"{requests}: line 3: found an empty list in JSON; allowed: one JSON object a line"
    )
    assert capsys.readouterr().out == ""


def test_an_error_leaves_the_old_output(
    folder: Path, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "run.trec"
    output.parent.mkdir()
    output.write_text("old")
    feed(monkeypatch, requests.read_bytes() + b"{\n")
    assert message(folder, None, output).startswith("standard input: line 3: found broken JSON")
    weights = tables()
    weights["word"][UNK] = np.nan
    broken = write_folder(tmp_path / "nan", graph(weights=weights))
    requests.write_text(json.dumps({"query": "zebra", "documents": ["sea"]}) + "\n")
    with pytest.raises(RunError, match="NaN or infinite"):
        rank_file(broken, requests, output)
    assert output.read_text() == "old"
    assert list(output.parent.iterdir()) == [output]
