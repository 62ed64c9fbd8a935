"""Training lists: every candidate once, spread over ranks; positives with others; equal seeds, equal lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.data import RankingData
from compressor.training.lists import ListSettings, draw_lists
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


def test_a_curriculum_weighs_easy_lists_more_at_first_and_all_alike_at_its_end():
    data = build_data()
    candidates = {query: list(data.qrels[query])[::-1] + data.candidates[query] for query in data.queries}
    data = replace(data, candidates={query: list(dict.fromkeys(found)) for query, found in candidates.items()})
    settings = ListSettings(list_size=4, curriculum="reciprocal_rank", curriculum_epochs=10)
    drawn = draw_lists(data, settings, epoch=0, seed=1, by_positive=True)
    first = {one.documents[0]: one.weight for one in drawn if one.query == "q1"}
    easy, hard = data.candidates["q1"][:2]
    assert first[easy] > first[hard] > 0
    assert {one.weight for one in draw_lists(data, settings, epoch=10, seed=1, by_positive=True)} == {1.0}


@pytest.mark.parametrize("sources", [{}, {"dense": 1.0}, {"random": -1}])
def test_unknown_sources_are_refused(sources):
    with pytest.raises(ValidationError):
        ListSettings(sources=sources)
