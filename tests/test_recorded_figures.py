"""The figures in the texts are those of the recorded results."""

from __future__ import annotations

import itertools
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


@pytest.mark.parametrize(("text", "start"), [("README.md", "| `"), ("benchmarks/README.md", "| ours, `")])
def test_precisions_are_quoted_as_recorded(text, start):
    report = read_report(ROOT / "benchmarks" / "results" / "precision_speed.json")
    lines = (ROOT / text).read_text(encoding="utf-8").splitlines()
    for scheme in ("int8_dynamic", "int8_static", "int8_blocks", "int4_blocks"):
        row = report.row(f"rankpress_{scheme}")
        found = row.quality["trec-dl-2021/test"]["nDCG@10"]
        loss = f"{found.loss:+.4f} ({found.loss_bound:+.4f})".replace("-", "−")
        tau = row.agreement["trec-dl-2021/test"]["kendall_tau"].mean
        (quoted,) = [line.replace("*", "") for line in lines if line.startswith(f"{start}{scheme}` |")]
        for figure in (
            f"| {row.latency[0].speedup['rankpress_fp32']:.2f}",
            f"| {(row.size_bytes or 0) / 1e6:.1f} |",
            loss,
            f"| {tau:.3f} |",
        ):
            assert figure in quoted, (scheme, figure)


def test_precisions_on_amx_are_quoted_as_recorded():
    """Each of our rows has its record's speeds in both runtimes, its size, its loss with the bound and its order's."""
    report = read_report(ROOT / "benchmarks" / "results" / "precision_speed_amx.json")
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").replace("*", "")
    lines = text[text.index("On a Xeon with AMX (2 threads, the same lists") : text.index("## check_conformance")]
    for row in report.rows:
        if "@" in row.name or not row.name.startswith(("rankpress", "cut")):
            continue
        found = row.quality["trec-dl-2021/test"]["nDCG@10"]
        figures = [f"{(row.size_bytes or 0) / 1e6:.1f} |"]
        if found.loss and found.loss_share and found.loss_bound is not None:
            bound = found.loss_bound * found.loss_share / found.loss
            figures.append(f"{100 * found.loss_share:.1f} % ({100 * bound:.1f}) |".replace("-", "−"))
        figures.append(f"| {row.agreement['trec-dl-2021/test']['kendall_tau'].mean:.3f} |")
        for one in (row, report.row(f"{row.name} @ openvino_bf16")):
            latency = one.latency[0]
            if one.name != "rankpress_fp32":
                low, high = latency.speedup_interval["rankpress_fp32"]
                figures.append(f"| {latency.speedup['rankpress_fp32']:.2f} ({low:.2f}–{high:.2f}) |")
        assert any(all(figure in line for figure in figures) for line in lines.splitlines()), (row.name, figures)


def test_speeds_of_narrower_layers_are_quoted_as_recorded():
    report = read_report(ROOT / "benchmarks" / "results" / "width_speed.json")
    for text, share in itertools.product(("README.md", "benchmarks/README.md"), (70, 50, 30)):
        words = (ROOT / text).read_text(encoding="utf-8")
        speeds = [f"{one.speedup['teacher']:.2f}" for one in report.row(f"{share}_predicted").latency]
        line = [line for line in words.splitlines() if line.startswith(f"| {share} % |") and speeds[0] in line]
        assert line, (text, share)
        assert speeds[1] in line[0]


@pytest.mark.parametrize(
    ("record", "collection", "text"),
    [
        ("tokens_passages", "trec-dl-2021/test", "README.md"),
        ("tokens_458", "squad2-420/test", "README.md"),
        ("tokens_passages", "trec-dl-2021/test", "benchmarks/README.md"),
        ("tokens_458", "squad2-420/test", "benchmarks/README.md"),
        ("tokens_237", "squad2-240/test", "benchmarks/README.md"),
        ("tokens_trained_455", "squad2-420/test", "benchmarks/README.md"),
        ("passages", "trec-dl-2021/test", "benchmarks/README.md"),
        ("pools_460", "squad2-420/test", "benchmarks/README.md"),
        ("pools_257", "squad2-240/test", "benchmarks/README.md"),
    ],
)
def test_token_rules_are_quoted_as_recorded(record, collection, text):
    """Each row of the tables has, side by side, its record's speeds at 1 and 2 threads and its loss with the bound."""
    report = read_report(ROOT / "benchmarks" / "results" / f"{record}.json")
    lines = (ROOT / text).read_text(encoding="utf-8").replace("*", "").splitlines()
    quoted = 0
    for row in report.rows[1:]:
        found = row.quality[collection]["nDCG@10"]
        speeds = ", ".join(f"{one.speedup['teacher']:.2f}" for one in row.latency)
        if found.loss and found.loss_share is not None and found.loss_bound is not None:
            bound = found.loss_bound * found.loss_share / found.loss
            loss = f"{100 * found.loss_share:.1f} % ({100 * bound:.1f})".replace("-", "−")
        else:
            loss = "none"
        quoted += any(f"| {speeds} | {loss} |" in line for line in lines)
    assert quoted == (3 if text == "README.md" else len(report.rows) - 1)


def test_peers_are_quoted_as_recorded():
    """Each row of the table has its record's speeds at 1 and 2 threads, its order's agreement and its size."""
    report = read_report(ROOT / "benchmarks" / "results" / "peers.json")
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").replace("*", "")
    lines = text[text.index("## peers") : text.index("## side_by_side")].splitlines()
    for row in report.rows[1:]:
        speeds = [f"{one.speedup['stock_onnx_fp32']:.2f}" for one in row.latency]
        quoted = [line for line in lines if line.startswith("| ") and all(f"| {speed}" in line for speed in speeds)]
        assert quoted, row.name
        assert any(f"{(row.size_bytes or 0) / 1e6:.1f} |" in line for line in quoted), row.name
