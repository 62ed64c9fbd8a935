from __future__ import annotations

import math

import numpy as np
import pytest

from compressor.bench.quality import best_first, evaluate, parse_measures, strict_run, tie_rate
from compressor.data import RankingData
from compressor.errors import InputError


def data(qrels: dict[str, dict[str, int]], candidates: dict[str, list[str]], queries: list[str]) -> RankingData:
    documents = {document: document for found in candidates.values() for document in found}
    return RankingData(
        name="hand/test", collection="hand", first_stage="hand", queries={q: q for q in queries}, documents=documents,
        qrels=qrels, candidates=candidates,
    )  # fmt: skip


def test_measures_equal_hand_made_fractions():
    # q1 ranks b, a, c with grades 0, 2, 1; q2 has its relevant document third of three.
    hand = data({"q1": {"a": 2, "c": 1}, "q2": {"z": 1}}, {"q1": ["a", "b", "c"], "q2": ["x", "y", "z"]}, ["q1", "q2"])
    scores = {"q1": np.array([0.5, 0.9, 0.1], np.float32), "q2": np.array([3, 2, 1], np.float32)}
    found = evaluate(hand, scores, ["nDCG@10", "RR@10", "AP", "R@2", "P@1"])
    gain = 2 / math.log2(3) + 1 / 2
    ideal = 2 + 1 / math.log2(3)
    assert found.query_ids == ("q1", "q2")
    assert found.per_query["nDCG@10"] == pytest.approx([gain / ideal, 1 / 2])
    assert found.per_query["RR@10"] == pytest.approx([1 / 2, 1 / 3])
    assert found.per_query["AP"] == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 3])
    assert found.per_query["R@2"] == pytest.approx([1 / 2, 0])
    assert found.per_query["P@1"] == pytest.approx([0, 0])


@pytest.mark.parametrize("measure", ["nDCG@10", "RR@10", "AP", "P@1"])
def test_ties_go_by_first_stage_rank_for_every_provider(measure):
    # Left to themselves, pytrec_eval puts the tied "z" first and the MS MARCO provider "a": here the first stage rules.
    for order, expected in ((["z", "a"], 1.0), (["a", "z"], 0.0)):
        hand = data({"q": {"z": 1}}, {"q": order}, ["q"])
        value = evaluate(hand, {"q": np.zeros(2, np.float32)}, [measure]).per_query[measure][0]
        assert (value == 1.0) == (expected == 1.0)


def test_scores_that_differ_below_fp32_are_ties():
    scores = np.array([1.0, 1.0 + 1e-12, 0.5])
    assert best_first(scores).tolist() == [0, 1, 2]
    assert tie_rate({"q": scores}) == pytest.approx(2 / 3)


def test_runs_are_strictly_decreasing_and_distinct_in_fp32():
    run = strict_run([f"d{i}" for i in range(1000)], np.zeros(1000, np.float32))
    values = np.array(list(run.values()), dtype=np.float32)
    assert (np.diff(values) < 0).all()


def test_judged_queries_missing_from_the_run_count_zero():
    hand = data({"q1": {"a": 1}, "q2": {"a": 1}, "q3": {}}, {"q1": ["a"]}, ["q1", "q2", "q3"])
    found = evaluate(hand, {"q1": np.ones(1, np.float32)}, ["nDCG@10", "RR@10"])
    assert found.query_ids == ("q1", "q2")
    assert found.per_query["nDCG@10"].mean() == 0.5
    assert found.per_query["RR@10"].tolist() == [1.0, 0.0]


def test_a_run_that_is_wholly_missing_counts_zero_everywhere():
    hand = data({"q1": {"a": 1}}, {}, ["q1"])
    assert evaluate(hand, {}, ["nDCG@10", "Judged@10"]).per_query["nDCG@10"].tolist() == [0.0]


def test_tie_rate_is_a_mean_over_queries():
    scores = {
        "q1": np.array([1, 1, 0, 0, 3], np.float32),
        "q2": np.array([1, 2], np.float32),
        "q3": np.zeros(0, np.float32),
    }
    assert tie_rate(scores) == pytest.approx((4 / 5 + 0) / 2)


def test_two_names_of_one_measure_both_get_its_values():
    hand = data({"q": {"b": 1}}, {"q": ["a", "b"]}, ["q"])
    found = evaluate(hand, {"q": np.array([2, 1], np.float32)}, ["RR@10", "MRR@10"])
    assert found.per_query["RR@10"].tolist() == found.per_query["MRR@10"].tolist() == [0.5]


def test_unknown_measures_are_refused_all_at_once_with_suggestions():
    with pytest.raises(InputError) as caught:
        parse_measures(["nDGC@10", "RR@10", "ERR@10", "nDCG@@10"], source="recipe.yaml")
    first, second, third = map(str, caught.value.faults)
    assert first.startswith("recipe.yaml: nDGC@10: found no measure (measure not found: nDGC)")
    assert "did you mean 'nDCG@10'?" in first
    assert "ERR@10, which ir-measures computes only with perl" in second
    assert third.startswith("recipe.yaml: nDCG@@10")
