"""Draws of parts depend on seed and step alone, and come as often as they are said to."""

from __future__ import annotations

from collections import Counter

import pytest

from compressor.ranker.sub_network import WHOLE
from compressor.training.drawn_parts import DrawnParts

WIDTHS = [[8, 8], [4, 4], [2, 2], [1, 1]]
N_STEPS = 2000


def test_the_whole_is_trained_where_nothing_is_to_be_drawn():
    parts = DrawnParts(n_layers=3, seed=1)
    assert [parts(step) for step in range(5)] == [[WHOLE]] * 5


def test_equal_seeds_draw_equal_parts_in_any_order():
    parts, again, other = (DrawnParts(n_layers=6, seed=seed, layer_drop=0.3, widths=WIDTHS) for seed in (1, 1, 2))
    found = [parts(step) for step in range(50)]
    assert [again(step) for step in reversed(range(50))] == found[::-1]
    assert [other(step) for step in range(50)] != found
    assert len({str(one) for one in found}) > 20


@pytest.mark.parametrize("layer_drop", [0.2, 0.5])
def test_layers_are_left_out_as_often_as_is_said_each_on_its_own(layer_drop):
    parts = DrawnParts(n_layers=6, seed=3, layer_drop=layer_drop)
    skipped = [parts(step)[0].skipped for step in range(N_STEPS)]
    counts = Counter(layer for one in skipped for layer in one)
    assert [counts[layer] / N_STEPS for layer in range(6)] == pytest.approx([layer_drop] * 6, abs=0.05)
    both = sum({1, 4} <= one for one in skipped) / N_STEPS
    assert both == pytest.approx(layer_drop**2, abs=0.05)


def test_one_layer_runs_in_every_step():
    parts = DrawnParts(n_layers=2, seed=3, layer_drop=0.9)
    counts = Counter(parts(step)[0].skipped for step in range(N_STEPS))
    assert frozenset({0, 1}) not in counts
    assert min(counts[frozenset({0})], counts[frozenset({1})]) > 0.4 * N_STEPS


def test_one_width_a_step_all_of_them_alike():
    parts = DrawnParts(n_layers=2, seed=3, widths=WIDTHS)
    steps = [parts(step) for step in range(N_STEPS)]
    assert {len(step) for step in steps} == {1}
    counts = Counter(tuple(step[0].ffn_widths) for step in steps)
    assert [counts[tuple(widths)] / N_STEPS for widths in WIDTHS] == pytest.approx([0.25] * 4, abs=0.05)


def test_a_sandwich_has_the_ends_and_one_between():
    parts = DrawnParts(n_layers=2, seed=3, widths=WIDTHS, each_step="sandwich", layer_drop=0.4)
    between = set()
    for step in range(100):
        widest, middle, narrowest = parts(step)
        assert (widest.ffn_widths, narrowest.ffn_widths) == ([8, 8], [1, 1])
        assert widest.skipped == middle.skipped == narrowest.skipped
        between.add(tuple(middle.ffn_widths))
    assert between == {(4, 4), (2, 2)}
    two = DrawnParts(n_layers=2, seed=3, widths=[[8, 8], [4, 4]], each_step="sandwich")
    assert [part.ffn_widths for part in two(0)] == [[8, 8], [4, 4]]
