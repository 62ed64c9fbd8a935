from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from compressor.bench import latency
from compressor.bench import run as run_module
from compressor.bench.gate import gate_report
from compressor.bench.report import report_text
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.errors import InputError
from compressor.gate_settings import BenchSettings, GateSettings

SETTINGS = BenchSettings(threads=(1, 2), candidates=6, n_queries=6, rounds=2, warmup_queries=1)


def test_a_bench_from_rows_to_gate(make_row, make_data, tmp_path):
    rows = [
        make_row("torch_fp32_padded", kind="baseline", slowness=8, scores_of="stock_onnx_fp32"),
        make_row("stock_onnx_fp32", kind="baseline", slowness=4),
        make_row("model", noise=0.3, batch_shift=0.25),
    ]
    data = [make_data("a/test"), make_data("b/test", judged=False)]
    report = run_bench(rows, data, SETTINGS, teacher="stock_onnx_fp32", cache=tmp_path / "cache")
    teacher, model = report.row("stock_onnx_fp32"), report.row("model")
    assert [row.name for row in report.rows] == [row.name for row in rows]
    assert [latency.threads for latency in model.latency] == [1, 2]
    assert model.latency[0].speedup == pytest.approx(
        {"torch_fp32_padded": 81 / 11, "stock_onnx_fp32": 41 / 11}, rel=1e-3
    )
    assert teacher.latency[0].speedup.keys() == {"torch_fp32_padded"}
    assert model.latency[0].load_s == 0.5
    # Only the judged set has quality; agreement covers both.
    assert model.quality.keys() == {"a/test"}
    assert model.agreement.keys() == {"a/test", "b/test"}
    assert teacher.quality["a/test"]["nDCG@10"].loss is None
    lossy = model.quality["a/test"]["nDCG@10"]
    assert lossy.loss is not None
    assert lossy.loss == pytest.approx(teacher.quality["a/test"]["nDCG@10"].mean - lossy.mean)
    assert lossy.loss_bound is not None
    assert lossy.loss_bound > lossy.loss
    assert len(lossy.per_query) == len(report.data["a/test"].judged_ids) == 24
    assert 0.5 < model.agreement["b/test"]["kendall_tau"].mean < 1
    assert teacher.agreement["b/test"]["kendall_tau"].mean == 1
    rmse = model.agreement["b/test"]["score_rmse"]
    assert rmse.mean == pytest.approx(np.sqrt(np.mean(rmse.per_query)))
    assert model.batch_sensitivity is not None
    assert teacher.batch_sensitivity is not None
    assert model.batch_sensitivity.max_shift == pytest.approx(0.25, rel=1e-5)
    assert teacher.batch_sensitivity.max_shift == 0
    assert model.size_bytes == 1000
    assert model.file == "model.onnx"
    assert gate_report(report, GateSettings(min_speedup={"stock_onnx_fp32": 3.5})).verdict == "pass"
    assert json.loads(report_text(report))["teacher"] == "stock_onnx_fp32"


def test_a_row_that_is_the_same_model_takes_over_its_quality(make_row, make_data):
    rows = [
        make_row("stock", kind="baseline"),
        make_row("same", scores_of="stock"),
        make_row("not", noise=0.2, scores_of="stock"),
    ]
    report = run_bench(rows, [make_data()], SETTINGS.changed(threads=(1,)), teacher="stock")
    assert (report.row("same").scores_of, report.row("same").scores_of_difference) == ("stock", 0)
    assert report.row("same").quality == {
        "made/test": {
            name: one.model_copy(update={"loss": 0, "loss_share": 0, "loss_bound": 0})
            for name, one in report.row("stock").quality["made/test"].items()
        }
    }
    assert report.row("not").scores_of is None
    assert report.row("not").quality["made/test"]["nDCG@10"].loss != 0
    assert any("not should score like stock but differs by up to" in note for note in report.notes)
    loads = {row.name: len((row.folder / "loads.log").read_text().splitlines()) for row in rows}
    assert loads["not"] == loads["same"] + 1  # timed and probed like the others, and scored on its own


def test_a_busy_machine_and_too_many_threads_are_noted(make_row, make_data, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(latency, "cpu_seconds", lambda: (0.4 * (now := next(clock)), now))
    report = run_bench([make_row("one")], [make_data()], SETTINGS.changed(threads=(1, 99)), teacher="one")
    assert report.workload.busy_share == 0.4
    assert report.notes[0].startswith("The machine was busy: other work took 40 % of its CPU time between the turns.")
    assert report.notes[1].startswith("99 threads were asked for, this process may use ")


def test_the_plan_comes_first(make_row, make_data, capsys):
    run_bench([make_row("one")], [make_data()], SETTINGS, teacher="one")
    plan = capsys.readouterr().err.splitlines()[0]
    assert plan == (
        "Plan: time 1 rows on 6 queries × 2 rounds at 1 and 2 thread(s) (24 turns), then score 144 pairs on 1 rows."
    )


def test_all_faults_of_rows_come_at_once(make_row, make_data, tmp_path):
    rows = [
        make_row("one"), RowSpec(name="one", folder=tmp_path / "nowhere"), make_row("two", scores_of="onne"),
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        run_bench(rows, [make_data()], SETTINGS, teacher="tow")
    assert [str(fault) for fault in caught.value.faults] == [
        "bench: one: found two rows of this name; give each its own name",
        "bench: teacher: found 'tow'; allowed: one, one, two; did you mean 'two'?",
        f"{tmp_path / 'nowhere'}: found no such folder; row 'one' needs it",
        "bench: two: scores_of: found onne; allowed: one",
    ]


@pytest.mark.parametrize(
    ("rows", "n_data", "settings", "message"),
    [
        (0, 1, {}, "bench: found no folders to measure"),
        (1, 2, {}, "bench: made/test: found two data sets of this name"),
        (1, 0, {}, "found no query with candidates"),
        (1, 1, {"measures": ("nDGC@10",)}, "did you mean 'nDCG@10'?"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_loads(make_row, make_data, rows, n_data, settings, message):
    made = [make_row(f"row{i}") for i in range(rows)]
    with pytest.raises(InputError) as caught:
        run_bench(made, [make_data()] * n_data, SETTINGS.changed(**settings), teacher="row0")
    assert message in str(caught.value)
    assert not any((row.folder / "loads.log").exists() for row in made)


def test_bench_imports_without_torch():
    code = (
        "import sys, pkgutil, importlib, compressor.bench, compressor.gate_settings\n"
        "for one in pkgutil.iter_modules(compressor.bench.__path__):\n"
        "    importlib.import_module('compressor.bench.' + one.name)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'ir_measures', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=run_module.__file__.rsplit("/compressor/", 1)[0])
