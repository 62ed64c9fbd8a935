from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compressor.bench.plot_curves import Curve, line_plot, standalone, thinned, training_plots
from compressor.bench.sparkline import sparkline, training_line

SERIES = {
    "loss": [(64 * i, 20 / i) for i in range(1, 40)],
    "loss/mse": [(64 * i, 15 / i) for i in range(1, 40)],
    "loss/hidden": [(64 * i, 5 / i) for i in range(1, 40)],
    "dev/nDCG@10": [(0, 0.4), (1000, 0.61), (2000, 0.59)],
    "dev/RR@10": [(0, 0.3), (1000, 0.4), (2000, 0.5)],
    "learning_rate": [(64 * i, 1e-4 / i) for i in range(1, 40)],
}


def texts(svg: str) -> str:
    return " ".join("".join(node.itertext()) for node in ET.fromstring(svg).iter("text"))  # noqa: S314 - our own


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline class="curve(?: dashed)?" points="([^"]+)"', svg)
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in one.split())] for one in found]


def test_parts_share_the_plot_of_their_total_and_dev_measures_stand_alone():
    loss, ndcg, rr, rate = training_plots(SERIES, "2. distill")
    assert len(lines(loss)) == 3
    for words in ("2. distill: loss", "total", "mse", "hidden", "loss (log)", "pairs seen"):
        assert words in texts(loss)
    assert "2. distill: dev nDCG@10" in texts(ndcg)
    assert "2. distill: dev RR@10" in texts(rr)
    assert "2. distill: learning rate" in texts(rate)


def test_the_best_dev_value_is_ringed_where_it_stands():
    svg = training_plots({"dev/nDCG@10": SERIES["dev/nDCG@10"]})[0]
    assert "0.6100 at 1 k" in texts(svg)
    ring = re.search(r'class="best" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert ring
    (line,) = lines(svg)
    assert (float(ring[1]), float(ring[2])) == line[1]
    low = training_plots({"dev/loss": SERIES["dev/nDCG@10"]})[0]
    assert "0.4000 at 0" in texts(low)


def test_equal_ratios_are_equal_steps_on_a_logarithmic_axis_and_equal_differences_on_a_linear_one():
    halves = [(i, 2.0**-i) for i in range(5)]
    (log,) = lines(line_plot([Curve(name="a", points=halves)], title="", y_name="y", log_y=True))
    steps = [below[1] - above[1] for above, below in pairwise(log)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.11)
    (linear,) = lines(line_plot([Curve(name="a", points=halves)], title="", y_name="y"))
    assert (linear[1][1] - linear[0][1]) == pytest.approx(2 * (linear[2][1] - linear[1][1]), abs=0.3)


def test_zeros_keep_the_axis_linear():
    svg = line_plot([Curve(name="a", points=[(0, 0), (1, 5)])], title="t", y_name="loss", log_y=True)
    assert "(log)" not in texts(svg)


def test_values_that_are_not_finite_leave_a_gap_and_curves_without_a_value_nothing():
    points = [(float(i), math.nan if i in (4, 5) else 1.0 + i) for i in range(10)]
    assert [len(line) for line in lines(line_plot([Curve(name="a", points=points)], title="", y_name="y"))] == [4, 4]
    assert training_plots({"loss": [], "dev/nDCG@10": [(1.0, math.nan)], "x": [(math.inf, 1.0)]}) == []
    assert training_plots({}) == []
    both = line_plot([Curve(name="a", points=[]), Curve(name="b", points=[(0, 1), (1, 2)])], title="", y_name="y")
    assert len(lines(both)) == 1


def test_a_single_point_is_a_dot():
    svg = training_plots({"loss": [(5.0, 1.0)]})[0]
    assert svg.count('class="dot"') == 1
    assert not lines(svg)


def test_more_curves_than_colors_are_told_apart_by_dashes():
    curves = [Curve(name=f"c{i}", points=[(0, i), (1, i + 1)]) for i in range(10)]
    svg = line_plot(curves, title="", y_name="y")
    assert svg.count('<polyline class="curve dashed"') == 2
    assert all(f"c{i}" in texts(svg) for i in range(10))


def test_thinned_points_are_means_of_neighbors():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    kept = thinned(points, most=100)
    assert len(kept) == 100
    assert kept[0] == (4.5, 0.5)
    assert thinned(points[:100], most=100) == points[:100]


def test_names_are_escaped_and_a_file_stands_alone():
    curves = [Curve(name="<a>&", points=[(0, 1), (1, 2)]), Curve(name="b", points=[(0, 2), (1, 1)])]
    svg = line_plot(curves, title="<t>", y_name='"y"')
    assert "<a>" in texts(svg)
    file = standalone(svg)
    assert ET.fromstring(file).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own
    assert "<style>" in file


numbers = st.one_of(st.floats(-1e12, 1e12), st.sampled_from([math.nan, math.inf, 0.0]))


@settings(max_examples=60, deadline=None)
@example([[(0.0, 1.0), (0.0, 4e-288)]], True)
@example([[(0.0, 5e-324), (1.0, 1.0)]], True)
@given(st.lists(st.lists(st.tuples(numbers, numbers), max_size=6), max_size=3), st.booleans())
def test_any_points_make_well_formed_plots_inside_their_frame(many, log):
    curves = [Curve(name=str(index), points=points) for index, points in enumerate(many)]
    svg = line_plot(curves, title="t", y_name="y", log_y=log, best="high")
    if svg:
        texts(svg)
        assert "nan" not in svg
        assert "inf" not in svg
        assert all(0 <= x <= 520 and 0 <= y <= 300 for line in lines(svg) for x, y in line)


def test_a_sparkline_falls_with_its_curve():
    falling = sparkline([(i, 8 - i) for i in range(8)], width=8)
    assert falling == "█▇▆▅▄▃▂▁"
    assert len(sparkline([(i, i) for i in range(1000)], width=14)) == 14
    assert sparkline([(0, 1.0)]) in "▄▅"
    assert sparkline([(0, math.nan)]) == ""


def test_the_line_of_a_training_pass_names_what_matters():
    line = training_line(SERIES)
    assert line.startswith("loss █")
    assert "20 → 0.513" in line
    assert "nDCG@10" in line
    assert "0.5900, best 0.6100" in line
    assert "0.5000" in line
    assert "best 0.5" not in line
    assert "mse" not in line
    assert training_line({"learning_rate": [(0, 1)]}) == training_line({}) == ""
