"""The sensitivity plot: a bar for each group of linears in its layer, full where it was kept, and figures in words."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest

from compressor.bench.plot_sensitivity import placement_figure, sensitivity_plot
from compressor.bench.report_html import render_html
from compressor.bench.schema import HistoryEntry
from tests.bench.made_report import made_report, made_row

PARTS = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")


def rows(n_layers: int, parts=PARTS, kept=()) -> list[dict[str, Any]]:
    names = [f"layers.{layer}.{part}" for layer in range(n_layers) for part in parts]
    return [
        {"linears": name, "score_rmse": 0.001 * 1.1**place, "raw_score_rmse": 0.1, "kendall_tau": 0.99,
         "ndcg_loss": 0.001, "is_kept": name in kept}
        for place, name in enumerate(names)
    ]  # fmt: skip


def bars(svg: str) -> list[tuple[str, str, float, float, float, float]]:
    """Return color, kind, x, y, width and height of every bar that has a tip."""
    found = re.findall(
        r'<g class="(c\d)"><title>[^<]*</title><rect class="bar (\w+)" '
        r'x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"',
        svg,
    )
    return [(color, kind, *(float(value) for value in numbers)) for color, kind, *numbers in found]


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("text")]  # noqa: S314 - our own


def test_72_bars_stand_apart_layer_by_layer():
    svg = sensitivity_plot(rows(12, kept=("layers.11.ffn.down",)), title="1. quantize", limit=0.5)
    found = bars(svg)
    assert len(found) == 72
    assert [kind for _, kind, *_ in found] == ["rounded"] * 71 + ["kept"]
    edges = [(x, x + width) for _, _, x, _, width, _ in found]
    assert all(end < start for (_, end), (start, _) in pairwise(edges))
    assert min(width for *_, width, _ in found) > 8  # of 1040
    gaps = [start - end for (_, end), (start, _) in pairwise(edges)]
    assert min(gaps[5::6]) > 2 * max(gap for place, gap in enumerate(gaps) if place % 6 != 5)
    assert len({color for color, *_ in found[:6]}) == 6
    assert [color for color, *_ in found[:6]] == [color for color, *_ in found[66:]]
    heights = [height for *_, height in found]
    assert heights == sorted(heights)
    assert {str(layer) for layer in range(12)} < set(texts(svg))
    assert {"limit for all together: 0.5", "logits (log)", "ffn down", "pale: rounded"} < set(texts(svg))
    assert max(height for *_, height in found) < 320


def test_groups_are_read_as_what_they_hold_and_embeddings_have_a_place():
    some = rows(2, parts=("attention.query_key_value", "attention.output", "ffn.down"))
    some.insert(0, {**some[0], "linears": "embeddings.project"})
    svg = sensitivity_plot(some, title="")
    assert {"query, key, value", "attention output", "embeddings", "project"} < set(texts(svg))
    assert len(bars(svg)) == 7
    assert "limit" not in " ".join(texts(svg))


def test_what_does_not_move_scores_has_no_bar_and_equal_values_a_linear_axis():
    some = [{**row, "score_rmse": value} for row, value in zip(rows(1), (0.0, 0.2, 0.2, 0.3, 0.2, 0.1), strict=True)]
    svg = sensitivity_plot(some, title="")
    heights = [height for *_, height in bars(svg)]
    assert len(heights) == 5
    assert heights[2] / heights[4] == pytest.approx(3, rel=0.01)
    assert "logits" in texts(svg)
    still = sensitivity_plot([{**row, "score_rmse": 0.0} for row in some], title="")
    assert bars(still) == []


NOTES = {
    "sensitivity": rows(2, kept=("layers.0.ffn.up",)), "kept": ["layers.0.ffn.up"], "kept_precision": "int8_blocks",
    "kept_share": {"macs": 0.125}, "predicted": {"score_rmse": 0.0123},
    "all_rounded": {"score_rmse": 0.5, "kendall_tau": 0.7, "ndcg_loss": 0.03},
    "joint": {"score_rmse": 0.04, "kendall_tau": 0.98, "ndcg_loss": 0.002},
    "drawn_anew": {"score_rmse": 0.05, "kendall_tau": 0.97, "ndcg_loss": 0.004},
}  # fmt: skip
SETTINGS = {"scheme": "int4_blocks", "keep_within": {"max_score_rmse": 0.05}}


def test_the_report_shows_the_plot_of_a_pass_that_placed_and_of_no_other():
    entries = [
        HistoryEntry(verb="drop_layers", notes={"kept_layers": [0, 1]}),
        HistoryEntry(verb="quantize", settings=SETTINGS, notes=NOTES),
        HistoryEntry(verb="quantize", settings={"keep_within": None}, notes={"calibration_pairs": 8}),
    ]
    page = render_html(made_report(made_row("a", [0.5] * 12, [0.5] * 12), teacher="a", history=entries))
    assert page.count('<svg class="sensitivity"') == 1
    assert "2. quantize: score RMSE of each linear rounded alone" in page
    for words in ("Kept in int8_blocks: 1 of 12", "12.5 % of their multiply-adds", "0.5 with all rounded",
                  "0.0123 predicted", "0.04 measured", "0.05 on lists drawn anew",
                  "limit for all together: 0.05"):  # fmt: skip
        assert words in page, words


def test_text_is_escaped():
    page = placement_figure({**NOTES, "kept_precision": "<b>"}, SETTINGS, "<i>")
    assert "<b>" not in page
    assert "<i>" not in page
