"""Where a scatter plot puts the names of its points."""

from __future__ import annotations

import math
import re

import pytest

from compressor.bench.plot import Point, scatter

NAMES = ("stock_onnx_fp32", "torch_fp32_padded", "quickstart")


def marks(points):
    """Return each name's dot, and the left end and the height of its label."""
    svg = scatter(points, title="2 threads", y_name="nDCG@10")
    found = {}
    for group in re.findall(r'<g class="point.*?</g>', svg):
        dot = re.search(r'(?:cx|rect x)="([\d.]+)" (?:cy|y)="([\d.]+)"', group)
        half = 5.0 if "<rect" in group else 0.0
        text = re.search(r'<text x="([\d.-]+)" y="([\d.-]+)">([^<]*)<', group)
        assert dot
        assert text
        left, bottom, label = float(text[1]), float(text[2]) + 3, text[3]
        found[label.split()[0]] = (
            (float(dot[1]) + half, float(dot[2]) + half),
            (left, left + 6.6 * len(label), bottom - 15, bottom),
        )
    return found


def distance(dot, box):
    (x, y), (left, right, top, bottom) = dot, box
    return math.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))


@pytest.mark.parametrize("ratio", [1.5, 2.0])
def test_a_name_stands_nearest_to_its_own_point(ratio):
    """Baselines of equal scores stand side by side: one's name must not hang over the other."""
    milliseconds = dict(zip(NAMES, (1076.0, 1076.0 * ratio, 333.0), strict=True))
    points = [
        Point(
            name=name, x=at, x_far=1.25 * at, y=0.7623 if name == "quickstart" else 0.7596,
            is_baseline=name != "quickstart", is_teacher=name == "stock_onnx_fp32",
        )
        for name, at in milliseconds.items()
    ]  # fmt: skip
    found = marks(points)
    assert found.keys() == set(NAMES)
    for name, (own, box) in found.items():
        others = [distance(dot, box) for other, (dot, _) in found.items() if other != name]
        assert 1.4 * distance(own, box) < min(others), name


def test_points_too_many_to_be_named_have_numbers_and_a_key():
    points = [
        Point(name=f"row_{n}", x=100.0 / n, x_far=120.0 / n, y=0.5 + n / 100, is_baseline=False, is_teacher=n == 3)
        for n in range(1, 13)
    ]
    svg = scatter(points, title="2 threads", y_name="nDCG@10")
    numbers = re.findall(r"<title>(row_\d+):.*?<text[^>]*>([^<]*)</text></g>", svg)
    assert sorted((int(number) for _, number in numbers)) == list(range(1, 13))
    key = dict(re.findall(r">(\d+)  (row_\d+)(?: \(teacher\))?</text>", svg))
    assert {name: number for number, name in key.items()} == dict(numbers)
    height = re.search(r'viewBox="0 0 \d+ (\d+)"', svg)
    assert height
    assert max(float(y) for y in re.findall(r' y="([\d.]+)"', svg)) < float(height[1])
