"""The figures in the texts are those of the recorded results."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.bench.report import read_report

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("text", ["README.md", "benchmarks/README.md"])
def test_the_speed_of_the_written_graph_is_quoted_as_recorded(text):
    report = read_report(ROOT / "benchmarks" / "results" / "spine_speed.json")
    words = (ROOT / text).read_text(encoding="utf-8")
    places = [("rankpress_fp32", "stock_onnx_fp32"), ("rankpress_int8", "stock_onnx_fp32"),
              ("rankpress_int8", "torch_fp32_padded")]  # fmt: skip
    for row, baseline in places:
        latency = report.row(row).latency[0]
        low, high = latency.speedup_interval[baseline]
        assert f"{latency.speedup[baseline]:.2f} ({low:.2f}–{high:.2f})" in words, (row, baseline)
    found = report.row("rankpress_int8").quality["trec-dl-2021/test"]["nDCG@10"]
    assert f"−{abs(found.loss or 0):.4f}" in words
    assert f"+{found.loss_bound:.4f}" in words
    assert f"{report.workload.mean_tokens:.0f} tokens per pair" in words.replace("\n", " ")
