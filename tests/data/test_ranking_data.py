"""The sample of pairs for calibration, and training apart from test."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from compressor.data import RankingData, apart_from, check_disjoint
from compressor.data.ranking_data import in_turn, together
from compressor.errors import InputError
from tests.tiny import build_data


def data(name: str, queries: dict[str, str], n_candidates: int = 3) -> RankingData:
    documents = {f"d{n}": f"text {n}" for n in range(n_candidates)}
    return RankingData(
        name=name,
        collection=name.partition("/")[0],
        first_stage="by hand",
        queries=queries,
        documents=documents,
        qrels={},
        candidates={query: list(documents) for query in queries},
    )


def test_a_sample_is_spread_evenly_over_queries_and_ranks():
    many = data("a/train", {f"q{n}": f"query {n}" for n in range(20)}, n_candidates=100)
    sample = many.sample_pairs(200, seed=1)
    assert len(set(sample)) == 200
    assert set(sample) <= set(many.pairs())
    assert set(Counter(query for query, _ in sample).values()) == {10}
    tenths = Counter(many.candidates[query].index(document) // 10 for query, document in sample)
    assert tenths == dict.fromkeys(range(10), 20)


def test_a_small_sample_takes_one_pair_of_each_query():
    many = data("a/train", {f"q{n}": f"query {n}" for n in range(50)}, n_candidates=100)
    sample = many.sample_pairs(30)
    assert len({query for query, _ in sample}) == 30
    ranks = [many.candidates[query].index(document) for query, document in sample]
    assert min(ranks) < 25
    assert max(ranks) > 75


def test_a_sample_of_lists_takes_fewer_queries_and_more_of_each():
    many = data("a/train", {f"q{n}": f"query {n}" for n in range(50)}, n_candidates=100)
    counts = Counter(query for query, _ in many.sample_pairs(48, per_query=8))
    assert len(counts) == 6
    assert set(counts.values()) == {8}
    short = replace(many, candidates={query: found[:3] for query, found in many.candidates.items()})
    counts = Counter(query for query, _ in short.sample_pairs(48, per_query=8))
    assert counts.total() == 48
    assert set(counts.values()) == {3}
    assert len(short.sample_pairs(1000, per_query=8)) == 150


def test_the_seed_decides_and_nothing_else():
    many = data("a/train", {f"q{n}": f"query {n}" for n in range(20)}, n_candidates=50)
    assert many.sample_pairs(33, seed=4) == many.sample_pairs(33, seed=4)
    assert many.sample_pairs(33, seed=4) != many.sample_pairs(33, seed=5)


def test_short_lists_give_all_they_have():
    few = data("a/train", {"q1": "one", "q2": "two", "q3": "none"})
    few = replace(few, candidates={"q1": ["d0"], "q2": ["d0", "d1", "d2"], "q3": []})
    assert sorted(few.sample_pairs(99)) == [("q1", "d0"), ("q2", "d0"), ("q2", "d1"), ("q2", "d2")]
    assert few.sample_pairs(0) == []


def test_disjoint_data_pass():
    check_disjoint([data("a/train", {"1": "cats"})], [data("a/test", {"2": "dogs"}), data("b/test", {"1": "birds"})])


def test_the_same_text_in_another_collection_is_refused():
    with pytest.raises(InputError) as error:
        check_disjoint([data("a/train", {"1": "What do  CATS eat?"})], [data("b/test", {"7": "what do cats eat"})])
    assert str(error.value) == (
        "a/train: query '1': found a query that also stands in the test data b/test as '7': 'What do  CATS eat?'; "
        "allowed: each query in training or in test data; add 'exclude_queries: ['1']' to the training data"
    )


def test_the_same_id_in_one_collection_is_refused():
    with pytest.raises(InputError, match="also stands in the test data a/test as '1'"):
        check_disjoint([data("a/train", {"1": "cats", "3": "birds"})], [data("a/test", {"1": "dogs"})])


def test_every_shared_query_is_named():
    queries = {"1": "cats", "2": "dogs", "3": "birds"}
    with pytest.raises(InputError) as error:
        check_disjoint([data("a/train", queries)], [data("a/test", {"2": "x", "4": "Cats!"})])
    assert [fault.where for fault in error.value.faults] == ["query '1'", "query '2'"]


def test_made_queries_that_stand_in_test_data_are_left_out():
    made = data("a, made queries/x", {"d1~titles": "What do  CATS eat?", "d2~titles": "dogs", "d3~titles": "birds"})
    made = replace(made, qrels={"d1~titles": {"d1": 1}, "d2~titles": {"d2": 1}}, runs={"bm25": made.candidates})
    kept = apart_from(made, [data("b/test", {"7": "what do cats eat", "8": "Birds!"})])
    assert list(kept.queries) == list(kept.candidates) == list(kept.qrels) == list(kept.runs["bm25"]) == ["d2~titles"]
    assert kept.documents == made.documents
    check_disjoint([kept], [data("b/test", {"7": "what do cats eat", "8": "Birds!"})])
    assert apart_from(made, [data("b/test", {"7": "fish"})]) is made
    with pytest.raises(InputError, match="found no query that does not also stand in the test data; make others"):
        apart_from(made, [made])


def test_lists_in_turn():
    assert in_turn([["a", "b", "c"], ["b", "x"], []]) == ["a", "b", "x", "c"]
    assert in_turn([["a", "b"]]) == ["a", "b"]
    assert in_turn([]) == []


def test_the_fingerprint_depends_on_each_of_several_runs_and_its_name():
    plain = data("a/train", {"1": "cats"})
    first, second = {"1": ["d0", "d1", "d2"]}, {"1": ["d2", "d1"]}
    variants = [
        {"bm25": first, "dense": second},
        {"bm25": first, "dense": first},
        {"bm25": second, "dense": first},
        {"bm25": first, "sparse": second},
    ]
    assert replace(plain, runs={"bm25": first}).fingerprint == plain.fingerprint, "one run is what candidates are"
    found = {replace(plain, runs=runs).fingerprint for runs in variants} | {plain.fingerprint}
    assert len(found) == 5
    assert replace(plain, runs=dict(variants[0])).fingerprint == replace(plain, runs=variants[0]).fingerprint


def test_runs_stay_together_with_their_collections():
    left, right = data("a/train", {"1": "cats"}), data("b/train", {"1": "dogs"})
    left = replace(left, runs={"bm25": {"1": ["d0"]}, "dense": {"1": ["d1"]}})
    both = together([left, replace(right, runs={"bm25": {"1": ["d2"]}})])
    assert both.runs == {"bm25": {"0:1": ["0:d0"], "1:1": ["1:d2"]}, "dense": {"0:1": ["0:d1"]}}


def test_several_sets_together_keep_every_query_and_mix_no_ids():
    left, right = (
        build_data(),
        replace(build_data(), queries={"q1": "another question"}, candidates={"q1": ["d2", "d1"]}),
    )
    right = replace(right, qrels={"q1": {"d2": 1}})
    both = together([left, right])
    assert len(both.queries) == len(left.queries) + 1
    assert len(both.documents) == 2 * len(left.documents)
    assert both.texts(both.pairs()) == left.texts(left.pairs()) + right.texts(right.pairs())
    assert both.qrels["1:q1"] == {"1:d2": 1}
    assert together([left]) is left
