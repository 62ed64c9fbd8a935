"""The check of the doctor against consumers: what counts as agreement, and what its scripts hand over."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from check_conformance import CONSUMERS as SCRIPTS
from check_conformance import last_line, outcomes, run
from conformance.comparison import TOLERANCE, Outcome, activated, compare, table
from conformance.environments import ENVIRONMENTS, SUBJECTS, Subject, interpreter_of

from compressor.doctor.examine import CONSUMERS
from compressor.doctor.findings import Finding, Reason, note, obstacle
from compressor.errors import RunError

LOGITS = [3.0, -1.0, 0.5, 8.0]
LOADS: tuple[Reason, ...] = ()
WITH_NOTE = (note("a sigmoid is applied"),)
MOVES = (note("8-bit products", moves_scores=True),)
REFUSES = (obstacle("no weights for torch"),)


def compared(reasons, scores, logits=LOGITS, **changes):
    finding = Finding(consumer="fastembed", version="0.9.1", evidence="run", reasons=reasons)
    outcome = Outcome(scores=None if scores is None else tuple(scores), **changes)
    return compare("teacher", "onnx/model.onnx", finding, outcome, logits)


def moved(gap: float) -> list[float]:
    return [LOGITS[0] + gap, *LOGITS[1:]]


@pytest.mark.parametrize(
    ("reasons", "scores", "said"),
    [
        (LOADS, LOGITS, ""),
        (LOADS, moved(TOLERANCE / 2), ""),
        (LOADS, moved(TOLERANCE * 2), "differ"),
        (LOADS, moved(math.nan), "differ"),
        (LOADS, None, "failed"),
        (WITH_NOTE, LOGITS, ""),
        (WITH_NOTE, moved(1), "differ"),
        (WITH_NOTE, None, "failed"),
        (MOVES, moved(1), ""),
        (MOVES, None, "failed"),
        (REFUSES, None, ""),
        (REFUSES, moved(1), ""),  # it runs with a head that is made up: its scores are senseless, as was said
        (REFUSES, LOGITS, "was not to load"),
    ],
)
def test_the_doctor_is_wrong_where_it_and_the_consumer_disagree(reasons, scores, said):
    found = compared(reasons, scores)
    assert said in found.disagreement
    assert bool(said) == bool(found.disagreement)


def test_differences_are_taken_behind_the_consumers_activation():
    sigmoids = [1 / (1 + math.exp(-one)) for one in LOGITS]
    found = compared(LOADS, sigmoids, activation="Sigmoid")
    assert found.max_difference == pytest.approx(0, abs=1e-12)
    assert found.kendall_tau == 1
    assert compared(LOADS, sigmoids).max_difference == pytest.approx(8 - sigmoids[3])
    with pytest.raises(ValueError, match="Tanh"):
        activated(LOGITS, "Tanh")


def test_order_is_compared_too():
    assert compared(MOVES, [-one for one in LOGITS]).kendall_tau == -1
    assert compared(LOADS, None).kendall_tau is None


def test_another_number_of_scores_is_a_defect_of_the_script():
    with pytest.raises(ValueError, match="3 scores for 4 pairs"):
        compared(LOADS, LOGITS[:3])


def test_the_table_has_a_row_for_each_and_marks_disagreement():
    rows = [compared(LOADS, LOGITS), compared(LOADS, None, error="ValueError: a | b " + "x" * 300)]
    text = table(rows)
    assert text.count("\n") == 4
    assert "**it was to load, and failed**" in text
    refused = table([compared(REFUSES, None, error="ValueError: a | b")])
    assert "ValueError: a / b" in refused
    assert json.dumps([row.as_json() for row in rows])


def test_every_subject_is_a_consumer_of_the_doctor_and_has_a_script_and_an_environment():
    assert {one.consumer for one in SUBJECTS} == {one.name for one in CONSUMERS if one.evidence == "run"}
    assert {one.environment for one in SUBJECTS} == set(ENVIRONMENTS)
    assert {one.script for one in SUBJECTS} == {path.name for path in SCRIPTS.glob("with_*.py")}
    versions = {one.name: one.version for one in CONSUMERS}
    for subject in SUBJECTS:
        if subject.environment != "optimum":  # whose version is a pair of packages
            pinned = " ".join(ENVIRONMENTS[subject.environment].requirements)
            assert versions[subject.consumer] in pinned, subject.consumer


def test_torch_is_never_installed_without_its_version():
    for environment in ENVIRONMENTS.values():
        wants_torch = any("torch" in one or "transformers" in one for one in environment.requirements)
        assert not wants_torch or any(one.startswith("torch==") for one in environment.requirements)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("with_*.py")), ids=lambda path: path.stem)
def test_scripts_import_no_rankpress_and_report_versions(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert "compressor" not in roots
    (call,) = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert len(call.value.args) > 2  # type: ignore[attr-defined]


LENGTHS = """
from jobs import main
def load(folder, file):
    if folder.endswith("broken"):
        raise OSError(f"nothing in {folder}")
    return file
