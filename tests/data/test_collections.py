"""BEIR folders: what is read, which queries are taken, and what the fingerprint depends on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from compressor.data import RankingData, load_data
from compressor.data_reference import DataReference
from compressor.errors import InputError


def load(value: object, base: Path, depth: int = 100) -> RankingData:
    return load_data(DataReference.model_validate(value), base=base, depth=depth)


def test_a_split_has_the_queries_of_its_judgments_and_texts_with_titles(beir, tmp_path):
    beir()
    data = load("pets/test", tmp_path)
    assert data.name == "pets/test"
    assert list(data.queries) == ["q1", "q2"]
    assert data.documents["d1"] == "Cats Cats sleep most of the day."
    assert data.documents["d2"] == "Dogs bark at night."
    assert data.qrels == {"q1": {"d1": 2, "d3": 0}, "q2": {"d2": 1}}
    assert data.first_stage == "bm25, depth 100"
    assert data.candidates == {"q1": ["d1", "d3"], "q2": ["d2", "d3"]}


def test_pairs_and_texts_follow_the_candidates(beir, tmp_path):
    beir()
    data = load("pets/test", tmp_path, depth=1)
    assert data.pairs() == [("q1", "d1"), ("q2", "d2")]
    assert data.texts(data.pairs())[1] == ("what do dogs do at night", "Dogs bark at night.")


def test_without_qrels_all_queries_are_taken_unlabelled(beir, tmp_path):
    beir(test=None, train=None)
    data = load("pets", tmp_path)
    assert data.name == "pets"
    assert list(data.queries) == ["q1", "q2", "q3"]
    assert data.qrels == {}


def test_an_unlabelled_collection_with_a_run_has_the_queries_of_the_run(beir, tmp_path):
    beir(test=None, train=None, run="q2 Q0 d4 1 5.0 x\nq2 Q0 d1 2 4.0 x\n")
    data = load({"collection": "pets", "candidates": "runs/first.trec"}, tmp_path)
    assert data.candidates == {"q2": ["d4", "d1"]}
    assert list(data.queries) == ["q2"]
    assert data.first_stage == "first.trec, depth 100"


def test_trec_qrels_and_windows_line_ends_and_a_byte_order_mark(beir, tmp_path):
    folder = beir(test="q1 0 d1 2\r\nq1 0 d4 -1\r\n")
    corpus = (folder / "corpus.jsonl").read_text(encoding="utf-8")
    (folder / "corpus.jsonl").write_bytes(b"\xef\xbb\xbf" + corpus.replace("\n", "\r\n").encode())
    assert load("pets/test", tmp_path).qrels == {"q1": {"d1": 2, "d4": -1}}


RUNS = ["bm25:2", "runs/first.trec"]


def test_several_first_stages_are_kept_apart_and_taken_in_turn(beir, tmp_path):
    beir(run="q1 Q0 d4 1 5.0 x\nq1 Q0 d3 2 4.0 x\nq1 Q0 d2 3 3.0 x\nq2 Q0 d2 1 5.0 x\n")
    data = load({"collection": "pets", "split": "test", "candidates": RUNS}, tmp_path, depth=3)
    assert data.runs == {
        "bm25": {"q1": ["d1", "d3"], "q2": ["d2", "d3"]},
        "first.trec": {"q1": ["d4", "d3", "d2"], "q2": ["d2"]},
    }
    assert data.candidates == {"q1": ["d1", "d4", "d3", "d2"], "q2": ["d2", "d3"]}
    assert data.first_stage == "bm25, depth 2, in turn with first.trec, depth 3"
    one = load({"collection": "pets", "split": "test"}, tmp_path)
    assert one.runs == {"bm25": one.candidates}
    assert one.fingerprint == replace(one, runs={}).fingerprint


def test_the_query_itself_is_dropped_from_every_run(beir, tmp_path):
    run = "d1 Q0 d1 1 5.0 x\nd1 Q0 d2 2 4.0 x\n"
    beir(queries='{"_id": "d1", "text": "cats sleep"}\n', test="d1 0 d3 1\n", train=None, run=run)
    reference = {"collection": "pets", "split": "test", "candidates": ["bm25:1", "runs/first.trec"]}
    data = load(reference | {"drop_same_id": True}, tmp_path, depth=1)
    assert data.runs == {"bm25": {"d1": ["d3"]}, "first.trec": {"d1": ["d2"]}}


def test_without_judgments_several_runs_have_the_queries_that_all_know(beir, tmp_path):
    folder = beir(test=None, train=None, run="q1 d1\nq2 d2\n")
    (folder / "runs" / "second.trec").write_text("q2 d1\nq3 d2\n", encoding="utf-8")
    data = load({"collection": "pets", "candidates": [*RUNS, "runs/second.trec"]}, tmp_path)
    assert list(data.queries) == ["q2"]
    (folder / "runs" / "second.trec").write_text("q3 d2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"found no query that all of first\.trec, second\.trec know"):
        load({"collection": "pets", "candidates": [*RUNS, "runs/second.trec"]}, tmp_path)


def test_the_faults_of_all_runs_are_named_with_their_files(beir, tmp_path):
    folder = beir(run="q1 Q0 d4 1 high x\n")
    (folder / "runs" / "second.trec").write_text("q1 d1 d2 d3\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        load({"collection": "pets", "split": "test", "candidates": [*RUNS, "runs/second.trec"]}, tmp_path)
    assert [Path(fault.source).name for fault in error.value.faults] == ["first.trec", "second.trec"]
    with pytest.raises(InputError, match=r"absent\.trec; allowed: bm25, bm25:DEPTH or a TREC run file"):
        load({"collection": "pets", "split": "test", "candidates": ["bm25", "absent.trec"]}, tmp_path)


def test_the_depth_of_the_reference_goes_before_that_of_the_caller(beir, tmp_path):
    beir()
    data = load({"collection": "pets", "split": "test", "candidates": "bm25:1"}, tmp_path, depth=50)
    assert data.candidates == {"q1": ["d1"], "q2": ["d2"]}
    assert data.first_stage == "bm25, depth 1"


def test_a_smaller_sample_of_queries_is_a_part_of_a_larger_one(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "word"}\n', encoding="utf-8")
    lines = [f'{{"_id": "q{n}", "text": "word {n}"}}' for n in range(50)]
    (folder / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    samples = [load({"collection": "many", "queries": n}, tmp_path).queries for n in (5, 20, 500)]
    assert [len(sample) for sample in samples] == [5, 20, 50]
    assert set(samples[0]) < set(samples[1]) < set(samples[2])
    assert list(samples[1]) == sorted(samples[1], key=lambda query: int(query[1:])), "the order of the file"
    assert list(samples[0]) != ["q0", "q1", "q2", "q3", "q4"], "a sample, not the head"


def test_queries_can_be_left_out_by_id(beir, tmp_path):
    beir()
    data = load({"collection": "pets", "split": "test", "exclude_queries": ["q1"]}, tmp_path)
    assert list(data.queries) == list(data.candidates) == list(data.qrels) == ["q2"]


def test_documents_with_the_query_s_id_stay_unless_asked(beir, tmp_path):
    beir(queries='{"_id": "d1", "text": "cats sleep"}\n', test="d1 0 d1 1\nd1 0 d3 1\n", train=None)
    assert load("pets/test", tmp_path, depth=1).candidates == {"d1": ["d1"]}
    dropped = load({"collection": "pets", "split": "test", "drop_same_id": True}, tmp_path, depth=1)
    assert dropped.candidates == {"d1": ["d3"]}, "the dropped candidate does not cost a place"
    assert dropped.qrels == {"d1": {"d3": 1}}


def test_empty_documents_can_be_skipped_with_their_judgments_and_places(beir, tmp_path):
    corpus = '{"_id": "d1", "text": "cats"}\n{"_id": "d2", "title": " ", "text": ""}\n'
    run = "q1 Q0 d2 1 9 x\nq1 Q0 d1 2 8 x\n"
    beir(corpus=corpus, test="q1 0 d1 1\nq1 0 d2 1\n", train=None, run=run)
    reference = {"collection": "pets", "split": "test", "skip_empty": True, "candidates": "runs/first.trec"}
    data = load(reference, tmp_path)
    assert set(data.documents) == {"d1"}
    assert data.qrels == {"q1": {"d1": 1}}
    assert data.candidates == {"q1": ["d1"]}


def test_the_fingerprint_depends_on_contents_and_not_on_the_place(beir, tmp_path):
    folder = beir()
    first = load("pets/test", tmp_path)
    shutil.copytree(folder, tmp_path / "elsewhere" / "animals")
    assert load("elsewhere/animals/test", tmp_path).fingerprint == first.fingerprint
    assert load("pets/train", tmp_path).fingerprint != first.fingerprint
    assert load("pets/test", tmp_path, depth=1).fingerprint != first.fingerprint
    text = (folder / "corpus.jsonl").read_text(encoding="utf-8").replace("Fish swim.", "Fish can swim.")
    (folder / "corpus.jsonl").write_text(text, encoding="utf-8")
    assert load("pets/test", tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["pets/tset", "pets"])
def test_a_missing_split_lists_those_that_exist(beir, tmp_path, name):
    beir()
    with pytest.raises(InputError, match=r"qrels: found no split .*; allowed: test, train; ") as error:
        load(name, tmp_path)
    hint = "did you mean 'test'?" if name == "pets/tset" else "write pets/test"
    assert str(error.value).endswith(hint)


def test_a_split_of_an_unlabelled_collection_is_refused(beir, tmp_path):
    beir(test=None, train=None)
    with pytest.raises(InputError, match="no judgments, so no split 'test'; leave the split away"):
        load("pets/test", tmp_path)


def test_excluding_an_unknown_query_or_all_queries_is_refused(beir, tmp_path):
    beir()
    reference = {"collection": "pets", "split": "train"}
    with pytest.raises(InputError, match="exclude_queries: found 'q9'; allowed: ids of queries of this split"):
        load(reference | {"exclude_queries": ["q9"]}, tmp_path)
    with pytest.raises(InputError, match="found every query of the split; allowed: at least one query has to stay"):
        load(reference | {"exclude_queries": ["q3"]}, tmp_path)
