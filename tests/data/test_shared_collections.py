"""The development collections outside the repository: all load, and BM25 is as good as their READMEs say."""

from __future__ import annotations

import math

import pytest

from compressor.data import RankingData, check_disjoint, load_data
from compressor.data_reference import DataReference
from compressor.errors import InputError

pytestmark = pytest.mark.shared

# nDCG@10 of BM25 in the README of each collection. Theirs stems by Snowball, ours cuts plurals only: hence the margin.
BM25_NDCG = {
    "cosqa/test": 0.338,
    "cranfield/test": 0.359,
    "scifact/test": 0.686,
    "selqa/dev": 0.802,
    "squad2-passages/test": 0.838,
    "techfaq/test": 0.625,
    "trec-dl-2021/test": 0.389,
}
MARGIN = 0.03


def load(folder, collection: str, **fields: object) -> RankingData:
    return load_data(DataReference.model_validate({"collection": str(folder / collection), **fields}))


@pytest.mark.parametrize("name", BM25_NDCG)
def test_bm25_is_near_the_published_figure(shared_data, name):
    data = load(shared_data, name, skip_empty=name.startswith("cranfield"))
    assert data.name == name
    assert data.queries
    assert sum(_ndcg(data, query) for query in data.queries) / len(data.queries) == pytest.approx(
        BM25_NDCG[name], abs=MARGIN
    )


def test_cranfield_s_empty_documents_are_named(shared_data):
    with pytest.raises(InputError, match=r"line 471: found the document '471' without text") as error:
        load(shared_data, "cranfield/test")
    assert len(error.value.faults) == 2


@pytest.mark.parametrize("run", ["dl22.BM25.trec", "dl22.SPLADE_P_P_ENSEMBLE_DISTIL.trec"])
def test_the_unlabelled_collection_with_its_runs(shared_data, run):
    data = load(shared_data, "msmarco-unlabelled", candidates=f"runs/{run}")
    assert len(data.queries) == 76
    assert len(data.pairs()) == 7600
    assert data.qrels == {}


def test_the_unlabelled_collection_with_bm25(shared_data):
    data = load(shared_data, "msmarco-unlabelled", queries=500)
    assert len(data.queries) == 500
    assert len(data.pairs()) > 45_000


def test_the_run_of_a_judged_collection(shared_data):
    data = load(shared_data, "trec-dl-2021/test", candidates="runs/dl21.BM25.trec")
    assert len(data.queries) == 53
    assert len(data.pairs()) == 5300


def test_claims_that_stand_in_two_splits_are_refused_and_can_be_left_out(shared_data):
    test = load(shared_data, "scifact/test")
    with pytest.raises(InputError, match="exclude_queries") as error:
        check_disjoint([load(shared_data, "scifact/train")], [test])
    shared = [fault.where.split("'")[1] for fault in error.value.faults]
    check_disjoint([load(shared_data, "scifact/train", exclude_queries=shared)], [test])


def _ndcg(data: RankingData, query: str) -> float:
    """nDCG@10 of the first stage for one query."""
    grades = data.qrels[query]
    found = [grades.get(document, 0) for document in data.candidates[query][:10]]
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:10]
    gain = sum(max(grade, 0) / math.log2(place + 2) for place, grade in enumerate(found))
    return gain / sum(grade / math.log2(place + 2) for place, grade in enumerate(best)) if best else 0.0
