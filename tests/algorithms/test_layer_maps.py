from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.algorithms.layer_maps import LayerMapError, kept_layers, layer_map


@pytest.mark.parametrize(
    ("n_student", "n_teacher", "expected"),
    [
        (6, 12, {0: 1, 1: 3, 2: 5, 3: 7, 4: 9, 5: 11}),
        (4, 12, {0: 2, 1: 5, 2: 8, 3: 11}),
        (3, 3, {0: 0, 1: 1, 2: 2}),
        (1, 12, {0: 11}),
        (5, 12, {0: 1, 1: 3, 2: 6, 3: 8, 4: 11}),
    ],
)
def test_uniform_takes_every_nth_layer(n_student, n_teacher, expected):
    assert layer_map(n_student, n_teacher) == expected


@given(n_student=st.integers(1, 30), more=st.integers(0, 30))
def test_uniform_maps_rise_and_end_together(n_student, more):
    found = layer_map(n_student, n_student + more, "uniform")
    assert list(found) == list(range(n_student))
    assert sorted(set(found.values())) == list(found.values())
    assert found[n_student - 1] == n_student + more - 1


def test_last_and_explicit_maps():
    assert layer_map(6, 12, "last") == {5: 11}
    assert layer_map(6, 12, {4: 8, 0: 2}) == {0: 2, 4: 8}
    assert layer_map(3, 12, (0, 5, 11)) == {0: 0, 1: 5, 2: 11}
    assert layer_map(3, 2, [0, 0, 1]) == {0: 0, 1: 0, 2: 1}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({6: 1}, "found student layer 6; allowed: 0 to 5: the student has 6 layers"),
        ({-1: 1}, "found student layer -1"),
        ({1: 12}, "found teacher layer 12; allowed: 0 to 11: the teacher has 12 layers"),
        ({}, "found no layers"),
        ([1, 2], "found 2 teacher layers for 6 student layers; allowed: one teacher layer for each student layer"),
        ("unifrom", "found 'unifrom'; allowed: uniform, last"),
    ],
)
def test_maps_that_do_not_fit_are_refused(how, message):
    with pytest.raises(LayerMapError, match=message):
        layer_map(6, 12, how)


def test_a_deeper_student_has_no_uniform_map():
    with pytest.raises(LayerMapError, match="from 4 student layers to 2 teacher layers"):
        layer_map(4, 2)


def test_kept_layers_follow_several_cuts():
    assert kept_layers(12, []) == list(range(12))
    assert kept_layers(12, [[1, 3, 5, 7, 9, 11], [0, 2, 5]]) == [1, 5, 11]
    assert layer_map(3, 12, kept_layers(12, [[1, 3, 5, 7, 9, 11], [0, 2, 5]])) == {0: 1, 1: 5, 2: 11}
    with pytest.raises(LayerMapError, match="found teacher layer 6; allowed: 0 to 5"):
        kept_layers(12, [[1, 3, 5, 7, 9, 11], [0, 6]])
