"""Faulty files, each with the message that a user sees."""

from __future__ import annotations

import pytest

from compressor.data import load_data
from compressor.data_reference import DataReference
from compressor.errors import EXIT_BAD_INPUT, InputError

TEST = {"collection": "pets", "split": "test"}
RUN = TEST | {"candidates": "runs/first.trec"}
DOCUMENT = '{"_id": "d1", "text": "cats"}\n'

# (name, files in place of the good ones, the message behind the folder's path)
FAULTS = [
    (
        "broken JSON",
        {"corpus": DOCUMENT + '{"_id": "d2", "text": \n'},
        "corpus.jsonl: line 2: found broken JSON (Expecting value at column 23); allowed: one JSON object a line",
    ),
    ("a JSON list", {"corpus": '["d1"]\n'}, "corpus.jsonl: line 1: found a JSON list; allowed: one JSON object a line"),
    ("no id", {"corpus": '{"id": "d1", "text": "x"}\n'}, "corpus.jsonl: line 1: found no key '_id' among 'id', 'text'"),
    ("no text", {"queries": '{"_id": "q1"}\n'}, "queries.jsonl: line 1: found no key 'text' among '_id'"),
    (
        "a number as id",
        {"queries": '{"_id": 1, "text": "x"}\n'},
        "queries.jsonl: line 1: found '_id' is 1; allowed: a string; put it in quotes",
    ),
    (
        "a list as text",
        {"corpus": '{"_id": "d1", "text": ["a"]}\n'},
        "corpus.jsonl: line 1: found 'text' is [\"a\"]; allowed: a string; put it in quotes",
    ),
    (
        "a number as title",
        {"corpus": '{"_id": "d1", "title": 7, "text": "a"}\n'},
        "corpus.jsonl: line 1: found 'title' is 7; allowed: a string",
    ),
    (
        "an empty id",
        {"corpus": '{"_id": "", "text": "a"}\n'},
        "corpus.jsonl: line 1: found an empty '_id'; allowed: a string of at least one character",
    ),
    (
        "an empty document",
        {"corpus": DOCUMENT + '\n{"_id": "d2", "title": " ", "text": ""}\n'},
        "corpus.jsonl: line 3: found the document 'd2' without text; remove the line, or set 'skip_empty: true'",
    ),
    (
        "an empty query",
        {"queries": '{"_id": "q1", "text": " "}\n'},
        "queries.jsonl: line 1: found the query 'q1' without text; remove the line",
    ),
    (
        "a document id twice",
        {"corpus": DOCUMENT + '{"_id": "d2", "text": "b"}\n' + DOCUMENT},
        "corpus.jsonl: line 3: found the document id 'd1' again; allowed: unique ids; line 1 has it already",
    ),
    (
        "a query id twice",
        {"queries": '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n'},
        "queries.jsonl: line 2: found the query id 'q1' again; allowed: unique ids; line 1 has it already",
    ),
    ("an empty corpus", {"corpus": "\n"}, "corpus.jsonl: found an empty file; allowed: one document a line"),
    ("an empty query file", {"queries": ""}, "queries.jsonl: found an empty file; allowed: one query a line"),
    ("no query file", {"queries": None}, "queries.jsonl: found no such file"),
    (
        "an unknown query in qrels",
        {"test": "q1 0 d1 1\nQ2 0 d1 1\n"},
        "qrels/test.tsv: line 2: found the query id 'Q2'; allowed: ids of queries.jsonl; did you mean 'q2'?",
    ),
    (
        "an unknown document in qrels",
        {"test": "q1\td9\t1\n"},
        "qrels/test.tsv: line 1: found the document id 'd9'; allowed: ids of corpus.jsonl",
    ),
    (
        "a grade that is no number",
        {"test": "query-id\tcorpus-id\tscore\nq1\td1\tgood\n"},
        "qrels/test.tsv: line 2: found the grade 'good'; allowed: a whole number",
    ),
    (
        "a fraction as grade",
        {"test": "q1\td1\t0.5\n"},
        "qrels/test.tsv: line 1: found the grade '0.5'; allowed: a whole number",
    ),
    (
        "two columns of qrels",
        {"test": "q1\td1\n"},
        "qrels/test.tsv: line 1: found 2 columns; allowed: query, document, grade; or query, 0, document, grade",
    ),
    (
        "two grades for a pair",
        {"test": "q1 0 d1 1\nq1 0 d1 2\n"},
        "qrels/test.tsv: line 2: found grade 2 for the query 'q1' and the document 'd1'; "
        "allowed: one grade a pair; line 1 says 1",
    ),
    (
        "qrels without judgments",
        {"test": "query-id\tcorpus-id\tscore\n"},
        "qrels/test.tsv: found no judgments; allowed: query-id, corpus-id, score; "
        "a split needs at least one judged query",
    ),
]
RUN_FAULTS = [
    (
        "an unknown document",
        "q1 Q0 d1 1 2.0 x\nq1 Q0 D2 2 1.0 x\nq2 Q0 d2 1 1.0 x\n",
        "line 2: found the document id 'D2'; allowed: ids of the corpus; did you mean 'd2'?",
    ),
    ("five columns", "q1 Q0 d1 1 2.0\n", "line 1: found 5 columns; allowed: 6, 3 or 2 (a TREC or MS MARCO run)"),
    ("columns that change", "q1 Q0 d1 1 2.0 x\nq2 d2 1\n", "line 2: found 3 columns; allowed: 6 as above"),
    ("a score in words", "q1 Q0 d1 1 high x\n", "line 1: found the score 'high'; allowed: a finite number"),
    ("a NaN score", "q1 Q0 d1 1 nan x\n", "line 1: found the score 'nan'; allowed: a finite number"),
    ("a rank in words", "q1\td1\tfirst\n", "line 1: found the rank 'first'; allowed: a whole number"),
    (
        "a document twice",
        "q1 d1 1\nq1 d1 2\n",
        "line 2: found the document 'd1' again for the query 'q1'; it stands in line 1 already",
    ),
    ("a query without candidates", "q1 d1\n", "query 'q2': found no candidates; allowed: every query of the split"),
    ("other queries", "x d1\n", "found no query of pets/test; allowed: query ids like 'q1', 'q2'"),
    ("nothing", "", "found an empty run"),
]


