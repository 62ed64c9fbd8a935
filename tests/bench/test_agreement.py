from __future__ import annotations

import numpy as np
import pytest

from compressor.bench.agreement import agreement, overlap
from compressor.runtime.list_scores import kendall_tau


def test_kendall_tau_counts_pairs():
    # 3 > 2 > 1 against 3 > 1 > 2: of three pairs, two agree.
    assert kendall_tau(np.array([3, 2, 1]), np.array([3, 1, 2])) == pytest.approx(1 / 3)
    assert kendall_tau(np.array([1, 2, 3]), np.array([3, 2, 1])) == -1


def test_kendall_tau_equals_scipy_with_ties():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 30), rng.integers(0, 6, 30)
        assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b).statistic)


def test_kendall_tau_without_any_order():
    tied, ordered = np.zeros(4), np.arange(4)
    assert kendall_tau(tied, tied) == 1
    assert kendall_tau(tied, ordered) == 0


def test_overlap_is_a_share_of_what_can_be_shared():
    a = np.arange(20.0)
    assert overlap(a, -a, 10) == 0
    assert overlap(a, a, 10) == 1
    assert overlap(np.array([3.0, 2, 1]), np.array([1.0, 2, 3]), 10) == 1
    assert overlap(np.arange(20.0), np.roll(np.arange(20.0), 1), 10) == pytest.approx(9 / 10)


def test_score_errors_ignore_a_shift_of_a_whole_query_and_single_candidates_are_left_out():
    scores = {"q1": [1, 2, 3], "q2": [5], "q3": [0, 4]}
    teacher = {query: np.array(values, np.float32) for query, values in scores.items()}
    shifted = {query: values + 7 for query, values in teacher.items()}
    same = agreement(shifted, teacher)
    assert same.query_ids == ("q1", "q3")
    assert same.squared_error == pytest.approx([0, 0], abs=1e-10)
    moved = agreement({**teacher, "q3": np.array([1, 3], np.float32)}, teacher)
    assert moved.squared_error == pytest.approx([0, 1])
    assert moved.score_std == pytest.approx((np.std([1, 2, 3]) + 2) / 2)


def test_different_candidates_are_refused():
    with pytest.raises(ValueError, match="same candidates"):
        agreement({"q": np.zeros(3)}, {"q": np.zeros(2)})
