"""The whole road on a tiny teacher: recipe, stages, folder, report, gate; and what happens when it is cut short."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

import cli
import compressor.pipeline as pipeline
from compressor import compress
from compressor.bench.report import read_report
from compressor.families import load_teacher, stock_checkpoint
from compressor.passes.precision_schemes import Scheme
from compressor.passes.quantize import Quantize
from compressor.recipe import DataSection, Recipe
from compressor.runtime import OnnxRanker
from compressor.storage import read_json
from tests.tiny import build_data

RECIPE = """
teacher: teacher
data:
  calibration: {{collection: small, split: train, candidates: all.trec}}
  test: {{collection: small, split: test, candidates: all.trec}}
passes: {passes}
bench: {{threads: [1], candidates: 8, n_queries: 3, rounds: 2, warmup_queries: 1}}
gate: {gate}
"""
PASSES = "[{drop_layers: {keep: {layers: 1, n_pairs: 16}}}, quantize]"


@pytest.fixture
def room(tmp_path, monkeypatch, tiny_ranker):
    """A folder with a stock teacher checkpoint and a small collection of two splits."""
    monkeypatch.chdir(tmp_path)
    stock_checkpoint(tiny_ranker, tmp_path / "teacher")
    data = build_data()
    small = tmp_path / "small"
    (small / "qrels").mkdir(parents=True)
    lines = [{"_id": key, "text": text} for key, text in data.documents.items()]
    (small / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"_id": key, "text": text} for key, text in data.queries.items()]
    (small / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    queries = list(data.queries)
    for split, ids in (("train", queries[:3]), ("test", queries[3:])):
        rows = [f"{q}\t{d}\t{grade}" for q in ids for d, grade in data.qrels[q].items()]
        (small / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    run = [f"{q} Q0 {d} {i + 1} {9 - i} t" for q, found in data.candidates.items() for i, d in enumerate(found)]
    (small / "all.trec").write_text("\n".join(run) + "\n")
    return tmp_path


def write_recipe(room: Path, passes: str = PASSES, gate: str = "{max_size_mb: 1}", name: str = "r.yaml") -> Path:
    (room / name).write_text(RECIPE.format(passes=passes, gate=gate))
    return room / name


def rankpress(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["rankpress", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.slow
def test_the_whole_road(room, monkeypatch, capsys):
    assert rankpress(monkeypatch, "compress", write_recipe(room), "--out", "made") == 0
    made = room / "made"
    report = read_report(made / "report.json")
    assert [row.name for row in report.rows] == ["torch_fp32_padded", "stock_onnx_fp32", "r"]
    assert report.gate is not None
    assert report.gate.verdict == "pass"
    assert [entry.verb for entry in report.history] == ["import", "drop_layers", "quantize"]
    parameters = [entry.parameters or 0 for entry in report.history]
    assert parameters[0] > parameters[1] == parameters[2] > 0
    difference = report.row("torch_fp32_padded").scores_of_difference
    assert difference is not None
    assert difference < 1e-4
    assert (made / "report.html").read_text().startswith("<!doctype html>")

    manifest = read_json(made / "model" / "rankpress.json")
    expected = {"scheme": "int8_static", "embeddings": True, "reduce_range": False}
    assert manifest["recipe"]["passes"][1]["quantize"].items() >= expected.items()
    assert manifest["report"]["gate"] == "pass"
    assert "| r |" in (made / "model" / "README.md").read_text()
    resolved = yaml.safe_load((made / "recipe.yaml").read_text())
    assert resolved["teacher"] == str(room / "teacher")
    assert resolved["data"]["test"][0]["collection"] == str(room / "small")
    assert resolved["passes"] == manifest["recipe"]["passes"]
    assert rankpress(monkeypatch, "validate", made / "recipe.yaml") == 0, "the resolved recipe cannot be replayed"

    ranked = OnnxRanker.load(made / "model").rank("how to train a small dog", ["the dog", "a stone by the sea"])
    assert {hit.index for hit in ranked} == {0, 1}

    capsys.readouterr()
    assert rankpress(monkeypatch, "gate", made, "--max-size-mb", "0.001") == 1
    assert rankpress(monkeypatch, "gate", made, "--max-size-mb", "1") == 0
    assert rankpress(monkeypatch, "gate", made, "--max-loss", "nDCG@10=1%") == 2, "three queries decide nothing"

    # The rest of the folder's life: a longer recipe starts from the stored stages, without the teacher.
    monkeypatch.setattr("compressor.families.load_teacher", _never)
    assert rankpress(monkeypatch, "compress", write_recipe(room, gate="{max_size_mb: 0.001}"), "--out", "made") == 1
    assert "2 of 2 passes are stored" in capsys.readouterr().err


def _never(*arguments):
    raise AssertionError("the teacher was loaded although every stage is stored")


def test_a_killed_run_goes_on_behind_its_last_stage(room, monkeypatch, capsys):
    path = write_recipe(room, passes="[{drop_layers: {keep: {layers: 1, n_pairs: 16}}}, quantize]")
    from compressor.prepare import prepare

    prepared = prepare(path, room / "made", [])
    quantize = type(prepared.recipe.passes[1])

    def killed(self, ranker, supply):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quantize, "apply", killed)
        with pytest.raises(KeyboardInterrupt):
            _run_passes(prepared, room)
    assert [stage.is_stored for stage in prepared.stages] == [True, False]
    assert not list((room / "made" / "stages").glob(".*")), "a half-written stage was left behind"

    monkeypatch.setattr(type(prepared.recipe.passes[0]), "apply", _never)
    ranker = _run_passes(prepared, room)
    assert [record.verb for record in ranker.history] == ["import", "drop_layers", "quantize"]
    assert [stage.is_stored for stage in prepared.stages] == [True, True]


def test_a_run_killed_at_its_very_first_write_can_be_started_again(room):
    from compressor.prepare import prepare

    (room / "made").mkdir()
    (room / "made" / ".recipe.yaml.partial-k1ll3d").write_text("teach")
    prepare(write_recipe(room), room / "made", [])


def test_a_teacher_that_turns_out_bad_leaves_no_folder(room, monkeypatch, capsys):
    path = room / "teacher" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.weight"].fill_(float("nan"))
    save_file(tensors, path)
    assert rankpress(monkeypatch, "compress", write_recipe(room), "--out", "made") == 3
    assert "teacher: head.output.weight: found 16 NaN or infinite weights" in capsys.readouterr().err
    assert not (room / "made").exists()


def test_a_setting_that_a_later_version_adds_and_nobody_uses_leaves_stages_as_they_are(tmp_path):
    class Later(Quantize):
        scheme: Scheme = "int8_dynamic"
        more: int | None = None

    def name(step):
        recipe = Recipe(teacher="packaged", data=DataSection(), passes=(step,))
        (stage,) = pipeline.make_stages(recipe, "f", lambda need: pytest.fail("no data are read"), tmp_path)
        return stage.folder.name

    now = Quantize(scheme="int8_dynamic")
    assert name(Later()) == name(now)
    assert name(Later(more=1)) != name(now) != name(Quantize(scheme="int8_dynamic", reduce_range=True))


def test_stages_depend_on_settings_seed_and_data(room):
    from compressor.prepare import prepare

    def folders(*overrides):
        return [stage.folder.name for stage in prepare(room / "r.yaml", room / "made", overrides).stages]

    write_recipe(room)
    first = folders()
    assert folders() == first
    changed = folders("passes.1={quantize: {embeddings: false}}")
    assert changed[0] == first[0]
    assert changed[1] != first[1]
    assert folders("seed=13")[0] != first[0]
    assert folders("data.calibration.queries=2")[0] != first[0]
    assert folders("bench.rounds=3") == first
    queries = room / "small" / "queries.jsonl"
    queries.write_text(queries.read_text().replace("small dog", "big dog"))
    assert folders()[0] != first[0]


def test_a_pass_that_breaks_an_earlier_promise_is_named(room, monkeypatch):
    from compressor.errors import RunError
    from compressor.prepare import prepare

    prepared = prepare(write_recipe(room), room / "made", [])
    teacher = load_teacher("teacher", room)

    monkeypatch.setattr(type(prepared.recipe.passes[1]), "apply", lambda self, ranker, supply: teacher)
    monkeypatch.setattr(type(prepared.recipe.passes[1]), "plan", lambda self, spec: teacher.spec)
    with pytest.raises(
        RunError, match=r"after quantize, promises .*\n  drop_layers promised: at most 1 layers; found: 2"
    ):
        _run_passes(prepared, room)


def test_a_pass_that_changes_its_input_is_named(room, monkeypatch):
    from compressor.errors import RunError
    from compressor.prepare import prepare

    prepared = prepare(write_recipe(room, passes="[quantize]"), room / "made", [])

    def vandal(self, ranker, supply):
        ranker.weights["head.output.weight"].add_(1)
        return ranker

    monkeypatch.setattr(type(prepared.recipe.passes[0]), "apply", vandal)
    with pytest.raises(RunError, match=r"passes\.0\.quantize: the pass changed its input"):
        _run_passes(prepared, room)


def test_importance_drops_the_layer_that_does_nothing_first(tiny_ranker, tiny_pairs):
    from compressor.algorithms.importance import drop_least_important_layers, score_change

    layer = tiny_ranker.spec.layers[0]
    silent = {
        name.replace("layers.1.", "layers.2."): tensor
        for name, tensor in tiny_ranker.weights.items()
        if "layers.1." in name
    }
    weights = {**tiny_ranker.weights, **silent}
    for name in [n for n in weights if n.startswith("layers.1.")]:
        weights[name] = (
            weights[name] * 0 if "norm" not in name else tiny_ranker.weights[name.replace("layers.1", "layers.0")]
        )
    spec = tiny_ranker.spec.changed(layers=(layer, layer, tiny_ranker.spec.layers[1]))
    planted = tiny_ranker.changed(spec=spec, weights=weights)
    kept, removals = drop_least_important_layers(planted, tiny_pairs, 2)
    assert kept == [0, 2]
    assert removals[0]["dropped"] == 1
    changes = removals[0]["score_change"]
    assert changes["1"] == min(changes.values())

    queries = ["a", "a", "b", "b"]
    shifted = np.array([1.0, 2.0, 5.0, 7.0])
    assert score_change(shifted + np.array([3, 3, -1, -1]), shifted, queries) == pytest.approx(0)
    assert score_change(shifted + np.array([1, -1, 0, 0]), shifted, queries) == pytest.approx(np.sqrt(0.5))
    # Lists of one have no order: the changes themselves count, and never nothing at all.
    assert score_change(shifted + np.array([3, 3, 3, 3]), shifted, ["a", "b", "c", "d"]) == pytest.approx(3)


def _run_passes(prepared, room):
    return pipeline.run_passes(
        prepared.stages, lambda: load_teacher("teacher", room), prepared.desk.load, prepared.recipe.seed, print
    )


def test_the_manifest_names_the_packages_whose_documentation_was_read():
    built_in = replace(build_data(), name="api-docs/train", collection="api-docs")
    desk = SimpleNamespace(seen={"train": built_in}, tests=[build_data()])
    prepared: Any = SimpleNamespace(name="r", recipe=Recipe(teacher="t"), teacher="f", desk=desk)
    data = compress._manifest(prepared)["data"]
    assert data["train"]["versions"]["numpy"] == np.__version__
    assert data["train"]["versions"]["stdlib"].endswith(platform.python_version())
    assert "versions" not in data["test"][0]