@pytest.mark.parametrize(("name", "files", "message"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_faulty_collection_is_refused_with_file_and_line(beir, name, files, message, tmp_path):
    folder = beir(train=None, **files)
    with pytest.raises(InputError) as error:
        load_data(DataReference.model_validate(TEST), base=tmp_path)
    assert f"{folder}/{message}" in str(error.value).splitlines()
    assert error.value.exit_code == EXIT_BAD_INPUT


@pytest.mark.parametrize(("name", "run", "message"), RUN_FAULTS, ids=[fault[0] for fault in RUN_FAULTS])
def test_a_faulty_run_is_refused_with_file_and_line(beir, name, run, message, tmp_path):
    folder = beir(run=run)
    with pytest.raises(InputError) as error:
        load_data(DataReference.model_validate(RUN), base=tmp_path)
    lines = str(error.value).splitlines()
    assert any(line.startswith(f"{folder}/runs/first.trec: {message}") for line in lines)


def test_bytes_that_are_not_utf8_are_a_fault_of_their_line(beir, tmp_path):
    folder = beir()
    (folder / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"queries.jsonl: line 1: found bytes that are not UTF-8 .*; save the file as"):
        load_data(DataReference.model_validate(TEST), base=tmp_path)


def test_all_faults_of_all_files_are_told_at_once(beir, tmp_path):
    beir(corpus=DOCUMENT + "{\n", queries='{"_id": "q1", "text": ""}\n', test="q1\td1\t1\nq7\td1\t1\n")
    with pytest.raises(InputError) as error:
        load_data(DataReference.model_validate(TEST), base=tmp_path)
    places = [(str(fault.source).rsplit("/", 1)[-1], fault.where) for fault in error.value.faults]
    assert places == [("corpus.jsonl", "line 2"), ("queries.jsonl", "line 1"), ("test.tsv", "line 2")]


def test_a_flood_of_faults_is_cut_and_counted(beir, tmp_path):
    beir(corpus="broken\n" * 100)
    with pytest.raises(InputError) as error:
        load_data(DataReference.model_validate(TEST), base=tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    # 100 broken lines, and three judgments on documents that are not there
    assert lines[-1].endswith("found 83 more faults of this collection")
