"""The smaller commands: validate, bench and gate, without timing anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor import commands
from compressor.errors import Fault, InputError


@pytest.fixture
def benched(monkeypatch, tiny_data):
    """Stand-ins for data and measurement; returns what `run_bench` was asked for."""
    asked: dict[str, Any] = {}

    def run_bench(rows, data, settings, *, teacher, cache):
        asked.update(rows=rows, data=data, settings=settings, teacher=teacher, cache=cache)
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
