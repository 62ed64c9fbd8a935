"""The same folder in several runtimes. What needs OpenVINO is skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from compressor.bench import openvino_session
from compressor.bench.engines import OnnxEngine, OpenVinoEngine
from compressor.bench.openvino_session import OpenVinoSession, load_ranker, why_missing
from compressor.bench.rows import RowSpec, row_fingerprint
from compressor.bench.run import run_bench
from compressor.bench.targets import present_targets, rows_on_targets
from compressor.errors import InputError
from compressor.gate_settings import BenchSettings
from compressor.runtime.folder import PORTABLE_FILE
from tests.tiny import build_ranker, tiny_layer, tiny_spec

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed (extra openvino)"
)


@pytest.fixture(scope="module")
def own_folder(tiny_ranker, tmp_path_factory):
    from compressor.export.folder import export_folder

    folder = tmp_path_factory.mktemp("own") / "model"
    export_folder(tiny_ranker, folder, manifest={}, int8_companion=False, portable=True)
    return folder


@pytest.fixture
def no_openvino(monkeypatch):
    monkeypatch.setattr(openvino_session.importlib.util, "find_spec", lambda name: None)


def stand_in(monkeypatch, *, capabilities=("FP32", "INT8"), threads=None, refuses=""):
    """Put an OpenVINO in place that compiles anything and remembers with which settings."""
    asked = {}

    class Core:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return list(capabilities)

        def read_model(self, path):
            if refuses:
                raise RuntimeError(refuses)
            return path

        def compile_model(self, model, device, settings):
            asked.update(settings)
            given = settings["INFERENCE_NUM_THREADS"] if threads is None else threads
            return SimpleNamespace(get_property=lambda name: given, create_infer_request=lambda: None)

    monkeypatch.setattr(openvino_session.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core, __version__="2026.4.1-22982"))
    return asked


def test_every_row_stands_in_every_target_and_baselines_in_onnx_runtime_too(tmp_path):
    torch = RowSpec(name="torch", kind="baseline", folder=tmp_path, engine="torch_fp32_padded", scores_of="stock")
    stock = RowSpec(name="stock", kind="baseline", folder=tmp_path)
    model = RowSpec(name="model", folder=tmp_path, file="a.onnx")
    rows = rows_on_targets([torch, stock, model], ["openvino"])
    assert [(row.name, row.kind, row.engine, row.scores_of) for row in rows] == [
        ("torch", "baseline", "torch_fp32_padded", "stock"),
        ("stock", "baseline", "onnx", None),
        ("stock @ openvino", "baseline", "openvino", "stock"),
        ("model @ openvino", "ranker", "openvino", None),
    ]
    assert rows[-1].file == "a.onnx"
    written = RowSpec(name="written", folder=tmp_path, scores_of="stock")
    assert rows_on_targets([stock, written], ["onnxruntime"]) == [stock, written]
    other = rows_on_targets([written], ["onnxruntime", "openvino"])[1]
    assert other.scores_of == "stock", "the row that has scores of its own"


@pytest.mark.usefixtures("no_openvino")
def test_without_openvino_its_targets_are_left_out_in_words(tmp_path):
    present, notes = present_targets(["onnxruntime", "openvino", "openvino_bf16"])
    assert present == ["onnxruntime"]
    install = "the package openvino is not installed: pip install 'rankpress[openvino]'"
    assert notes == [f"openvino was left out: {install}.", f"openvino_bf16 was left out: {install}."]
    with pytest.raises(InputError) as caught:
        present_targets(["openvino", "openvino_bf16"])
    assert [str(fault.source) for fault in caught.value.faults] == ["openvino", "openvino_bf16"]
    with pytest.raises(InputError, match="openvino: found no such target; the package openvino is not installed"):
        OpenVinoSession(tmp_path / "model.onnx", threads=1)


def test_bf16_is_a_target_where_the_cpu_has_it(monkeypatch):
    stand_in(monkeypatch)
    assert why_missing("f32") == ""
    assert why_missing("bf16").startswith("OpenVINO has no bf16 on this CPU")
    stand_in(monkeypatch, capabilities=("FP32", "BF16"))
    assert why_missing("bf16") == ""


def test_precision_and_threads_are_what_was_asked_for(monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    asked = stand_in(monkeypatch, capabilities=("FP32", "BF16"))
    OpenVinoSession(tmp_path / "model.onnx", threads=2, precision="bf16")
    assert asked["INFERENCE_PRECISION_HINT"] == "bf16"
    assert asked["INFERENCE_NUM_THREADS"] == 2
    OpenVinoSession(tmp_path / "model.onnx", threads=1)
    assert asked["INFERENCE_PRECISION_HINT"] == "f32"
    stand_in(monkeypatch, threads=1)
    with pytest.raises(InputError, match="threads: found 2, of which OpenVINO takes 1"):
        OpenVinoSession(tmp_path / "model.onnx", threads=2)


def test_a_refusal_is_told_without_places_in_sources(monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    said = (
        "Check 'x' failed at src/frontends/onnx:1:\nFrontEnd API failed with GeneralFailure:\nunknown op: Strange\n\n"
    )
    stand_in(monkeypatch, refuses=said)
    with pytest.raises(InputError, match=r"a graph that OpenVINO 2026\.4\.1 refuses \(unknown op: Strange\)"):
        OpenVinoSession(tmp_path / "model.onnx", threads=1)
    with pytest.raises(InputError, match="no such file"):
        OpenVinoSession(tmp_path / "other.onnx", threads=1)


def test_rows_of_different_engines_store_scores_apart(own_folder):
    rows = [RowSpec(name="m", folder=own_folder, engine=engine) for engine in ("onnx", "openvino", "openvino_bf16")]
    assert len({row_fingerprint(row) for row in rows}) == 3
    assert rows[1].graph_path == own_folder / PORTABLE_FILE


@needs_openvino
def test_openvino_scores_like_the_ranker_in_the_same_batches(own_folder, tiny_pairs, tiny_ranker):
    ours, theirs = OpenVinoEngine(own_folder, None, 1), OnnxEngine(own_folder, None, 1)
    found, expected = ours.score(tiny_pairs), theirs.score(tiny_pairs)
    assert found.scores == pytest.approx(tiny_ranker.score(tiny_pairs), abs=1e-4)
    assert found.lengths == expected.lengths
    assert ours.score_in_one_batch(tiny_pairs) == pytest.approx(expected.scores, abs=1e-4)
    assert ours.weights_path == own_folder / PORTABLE_FILE
    assert ours.load_s > 0


def tricky_rankers():
    """Everything that the portable dialect spells out in its own way."""
    from compressor.ranker.rounding import round_spec
    from compressor.ranker.spec import (
        AttentionSpec,
        Int4Blocks,
        Int8Blocks,
        Int8Dynamic,
        Int8Rows,
        PoolRule,
        RotarySpec,
        WindowPattern,
    )

    for precision in (Int8Dynamic(), Int8Blocks(block_size=32), Int4Blocks(block_size=32)):
        ranker = build_ranker()
        yield precision.kind, ranker.changed(spec=round_spec(ranker.spec, precision, Int8Rows()))
    attention: AttentionSpec = tiny_layer().attention  # type: ignore[assignment]
    turned = attention.changed(positions=RotarySpec(base=10_000.0), pattern=WindowPattern(reach=4))
    spec = tiny_spec(separator_id=3, layers=(tiny_layer(attention=turned, token_rule=PoolRule(stride=2)), tiny_layer()))
    yield "rotary, window, pooled", build_ranker(spec)


@needs_openvino
def test_portable_graphs_score_alike_in_both_runtimes(tmp_path, tiny_pairs):
    from compressor.export.folder import export_folder

    for name, ranker in tricky_rankers():
        folder = tmp_path / name
        export_folder(ranker, folder, manifest={}, int8_companion=False, portable=True)
        expected = OnnxEngine(folder, PORTABLE_FILE, 1).score(tiny_pairs).scores
        found = OpenVinoEngine(folder, None, 1).score(tiny_pairs).scores
        assert np.abs(found - expected).max() < 1e-3 * expected.std(), name


@needs_openvino
def test_what_openvino_cannot_read_is_bad_input(own_folder, tmp_path):
    folder = shutil.copytree(own_folder, tmp_path / "model")
    (folder / PORTABLE_FILE).write_bytes(b"no graph at all")
    with pytest.raises(InputError, match=r"model_portable\.onnx: found a graph that OpenVINO .* refuses \(.+\)"):
        load_ranker(folder, None, 1, "f32")


@needs_openvino
def test_a_bench_takes_quality_over_once_both_runtimes_agree(own_folder, tiny_data):
    rows = rows_on_targets([RowSpec(name="model", folder=own_folder)], ["onnxruntime", "openvino"])
    settings = BenchSettings(threads=(1,), n_queries=2, rounds=1, warmup_queries=1, candidates=8)
    report = run_bench(rows, [tiny_data], settings, teacher="model", notes=["said before"])
    ours, theirs = report.rows
    assert (theirs.name, theirs.engine, theirs.file) == ("model @ openvino", "openvino", PORTABLE_FILE)
    assert theirs.scores_of == "model"
    assert theirs.scores_of_difference is not None
    assert theirs.scores_of_difference < 1e-4
    assert theirs.latency[0].speedup["model"] > 0
    assert theirs.parameters == ours.parameters
    assert report.notes[0] == "said before"
    assert "openvino" in report.machine.versions
