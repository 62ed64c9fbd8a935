from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compressor.bench.pareto import pareto_front


def test_the_front_by_rising_cost():
    points = [(5, 0.9), (1, 0.5), (3, 0.8), (4, 0.7), (6, 0.9)]
    assert pareto_front(points) == [1, 2, 0]


def test_equal_points_all_stay():
    assert pareto_front([(1, 1), (2, 0.5), (1, 1)]) == [0, 2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    def beaten(a):
        return any(b[0] <= a[0] and b[1] >= a[1] and b != a for b in points)

    assert set(pareto_front(points)) == {i for i, point in enumerate(points) if not beaten(point)}
