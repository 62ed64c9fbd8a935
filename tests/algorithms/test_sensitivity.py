"""Score shifts by hand, and trials that equal rankers composed for them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from compressor.algorithms import sensitivity
from compressor.algorithms.kept_precisions import fewest_kept, worth_keeping
from compressor.algorithms.quantization import quantized
from compressor.algorithms.score_shifts import list_places, ndcg_of_order, score_shift
from compressor.algorithms.sensitivity import by_shared_input, measure_sensitivity
from compressor.ranker.rounding import roundable_linears
from compressor.ranker.spec import Int4Blocks, Int8Dynamic, LinearSpec, SimilarityHead
from tests import tiny

FOUR = Int4Blocks()


@pytest.fixture(scope="module")
def pairs(tiny_data):
    return tiny_data.texts(tiny_data.pairs())


def test_a_shift_of_a_whole_list_reorders_nothing():
    reference = np.array([3.0, 2.0, 1.0, 5.0, 4.0])
    found = score_shift(reference + np.array([2, 2, 2, 0, 0]), reference, list_places(["a", "a", "a", "b", "b"]))
    assert found.score_rmse == pytest.approx(0, abs=1e-12)
    assert found.raw_score_rmse == pytest.approx(math.sqrt(12 / 5))
    assert (found.kendall_tau, found.ndcg_loss) == (1, 0)


def test_shifts_by_hand():
    # One list of two that swap: 1 up, 1 down. Another of three in place; a query with one pair has no order.
    queries = ["b", "a", "a", "c", "c", "c"]
    reference = np.array([9.0, 2.0, 1.0, 3.0, 2.0, 1.0])
    found = score_shift(reference + np.array([50, -1, 1, 0, 0, 0]), reference, list_places(queries))
    assert found.score_rmse == pytest.approx(math.sqrt(2 / 5))
    assert found.kendall_tau == pytest.approx((-1 + 1) / 2)
    ideal, swapped = 2 + 1 / math.log2(3), 1 + 2 / math.log2(3)
    assert found.ndcg_loss == pytest.approx((1 - swapped / ideal) / 2)


def test_ndcg_gains_by_the_exact_order_and_sees_its_top_alone():
    exact = -np.arange(14.0)
    tail = exact.copy()
    tail[[12, 13]] = tail[[13, 12]]
    assert ndcg_of_order(tail, exact) == 1
    top = exact.copy()
    top[[0, 13]] = top[[13, 0]]
    assert ndcg_of_order(top, exact) < 0.8
    assert ndcg_of_order(exact, exact) == 1


def test_linears_of_one_input_stand_together():
    spec = tiny.tiny_spec()
    names = [name for name in roundable_linears(spec) if name != "layers.1.attention.key"]
    groups = by_shared_input(names)
    assert list(groups)[:4] == [
        "layers.0.attention.query_key_value", "layers.0.attention.output", "layers.0.ffn.up", "layers.0.ffn.down",
    ]  # fmt: skip
    assert groups["layers.1.attention.query_value"] == ("layers.1.attention.query", "layers.1.attention.value")
    assert [name for found in groups.values() for name in found] == names
    assert by_shared_input(["layers.0.ffn.gate", "layers.0.ffn.up", "embeddings.project"]) == {
        "layers.0.ffn.gate_up": ("layers.0.ffn.gate", "layers.0.ffn.up"), "embeddings.project": ("embeddings.project",),
    }  # fmt: skip


def projected():
    spec = tiny.tiny_spec()
    tables = {name: getattr(spec.embeddings, name).changed(width=8) for name in ("tokens", "positions", "segments")}
    project = LinearSpec(inputs=8, outputs=tiny.WIDTH)
    return tiny.build_ranker(spec.changed(embeddings=spec.embeddings.changed(**tables, project=project)))


def bi_encoder():
    return tiny.build_ranker(tiny.tiny_spec(head=SimilarityHead(pool="mean")))


@pytest.mark.parametrize(
    ("make", "precision"),
    [  # of a bi-encoder in dynamic int8, queries and documents share batches here and not there, and so scales
        (tiny.build_ranker, FOUR), (tiny.build_ranker, Int8Dynamic()), (projected, FOUR), (projected, Int8Dynamic()),
        (bi_encoder, FOUR),
    ],
    ids=lambda one: getattr(one, "kind", None) or one.__name__,
)  # fmt: skip
def test_a_trial_is_the_ranker_in_which_it_alone_is_rounded(make, precision, pairs):
    ranker = make()
    groups = by_shared_input(roundable_linears(ranker.spec))
    trials = {group: dict.fromkeys(names, precision) for group, names in groups.items()}
    before = ranker.module
    found = measure_sensitivity(ranker, pairs, trials)
    exact, lists = ranker.score(pairs), list_places([query for query, _ in pairs])
    for group, rounding in trials.items():
        expected = score_shift(quantized(ranker, rounding).score(pairs), exact, lists)
        assert found[group].score_rmse == pytest.approx(expected.score_rmse, rel=1e-3, abs=1e-6), group
        assert found[group].raw_score_rmse == pytest.approx(expected.raw_score_rmse, rel=1e-3, abs=1e-6), group
        assert found[group].score_rmse > 0
    assert ranker.module is before
    np.testing.assert_array_equal(ranker.score(pairs), exact)


def test_a_killed_measurement_goes_on_and_another_one_does_not(pairs, tmp_path, monkeypatch):
    ranker, store = tiny.build_ranker(), tmp_path / "scratch" / "found.json"
    trials = {name: {name: FOUR} for name in roundable_linears(ranker.spec)}
    whole = measure_sensitivity(ranker, pairs, trials)
    calls = []

    def dying(scores, exact, lists, survive):
        calls.append(1)
        if len(calls) > survive:
            raise KeyboardInterrupt
        return score_shift(scores, exact, lists)

    monkeypatch.setattr(sensitivity, "score_shift", partial(dying, survive=5))
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(ranker, pairs, trials, store=store)
    calls.clear()
    monkeypatch.setattr(sensitivity, "score_shift", partial(dying, survive=100))
    assert measure_sensitivity(ranker, pairs, trials, store=store) == whole
    assert len(calls) == len(trials) - 5
    calls.clear()
    other = measure_sensitivity(tiny.build_ranker(seed=4), pairs, trials, store=store)
    assert len(calls) == len(trials)
    assert other != whole
    store.write_text("{", encoding="utf-8")
    assert measure_sensitivity(ranker, pairs, trials, store=store) == whole


def test_a_trial_of_several_layers_is_refused(pairs):
    rounding = {"layers.0.ffn.up": FOUR, "layers.1.ffn.up": FOUR}
    with pytest.raises(ValueError, match="a trial is of one layer"):
        measure_sensitivity(tiny.build_ranker(), pairs, {"both": rounding})


def test_what_gains_most_for_its_cost_is_first_and_what_loses_is_not_kept():
    gains = {"a": 4.0, "b": 3.0, "c": -1.0, "d": 0.0, "e": 8.0}
    assert worth_keeping(gains, {"a": 2, "b": 1, "c": 1, "d": 1, "e": 8}) == ["b", "a", "e"]


@pytest.mark.parametrize("needed", [0, 1, 6, 7, 12])
def test_no_more_is_kept_than_needed(needed):
    asked = []

    def holds(n_kept):
        asked.append(n_kept)
        return n_kept >= needed

    assert fewest_kept(12, holds) == needed
    assert len(asked) == len(set(asked)) <= 6


@pytest.mark.parametrize("n", [0, 1, 9])
def test_where_keeping_all_does_not_do_there_is_no_number(n):
    assert fewest_kept(n, lambda n_kept: False) is None
