"""Training lists: every candidate once, spread over ranks; shares of sources; positives with others; equal seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.data import RankingData
from compressor.data.ranking_data import in_turn, together
from compressor.errors import InputError
from compressor.training.lists import ListSettings, check_sources, draw_lists
from tests.tiny import build_data


def unlabelled(sizes):
    documents = {f"d{n}": f"text {n}" for n in range(max(sizes, default=0) + 20)}
    names = list(documents)
    return RankingData(
        name="made", collection="made", first_stage="by hand", queries={f"q{i}": str(i) for i in range(len(sizes))},
        documents=documents, qrels={}, candidates={f"q{i}": names[:size] for i, size in enumerate(sizes)},
    )  # fmt: skip


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(3, 12), st.integers(0, 3))
def test_every_candidate_stands_in_one_list(sizes, list_size, epoch):
    data = unlabelled(sizes)
    lists = draw_lists(data, ListSettings(list_size=list_size), epoch=epoch, seed=3)
    seen = Counter((one.query, document) for one in lists for document in one.documents)
    lonely = {(f"q{i}", "d0") for i, size in enumerate(sizes) if size == 1}  # a list of one teaches no order
    assert seen == Counter(set(data.pairs()) - lonely)
    assert all(2 <= len(one.documents) <= list_size for one in lists)
    assert lists == draw_lists(data, ListSettings(list_size=list_size), epoch=epoch, seed=3)


def test_lists_span_all_ranks_and_change_with_the_epoch():
    data = unlabelled([64])
    lists = draw_lists(data, ListSettings(list_size=8), epoch=0, seed=1)
    assert len(lists) == 8
    for one in lists:
        assert sorted(int(document[1:]) // 8 for document in one.documents) == list(range(8))
    assert set(lists) != set(draw_lists(data, ListSettings(list_size=8), epoch=1, seed=1))


def test_random_documents_take_their_share():
    data = unlabelled([12])
    lists = draw_lists(data, ListSettings(list_size=8, sources={"first_stage": 3, "random": 1}), epoch=0, seed=1)
    candidates = set(data.candidates["q0"])
    for one in lists:
        assert sum(document not in candidates for document in one.documents) == 2
        assert len(set(one.documents)) == len(one.documents) == 8


def test_each_positive_leads_a_list_without_other_positives():
    data = build_data()
    lists = draw_lists(data, ListSettings(list_size=4), epoch=0, seed=1, by_positive=True)
    assert len(lists) == sum(len(grades) for grades in data.qrels.values())
    for one in lists:
        grades = data.qrels[one.query]
        assert one.labels is not None
        assert one.labels[0] == grades[one.documents[0]]
        assert set(one.labels[1:]) == {0.0}
        assert not set(one.documents[1:]) & set(grades)


def runs_of(**runs):
    """Return one query's data with these runs, each a list of numbers of documents."""
    found = {name: {"q0": [f"d{number}" for number in numbers]} for name, numbers in runs.items()}
    union = in_turn([run["q0"] for run in found.values()])
    return replace(unlabelled([99]), candidates={"q0": union}, runs=found)


def counts(data, lists, name):
    return [sum(document in data.runs[name]["q0"] for document in one.documents) for one in lists]


