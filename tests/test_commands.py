"""The smaller commands: validate, bench and gate, without timing anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor import commands, cpu
from compressor.bench import targets
from compressor.bench.report import write_report
from compressor.errors import Fault, InputError
from tests.bench.made_report import made_report, made_row


@pytest.fixture
def benched(monkeypatch, tiny_data):
    """Stand-ins for data and measurement; returns what `run_bench` was asked for."""
    asked: dict[str, Any] = {}

    def run_bench(rows, data, settings, *, teacher, cache, notes):
        asked.update(rows=rows, data=data, settings=settings, teacher=teacher, cache=cache, notes=notes)
        raise KeyboardInterrupt  # before anything is written

    monkeypatch.setattr(commands, "run_bench", run_bench)
    monkeypatch.setattr(commands, "load_data", lambda reference, depth: (str(reference), depth))
    monkeypatch.setattr(commands, "choose_onnx_file", lambda folder: folder / "model.onnx")
    return asked


def bench(*folders, **changes):
    options = {"teacher": None, "out": Path("out"), "threads": "", "measures": "AP", "candidates": 7, "n_queries": 3}
    commands.bench([Path(folder) for folder in folders], ["api-docs/test"], **{**options, **changes})


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/model", "runs/b/model"], ["a", "b"]),
        (["x/onnx", "y/onnx"], ["x/onnx", "y/onnx"]),
        (["runs/a/"], ["a"]),
    ],
)
def test_rows_are_named_after_their_folders(benched, folders, names):
    with pytest.raises(KeyboardInterrupt):
        bench(*folders)
    assert [row.name for row in benched["rows"]] == names
    assert benched["teacher"] == names[0], "without a teacher, losses refer to the first folder"


def test_flags_become_settings(benched, monkeypatch):
    monkeypatch.setattr(commands, "available_threads", lambda: 5)
    with pytest.raises(KeyboardInterrupt):
        bench("a", measures=" AP, RR@10 ")
    settings = benched["settings"]
    assert (settings.measures, settings.candidates, settings.n_queries) == (("AP", "RR@10"), 7, 3)
    assert settings.threads == (5,), "without --threads: what this process may use"
    assert benched["data"] == [("api-docs/test", 7)]
    with pytest.raises(KeyboardInterrupt):
        bench("a", threads="1, 2")
    assert benched["settings"].threads == (1, 2)


def test_every_target_is_a_row(benched, monkeypatch):
    monkeypatch.setattr(targets, "why_missing", lambda precision: "")
    monkeypatch.setattr(commands, "choose_portable_file", lambda folder: folder / "portable.onnx")
    with pytest.raises(KeyboardInterrupt):
        bench("a", "b", targets=["onnxruntime, openvino", "openvino_bf16"])
    assert [(row.name, row.engine, row.scores_of) for row in benched["rows"]] == [
        ("a", "onnx", None),
        ("a @ openvino", "openvino", "a"),
        ("a @ openvino_bf16", "openvino_bf16", None),
        ("b", "onnx", None),
        ("b @ openvino", "openvino", "b"),
        ("b @ openvino_bf16", "openvino_bf16", None),
    ]
    assert benched["settings"].targets == ("onnxruntime", "openvino", "openvino_bf16")
    assert (benched["teacher"], benched["notes"]) == ("a", [])


def test_a_gpu_is_a_target_without_a_portable_graph(benched, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "why_not_there", lambda target: "")
    (tmp_path / "a" / "onnx").mkdir(parents=True)
    (tmp_path / "a" / "onnx" / "model.onnx").write_bytes(b"x")
    (tmp_path / "a" / "rankpress.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path / "a", targets=["cuda"])
    assert [(row.name, row.engine) for row in benched["rows"]] == [("a @ cuda", "onnx_cuda")]
    with pytest.raises(InputError, match="no graph in standard ops alone"):
        bench(tmp_path / "a", targets=["cuda,tensorrt"])


def test_a_target_that_is_not_there_is_left_out_in_words(benched, monkeypatch, capsys):
    monkeypatch.setattr(
        targets, "why_missing", lambda precision: "the package openvino is not installed: pip install x"
    )
    said = "openvino was left out: the package openvino is not installed: pip install x."
    with pytest.raises(KeyboardInterrupt):
        bench("a", targets=["onnxruntime,openvino"])
    assert [row.name for row in benched["rows"]] == ["a"]
    assert benched["notes"] == [said]
    assert said in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match="openvino: found no such target; the package openvino is not installed"):
        bench("a", targets=["openvino"])
    with pytest.raises(InputError, match=r"--target: found 'openvno'; .*did you mean 'openvino'"):
        bench("a", targets=["openvno"])


def test_a_folder_without_a_portable_graph_is_refused_before_anything_is_measured(benched, monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "why_missing", lambda precision: "")
    (tmp_path / "a" / "onnx").mkdir(parents=True)
    (tmp_path / "a" / "onnx" / "model.onnx").write_bytes(b"x")
    (tmp_path / "a" / "rankpress.json").write_text("{}")
    with pytest.raises(InputError, match=r"no graph in standard ops alone; allowed: onnx/model_portable\.onnx"):
        bench(tmp_path / "a", targets=["openvino"])
    assert not benched


def test_a_folder_measured_on_another_class_of_cpus_is_noted(benched, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2",))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rankpress.json").write_text('{"report": {"machine": {"isa": ["avx2", "avx_vnni"]}}}')
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path / "a")
    (note,) = benched["notes"]
    assert note.startswith("a: the ranker in it was measured on a CPU of the class avx_vnni, this one is avx2:")
    assert f"warning: {note}" in capsys.readouterr().err


@pytest.mark.parametrize("isa", [["avx2"], ["avx512f", "avx512bw", "avx512vl"]])
def test_a_gate_on_a_report_of_another_class_of_cpus_warns_and_judges_all_the_same(isa, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2",))
    values = [0.5] * 20
    report = made_report(
        made_row("stock_onnx_fp32", values, values, kind="baseline"), made_row("model", values, values, speed=4)
    )
    write_report(report.changed(machine=report.machine.changed(isa=isa)), tmp_path)
    assert commands.gate(tmp_path, row=None, min_speedup=["stock_onnx_fp32=3"]) == 0
    warned = "was measured on a CPU of the class avx512, this one is avx2" in capsys.readouterr().err
    assert warned == (isa != ["avx2"])


def test_all_faulty_flags_of_bench_are_named(benched):
    with pytest.raises(InputError) as caught:
        bench("a", threads="1,two", measures="", n_queries=0)
    assert [str(fault) for fault in caught.value.faults] == [
        "command line: --threads: found 'two'; allowed: a whole number",
        "command line: --measures: found []; allowed: a list that is not empty",
        "command line: --queries: found 0; allowed: greater than 0",
    ]
    assert not benched


def test_validate_names_the_good_and_collects_the_faults_of_all_others(monkeypatch, capsys):
    def check(path, overrides):
        if path.stem != "good":
            raise InputError(Fault(source=path, found="nothing"))
        return SimpleNamespace(passes=()), []

    monkeypatch.setattr(commands, "check", check)
    with pytest.raises(InputError) as caught:
        commands.validate([Path("bad.yaml"), Path("good.yaml"), Path("worse.yaml")], [])
    assert capsys.readouterr().out == "good.yaml: in order (0 passes)\n"
    assert [str(fault.source) for fault in caught.value.faults] == ["bad.yaml", "worse.yaml"]
