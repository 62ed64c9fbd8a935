"""Which order a run has, and which judgments a qrels file."""

from __future__ import annotations

import pytest

from compressor.data.fault_list import FaultList
from compressor.data.trec import read_qrels, read_run, write_run
from compressor.errors import InputError

RUNS = {
    "the score decides, not the rank": ("q Q0 a 1 1.0 t\nq Q0 b 2 3.0 t\nq Q0 c 3 2e0 t\n", ["b", "c", "a"]),
    "equal scores go by rank": ("q Q0 a 3 1.0 t\nq Q0 b 2 1.0 t\nq Q0 c 1 1.0 t\n", ["c", "b", "a"]),
    "equal ranks go by id": ("q Q0 b 1 1.0 t\nq Q0 a 1 1.0 t\n", ["a", "b"]),
    "ranks are numbers, not words": ("q Q0 a 10 1.0 t\nq Q0 b 9 1.0 t\n", ["b", "a"]),
    "three columns go by rank": ("q\ta\t2\nq\tb\t1\n", ["b", "a"]),
    "two columns go by line": ("q b\nq a\n", ["b", "a"]),
    "negative scores": ("q Q0 a 1 -3 t\nq Q0 b 2 -2 t\n", ["b", "a"]),
}


@pytest.mark.parametrize(("text", "order"), RUNS.values(), ids=RUNS)
def test_the_order_of_a_run(tmp_path, text, order):
    path = tmp_path / "run.trec"
    path.write_text(text, encoding="utf-8")
    faults = FaultList()
    assert [place.document for place in read_run(path, faults)["q"]] == order
    assert faults.count == 0


def test_a_place_knows_its_line(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 a 1 1.0 t\n\nq Q0 b 2 3.0 t\n", encoding="utf-8")
    assert [place.line for place in read_run(path, FaultList())["q"]] == [3, 1]


@pytest.mark.parametrize(
    "text",
    ["query-id\tcorpus-id\tscore\nq\td\t2\n", "q\td\t2\n", "q 0 d 2\n", "q\t0\td\t2\n", "q 0 d 2\nq 0 d 2\n"],
    ids=["BEIR", "BEIR without header", "TREC", "TREC with tabs", "the same twice"],
)
def test_the_forms_of_qrels(tmp_path, text):
    path = tmp_path / "qrels"
    path.write_text(text, encoding="utf-8")
    faults = FaultList()
    assert [judgment[1:] for judgment in read_qrels(path, faults)] == [("q", "d", 2)]
    assert faults.count == 0


def test_a_written_run_is_read_back_in_its_order(tmp_path):
    path = tmp_path / "made" / "run.trec"
    write_run(path, {"q2": [("b", 3.0), ("a", 3.0), ("c", 3.0), ("d", -1.5)], "q1": [("a", 0.25)]}, tag="it")
    run = read_run(path, FaultList())
    assert {query: [place.document for place in found] for query, found in run.items()} == {
        "q2": ["b", "a", "c", "d"], "q1": ["a"],
    }  # fmt: skip
    rows = [line.split() for line in path.read_text().splitlines()]
    assert rows[0] == ["q2", "Q0", "b", "1", "3.0", "it"]
    scores = [float(row[4]) for row in rows[:4]]
    assert scores == sorted(set(scores), reverse=True), "evaluators that break ties otherwise see none"


@pytest.mark.parametrize(("query", "document"), [("a query", "d"), ("q", "a\tdocument"), ("q", "")])
def test_ids_that_would_break_columns_are_refused(tmp_path, query, document):
    with pytest.raises(InputError, match="allowed: ids without white space"):
        write_run(tmp_path / "run.trec", {query: [(document, 1.0)]}, tag="it")
    assert not (tmp_path / "run.trec").exists()
