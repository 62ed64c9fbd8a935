from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from compressor.bench.gate import gate_report
from compressor.bench.plot import linear_ticks, log_ticks
from compressor.bench.report import SCHEMA_PATH, read_report, report_text, schema_text, write_report
from compressor.bench.report_html import headline_row, render_html
from compressor.bench.schema import HistoryEntry, Report
from compressor.bench.terminal import print_report
from compressor.errors import InputError
from compressor.gate_settings import BenchSettings, GateSettings
from tests.bench.made_report import made_report, made_row

VALUES = [0.5 + 0.004 * i for i in range(40)]
WORSE = [value - 0.002 * (i % 3) for i, value in enumerate(VALUES)]


@pytest.fixture
def report() -> Report:
    rows = [
        made_row("stock_onnx_fp32", VALUES, VALUES, kind="baseline"),
        made_row("model", WORSE, VALUES, speed=3.0, noise=0.05),
        made_row("<b>&small", WORSE, VALUES, speed=5.0),
    ]
    history = [HistoryEntry(verb="distill", series={"dev/nDCG@10": [(0, 0.5), (10, 0.6)], "loss": [(0, 2), (10, 1)]})]
    made = made_report(*rows, history=history, notes=["The machine was busy."])
    settings = GateSettings(max_loss={"nDCG@10": "1%"}, max_size_mb=10)
    return made.model_copy(update={"gate": gate_report(made, settings)})


def test_the_schema_file_is_in_step():
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text(), "write it anew: python -m compressor.bench.report"


def test_the_names_of_version_1_stand(report):
    value = json.loads(report_text(report))
    assert value["schema"] == 1
    row = value["rows"][1]
    assert {"name", "kind", "folder", "quality", "latency", "size_bytes", "parameters", "macs_per_pair"} <= row.keys()
    assert {"mean", "loss", "loss_bound"} <= row["quality"]["hand/test"]["nDCG@10"].keys()
    assert {"threads", "p50_ms", "p95_ms", "p99_ms", "pairs_per_s"} <= row["latency"][0].keys()
    assert row["latency"][0]["speedup"]["stock_onnx_fp32"] == pytest.approx(3, rel=0.1)
    assert value["gate"]["verdict"] == "fail"
    assert {"verdict", "checks"} <= value["gate"].keys()


def test_a_report_survives_its_file(report, tmp_path):
    write_report(report, tmp_path / "out")
    assert read_report(tmp_path / "out") == read_report(tmp_path / "out" / "report.json") == report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html"}


def test_number_lists_take_one_line(report):
    lines = report_text(report).splitlines()
    assert len(lines) < 700
    assert any(line.strip().startswith('"per_query": [0.5, ') for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(schema=2), "schema: found 2; allowed: 1; write it anew"),
        (lambda value: value.pop("schema"), "schema: found None; allowed: 1; is it a rankpress report"),
        (lambda value: value["rows"][0].pop("tie_rate"), "rows.0.tie_rate: found .*Field required"),
        (lambda value: value["machine"].update(gpu="?"), "machine.gpu: found '\\?'; allowed: Extra inputs"),
    ],
)
def test_broken_reports_are_bad_input(report, tmp_path, change, message):
    value = json.loads(report_text(report))
    change(value)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=message) as caught:
        read_report(path)
    assert str(path) in str(caught.value)


def test_missing_and_foreign_files_are_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="is it a rankpress report at all"):
        read_report(tmp_path)


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(report):
    page = render_html(report)
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    assert not balance.seen & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_the_page_holds_what_was_measured(report):
    page = render_html(report)
    assert "<b>&small" not in page
    assert "&lt;b&gt;&amp;small" in page
    for words in ("Pareto front", "Latency", "Quality", "Gate", "Query by query", "Agreement with the teacher",
                  "Cost", "Batch mates", "What was done", "dev nDCG@10", "How to read this", "The machine was busy.",
                  "A CPU", "14 equal", "✗ fail"):  # fmt: skip
        assert words in page, words
    assert page.count("<svg") >= 2 + 4 + 2 + 1


def test_a_page_without_gate_judgments_or_history_still_stands():
    bare = made_report(
        made_row("a", VALUES, VALUES).model_copy(update={"quality": {}, "batch_sensitivity": None}), teacher="a",
        judged=False, history=[],
    )  # fmt: skip
    page = render_html(bare)
    assert "Kendall τ with the teacher" in page
    assert "What was done" not in page
    assert "<h2>Gate" not in page
    print_report(bare, Console(file=io.StringIO(), width=80))


def test_the_headline_is_the_fastest_that_did_not_fail(report):
    found = headline_row(report)
    assert found is not None
    assert found.name == "<b>&small"
    lighter = report.model_copy(
        update={"gate": gate_report(report, GateSettings(max_size_mb=10), rows=["<b>&small"])}
    )  # fmt: skip
    found = headline_row(lighter)
    assert found is not None
    assert found.name == "model"


def test_the_terminal_fits_80_columns_and_shows_the_verdict(report):
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=80))
    text = stream.getvalue()
    tables = [line for line in text.splitlines() if "✓" not in line and "✗" not in line]
    assert max(map(len, tables)) <= 80
    assert "…" not in text
    assert "Gate: fail: 4 checks (2 pass, 2 fail)." in text
    assert "! The machine was busy." in text


@pytest.mark.parametrize(
    "measures", [("nDCG@10", "RR(rel=2)@10"), ("nDCG@10", "RR@10", "AP", "nDCG(dcg='exp-log2')@10")]
)
def test_heads_and_numbers_of_many_measures_are_never_cut(measures):
    rows = [made_row("stock_onnx_fp32", VALUES, VALUES), made_row("a_rather_long_name_of_a_row", WORSE, VALUES)]
    found = rows[0].quality["hand/test"]["nDCG@10"]
    rows = [row.model_copy(update={"quality": {"hand/test": dict.fromkeys(measures, found)}}) for row in rows]
    stream = io.StringIO()
    print_report(made_report(*rows, settings=BenchSettings(measures=measures)), Console(file=stream, width=80))
    text = stream.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count(f"{found.mean:.4f}") == 2 * len(measures)
    for part in {part for measure in measures for part in measure.split("@")}:
        assert part in text


def test_points_that_json_cannot_hold_are_left_out(report, tmp_path):
    entry = HistoryEntry(verb="distill", series={"loss": [(0, 1), (1, math.nan), (2, math.inf), (3, 0.5)]})
    assert entry.series == {"loss": [(0, 1), (3, 0.5)]}
    write_report(report.changed(history=[entry]), tmp_path)
    assert read_report(tmp_path).history == [entry]


def test_the_terminal_has_a_line_for_each_training_pass(report):
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=80))
    assert "distill: loss █▁ 2 → 1   nDCG@10 ▁█ 0.6000\n" in stream.getvalue()


def test_ticks_are_round_and_inside():
    assert log_ticks(40, 2500) == [50, 100, 200, 500, 1000, 2000]
    assert log_ticks(90, 190) == [100, 150]
    assert linear_ticks(0.601, 0.634) == [0.61, 0.62, 0.63]
    assert linear_ticks(-0.1, 0.1, 4) == [-0.1, -0.05, 0, 0.05, 0.1]
