"""The measured table in the model card and the summary in the manifest say what the report says."""

from __future__ import annotations

import json

from compressor.bench.gate import gate_report
from compressor.gate_settings import GateSettings
from compressor.measured_card import add_measurement, markdown_table
from tests.bench.made_report import DATA, made_report, made_row

TEACHER = [0.5, 0.7] * 10
STUDENT = [0.4, 0.7] * 10


def report(**changes):
    rows = [
        made_row("stock_onnx_fp32", TEACHER, TEACHER, kind="baseline"),
        made_row("small", STUDENT, TEACHER, speed=2),
    ]
    made = made_report(*rows, **changes)
    made = made.changed(machine=made.machine.changed(versions={"onnxruntime": "1.30"}))
    return made.changed(gate=gate_report(made, GateSettings(max_size_mb=40)))


def test_the_table_holds_every_row_with_loss_bound_speedup_and_size():
    table = markdown_table(report())
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == (
        f"| ranker | nDCG@10 on {DATA} (loss, bound) | p50 ms, 1 thr. | × stock_onnx_fp32, 1 thr. "
        "| p50 ms, 2 thr. | × stock_onnx_fp32, 2 thr. | MB |"
    )
    assert lines[3] == "| small | 0.5500 (+0.0500, +0.0100) | 50.0 | 2.00 | 50.0 | 2.00 | 30.0 |"
    assert len({line.count("|") for line in lines}) == 1, "a row has another number of cells than the head"
    assert f"A CPU, 2 threads at hand, ONNX Runtime 1.30; {DATA} (20 queries), 100 candidates" in table
    assert "Losses are relative to stock_onnx_fp32" in table
    assert "Gate: **pass**. small: the file has 30.0 MB" in table


def test_without_judgments_there_is_no_column_of_quality():
    table = markdown_table(report(judged=False))
    assert "nDCG@10" not in table
    assert "| small | 50.0 | 2.00 | 50.0 | 2.00 | 30.0 |" in table


def test_the_manifest_gets_the_summary_and_keeps_the_rest(tmp_path, monkeypatch):
    cards = []
    monkeypatch.setattr("compressor.export.write_model_card", lambda folder, manifest, table: cards.append(table))
    (tmp_path / "rankpress.json").write_text(json.dumps({"main_file": "onnx/model.onnx"}))
    add_measurement(tmp_path, report())
    manifest = json.loads((tmp_path / "rankpress.json").read_text())
    assert manifest["main_file"] == "onnx/model.onnx"
    summary = manifest["report"]
    assert summary["gate"] == "pass"
    small = summary["rows"]["small"]
    assert small["quality"][DATA]["nDCG@10"]["mean"] == 0.55
    assert "per_query" not in small["quality"][DATA]["nDCG@10"], "single queries stand in report.json"
    assert "samples_ms" not in small["latency"][0]
    assert cards == [markdown_table(report())]