main(load, lambda ranker, query, documents: ([len(one) for one in documents], "Identity"), "pytest")
"""


def test_a_script_tells_what_each_job_gave(tmp_path, monkeypatch):
    for source, name in ((SCRIPTS / "jobs.py", "jobs.py"), (None, "with_lengths.py")):
        (tmp_path / name).write_text(source.read_text() if source else LENGTHS)
    monkeypatch.setattr("check_conformance.CONSUMERS", tmp_path)
    subject = Subject(consumer="lengths", script="with_lengths.py", environment="none")
    jobs = [(tmp_path / "broken", "onnx/model.onnx"), (tmp_path / "whole", "onnx/model.onnx")]
    failed, scored = run(subject, Path(sys.executable), jobs, [("a", ["bb", "c"]), ("d", ["eee"])])
    assert failed.error == "OSError: nothing in broken"
    assert failed.scores is None
    assert scored.scores == (2, 1, 3)
    assert list(scored.versions) == ["pytest"]
    assert outcomes({"versions": {}, "jobs": []}) == []


def test_a_script_that_dies_tells_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text("import no_such_package\n")
    monkeypatch.setattr("check_conformance.CONSUMERS", tmp_path)
    subject = Subject(consumer="dead", script="dies.py", environment="none")
    (found,) = run(subject, Path(sys.executable), [(tmp_path, "model.onnx")], [])
    assert found.error == "ModuleNotFoundError: No module named 'no_such_package'"
    assert last_line("", 11) == "exit code 11, without a word"


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def made(command, **_):
        commands.append(list(command))
        python = tmp_path / "flashrank" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", made)
    monkeypatch.setattr(sys, "platform", "linux")
    for _ in range(2):
        assert interpreter_of("flashrank", tmp_path) == tmp_path / "flashrank" / "bin" / "python"
    assert len(commands) == 2  # venv and pip, once
    assert "flashrank==0.2.10" in commands[1]


def test_an_environment_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: ResolutionImpossible")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RunError, match="ResolutionImpossible"):
        interpreter_of("flashrank", tmp_path)
    assert not list(tmp_path.iterdir())


RECORDED = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "conformance.json"


def shown(gap: float) -> str:
    return f"{gap:.2f}" if gap >= 0.01 else f"{gap:.0e}" if gap else "0"


def test_the_recorded_run_bears_the_doctor_out_and_is_quoted_as_recorded():
    rows = json.loads(RECORDED.read_text(encoding="utf-8"))["rows"]
    assert not [row["disagreement"] for row in rows if row["disagreement"]]
    assert {row["consumer"] for row in rows if row["loaded"]} == {one.consumer for one in SUBJECTS}
    quoted = (RECORDED.parent.parent / "README.md").read_text(encoding="utf-8").splitlines()
    for subject in SUBJECTS:
        (line,) = [line for line in quoted if line.startswith(f"| {subject.consumer} |")]
        cells = [cell.strip() for cell in line.split("|")[3:-1]]
        found = {(row["folder"], row["file"]): row for row in rows if row["consumer"] == subject.consumer}
        folders = ("teacher", "int8", "int8_of_7_bits", "fewer_tokens")
        for cell, folder in zip(cells, folders, strict=True):
            row = found[folder, "onnx/model.onnx"]
            told = f"{shown(row['max_difference'])}, {row['kendall_tau']:.3f}" if row["loaded"] else "does not load"
            assert cell == told, (subject.consumer, folder)