def test_places_are_dealt_from_each_run_by_its_share():
    data = runs_of(bm25=range(40), dense=range(50, 80))
    settings = ListSettings(list_size=10, sources={"bm25": 5, "dense": 3, "random": 2})
    lists = draw_lists(data, settings, epoch=0, seed=1)
    assert len(lists) == 8, "until bm25, which is asked for most, runs out"
    assert counts(data, lists, "bm25") == [5] * 8
    assert counts(data, lists, "dense") == [3] * 8
    assert all(len(set(one.documents)) == 10 for one in lists)
    seen = Counter(document for one in lists for document in one.documents if document in data.candidates["q0"])
    assert set(seen.values()) == {1}, "no candidate stands in two lists of an epoch"
    for one in lists:
        ranks = sorted(int(document[1:]) // 8 for document in one.documents if document in data.runs["bm25"]["q0"])
        assert ranks == list(range(5)), "each list spans all ranks of a run"
    other = draw_lists(data, settings, epoch=1, seed=1)
    assert {d for one in other for d in one.documents} != {d for one in lists for d in one.documents}
    assert lists == draw_lists(data, settings, epoch=0, seed=1)


def test_shares_smaller_than_a_place_hold_over_all_lists():
    data = runs_of(bm25=range(90), dense=range(90, 99))
    settings = ListSettings(list_size=4, sources={"bm25": 0.9, "dense": 0.1})
    lists = draw_lists(data, settings, epoch=0, seed=1)
    found = counts(data, lists, "dense")
    assert set(found) == {0, 1}
    assert abs(sum(found) - 0.1 * 4 * len(lists)) < 1
    many = replace(
        data,
        queries={f"q{n}": "x" for n in range(30)},
        candidates={f"q{n}": ["d0", "d1", "d2", "d90"] for n in range(30)},
        runs={
            "bm25": {f"q{n}": ["d0", "d1", "d2"] for n in range(30)},
            "dense": {f"q{n}": ["d90"] for n in range(30)},
        },
    )
    drawn = [d for one in draw_lists(many, settings, epoch=0, seed=1) for d in one.documents]
    assert abs(drawn.count("d90") - 0.1 * 4 * 30) < 1, "over queries with one list each, too"


def test_a_document_that_two_runs_found_stands_once():
    data = runs_of(bm25=range(24), dense=range(24))
    lists = draw_lists(data, ListSettings(list_size=8, sources={"bm25": 1, "dense": 1}), epoch=0, seed=1)
    assert sorted(d for one in lists for d in one.documents) == sorted(data.candidates["q0"])
    assert [len(one.documents) for one in lists] == [8, 8, 8]


def test_first_stage_stands_for_all_of_them_beside_others():
    data = runs_of(bm25=range(12), dense=range(20, 32))
    union = draw_lists(data, ListSettings(list_size=8), epoch=0, seed=1)
    assert sorted(d for one in union for d in one.documents) == sorted(data.candidates["q0"])
    both = draw_lists(data, ListSettings(list_size=8, sources={"first_stage": 1, "dense": 1}), epoch=0, seed=1)
    assert counts(data, both, "dense") == [4, 4, 4]
    assert [len(one.documents) for one in both] == [8, 8, 8]


def test_where_a_run_found_nothing_the_others_take_its_places():
    data = runs_of(bm25=range(12), dense=[])
    lists = draw_lists(data, ListSettings(list_size=4, sources={"bm25": 1, "dense": 3}), epoch=0, seed=1)
    assert [len(one.documents) for one in lists] == [4, 4, 4]


def test_negatives_come_from_each_run_by_its_share():
    data = replace(runs_of(bm25=range(30), dense=range(40, 60)), qrels={"q0": {"d3": 1, "d45": 2, "d95": 1, "d2": 0}})
    settings = ListSettings(list_size=11, sources={"bm25": 0.5, "dense": 0.3, "random": 0.2})
    lists = draw_lists(data, settings, epoch=0, seed=1, by_positive=True)
    assert [one.documents[0] for one in sorted(lists, key=lambda one: one.documents[0])] == ["d3", "d45", "d95"]
    for one in lists:
        negatives = replace(one, documents=one.documents[1:])
        assert counts(data, [negatives], "bm25") == [5]
        assert counts(data, [negatives], "dense") == [3]
        assert not {"d3", "d45", "d95"} & set(negatives.documents)
        assert len(set(one.documents)) == 11


def test_sources_that_the_data_has_not_are_refused_with_those_that_it_has():
    data = runs_of(**{"bm25": range(9), "dense.trec": range(9)})
    with pytest.raises(InputError) as error:
        check_sources(data, ListSettings(sources={"dense.tre": 1, "sparse": 1, "bm25": 1}), "distill")
    allowed = "found no such first stage; allowed: of made: bm25, dense.trec, first_stage, random; "
    assert [str(fault) for fault in error.value.faults] == [
        f"distill: lists.sources.dense.tre: {allowed}did you mean 'dense.trec'?",
        f"distill: lists.sources.sparse: {allowed}add it to the candidates of made",
    ]
    with pytest.raises(InputError, match=r"training: lists\.sources\.dense: found no such first stage"):
        draw_lists(unlabelled([9]), ListSettings(sources={"dense": 1}), epoch=0, seed=1)


def test_a_collection_that_no_named_source_knows_is_refused():
    both = together([runs_of(bm25=range(9), dense=range(9)), runs_of(bm25=range(9))])
    check_sources(both, ListSettings(sources={"bm25": 1, "dense": 1}), "distill")
    check_sources(both, ListSettings(sources={"first_stage": 1, "dense": 1}), "distill")
    with pytest.raises(InputError, match="found dense, which know nothing of 1 queries' collections"):
        check_sources(both, ListSettings(sources={"dense": 1}), "distill")


@pytest.mark.parametrize("sources", [{}, {"dense": 0.0}, {"random": -1}, {"random": 1}])
def test_senseless_sources_are_refused(sources):
    with pytest.raises(ValidationError):
        ListSettings(sources=sources)


def test_lists_know_how_near_the_top_their_documents_stood():
    data = build_data()
    settings = ListSettings(list_size=4, sources={"first_stage": 1, "random": 1}, curriculum="reciprocal_rank")
    data = replace(data, candidates={query: found[:4] for query, found in data.candidates.items()})
    for by_positive in (False, True):
        for one in draw_lists(data, settings, epoch=0, seed=1, by_positive=by_positive):
            found = data.candidates[one.query]
            for document, closeness in zip(one.documents, one.closeness, strict=True):
                assert closeness == (1 / (found.index(document) + 1) if document in found else 0)
    plain = draw_lists(data, settings.changed(curriculum=None), epoch=0, seed=1)
    assert {one.closeness for one in plain} == {()}
