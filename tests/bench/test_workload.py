from __future__ import annotations

from collections import Counter

import pytest

from compressor.bench.workload import choose_workload
from compressor.errors import InputError


def test_queries_come_evenly_from_all_data_sets(make_data):
    data = [make_data("a/test", n_queries=30), make_data("b/test", n_queries=30), make_data("c/test", n_queries=2)]
    chosen = choose_workload(data, n_queries=14, candidates=4, seed=0)
    assert Counter(query.data for query in chosen) == {"a/test": 6, "b/test": 6, "c/test": 2}
    assert len({(query.data, query.query_id) for query in chosen}) == 14
    assert all(len(query.pairs) == 4 for query in chosen)


def test_the_seed_decides(make_data):
    ids = [
        [query.query_id for query in choose_workload([make_data()], n_queries=8, candidates=4, seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_queries_with_all_candidates_come_first(make_data):
    data = make_data(n_queries=10)
    for query in list(data.candidates)[:7]:
        data.candidates[query] = data.candidates[query][:2]
    data.candidates["q9"] = []
    chosen = choose_workload([data], n_queries=4, candidates=6, seed=0)
    assert {query.query_id for query in chosen[:2]} == {"q7", "q8"}
    assert [len(query.pairs) for query in chosen] == [6, 6, 2, 2]
    assert len(choose_workload([data], n_queries=99, candidates=6, seed=0)) == 9


def test_pairs_hold_texts_in_first_stage_order(make_data):
    data = make_data()
    query = choose_workload([data], n_queries=1, candidates=3, seed=0)[0]
    expected = [data.documents[document] for document in data.candidates[query.query_id][:3]]
    assert list(query.pairs) == [(data.queries[query.query_id], document) for document in expected]


def test_no_candidates_at_all_is_bad_input(make_data):
    data = make_data(n_queries=0)
    with pytest.raises(InputError, match="made/test: found no query with candidates"):
        choose_workload([data], n_queries=4, candidates=6, seed=0)
