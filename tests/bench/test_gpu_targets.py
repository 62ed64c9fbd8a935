"""Targets on GPUs, where there is none: what is missing is said, and stand-in providers show what would be asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compressor.bench import gpu_providers, machine
from compressor.bench.engines import GpuEngine, OnnxEngine, open_engine
from compressor.bench.gpu_providers import why_not_there
from compressor.bench.rows import RowSpec, row_fingerprint
from compressor.bench.targets import present_targets, rows_on_targets
from compressor.errors import InputError
from compressor.gate_settings import BenchSettings
from compressor.recipe import parse_recipe
from compressor.runtime.folder import HALF_FILES, choose_gpu_file
from compressor.runtime.session import open_session

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
REAL = ort.InferenceSession


@pytest.fixture(scope="module")
def own_folder(tiny_ranker, tmp_path_factory):
    from compressor.export.folder import export_folder

    folder = tmp_path_factory.mktemp("own") / "model"
    export_folder(tiny_ranker, folder, manifest={}, portable=True)
    return folder


@pytest.fixture
def provide(monkeypatch):
    """Put an ONNX Runtime in place that has providers, of which some start; it computes on the CPU and keeps a log."""

    def put(*available, starting=None, fails=False):
        opened = []

        class Session:
            def __init__(self, model, options, providers):
                if fails:
                    raise RuntimeError("no device")
                opened.append((Path(model).name if isinstance(model, str) else "probe", list(providers)))
                self._providers = [name for name in providers if starting is None or name in starting]
                self._session = REAL(model, options, providers=[CPU])

            def get_providers(self):
                return [*(name for name in self._providers if name != CPU), CPU]

            def __getattr__(self, name):
                return getattr(self._session, name)

        monkeypatch.setattr(ort, "get_available_providers", lambda: [*available, CPU])
        monkeypatch.setattr(ort, "InferenceSession", Session)
        return opened

    return put


def test_the_probe_is_an_onnx_graph_that_runs():
    model = onnx.load_from_string(gpu_providers._PROBE)
    onnx.checker.check_model(model)
    (found,) = REAL(gpu_providers._PROBE, providers=[CPU]).run(None, {"x": np.ones(1, np.float32)})
    assert found.tolist() == [1.0]


def test_what_is_not_installed_is_left_out_in_words(provide):
    opened = provide()
    present, (cuda, tensorrt) = present_targets(["onnxruntime", "cuda", "tensorrt"])
    assert present == ["onnxruntime"]
    assert cuda == (
        f"cuda was left out: ONNX Runtime {ort.__version__} here has no CUDAExecutionProvider: put onnxruntime-gpu in "
        "the place of onnxruntime, pip uninstall onnxruntime, then pip install onnxruntime-gpu."
    )
    assert "has no TensorrtExecutionProvider" in tensorrt
    assert tensorrt.endswith("pip install onnxruntime-gpu tensorrt.")
    assert not opened, "nothing is started that is not there"
    with pytest.raises(InputError, match="cuda: found no such target; ONNX Runtime"):
        present_targets(["cuda"])


@pytest.mark.parametrize("fails", [False, True])
def test_a_provider_that_does_not_start_is_left_out_in_words(provide, fails):
    provide(TENSORRT, CUDA, starting=(), fails=fails)
    reason = " (no device)" if fails else ""  # what the runtime says is handed on
    assert why_not_there("cuda").endswith(
        f"here has CUDAExecutionProvider, which does not start{reason}: "
        "it wants an NVIDIA GPU with its driver, CUDA and cuDNN"
    )
    assert "TensorrtExecutionProvider, which does not start" in why_not_there("tensorrt")


def test_providers_that_start_are_present(provide):
    opened = provide(TENSORRT, CUDA)
    assert present_targets(["cuda", "tensorrt"]) == (["cuda", "tensorrt"], [])
    assert opened == [("probe", [CUDA]), ("probe", [TENSORRT, CUDA])]
    provide(TENSORRT, CUDA, starting=(CUDA,))
    assert (why_not_there("cuda"), why_not_there("tensorrt") == "") == ("", False)


def test_rows_on_gpus_are_scored_on_their_own(tmp_path):
    rows = rows_on_targets([RowSpec(name="model", folder=tmp_path)], ["onnxruntime", "cuda", "tensorrt"])
    assert [(row.name, row.engine, row.scores_of) for row in rows] == [
        ("model", "onnx", None), ("model @ cuda", "onnx_cuda", None), ("model @ tensorrt", "onnx_tensorrt", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "file", "providers"),
    [("onnx_cuda", "model.onnx", [CUDA]), ("onnx_tensorrt", "model_portable.onnx", [TENSORRT, CUDA])],
)
def test_an_engine_asks_for_its_providers_and_graph(engine, file, providers, own_folder, provide, tiny_pairs):
    expected = OnnxEngine(own_folder, None, 1).score(tiny_pairs).scores
    opened = provide(TENSORRT, CUDA)
    found = open_engine({"engine": engine, "folder": str(own_folder), "file": None, "threads": 1})
    assert opened == [(file, providers)]
    assert found.weights_path == own_folder / "onnx" / file
    assert found.weights_path == RowSpec(name="m", folder=own_folder, engine=engine).graph_path
    np.testing.assert_allclose(found.score(tiny_pairs).scores, expected, atol=1e-4)


def test_an_engine_never_runs_on_the_cpu_instead(own_folder, provide):
    provide(CUDA, starting=())
    with pytest.raises(InputError, match="providers: found 'CUDAExecutionProvider', which does not start"):
        GpuEngine(own_folder, None, 1, target="cuda")
    with pytest.raises(InputError, match="which does not start"):
        open_session(own_folder / "onnx/model.onnx", 1, [CUDA])
    provide()
    with pytest.raises(InputError, match="providers: found 'CUDAExecutionProvider'; allowed: CPUExecutionProvider"):
        GpuEngine(own_folder, None, 1, target="cuda")


def test_cuda_takes_half_precision_where_the_ranker_is_in_it(tmp_path):
    (tmp_path / "onnx").mkdir()
    for name in ("onnx/model.onnx", HALF_FILES["fp16"]):
        (tmp_path / name).write_bytes(b"x")
    assert choose_gpu_file(tmp_path) == tmp_path / "onnx/model.onnx", "of other tools it is another ranker"
    (tmp_path / "rankpress.json").write_text(json.dumps({"main_file": "onnx/model.onnx", "builds": ["int8"]}))
    assert choose_gpu_file(tmp_path) == tmp_path / HALF_FILES["fp16"]
    assert choose_gpu_file(tmp_path, "onnx/model.onnx") == tmp_path / "onnx/model.onnx"
    (tmp_path / HALF_FILES["fp16"]).unlink()
    assert choose_gpu_file(tmp_path) == tmp_path / "onnx/model.onnx", "builds are for CPUs"


def test_scores_of_another_gpu_are_stored_apart(own_folder, tmp_path, monkeypatch):
    row = RowSpec(name="m", folder=own_folder, engine="onnx_cuda")
    prints = {row_fingerprint(row), row_fingerprint(row.changed(engine="onnx"))}
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t\t A GPU\nIRQ:   1\n")
    monkeypatch.setattr(machine, "_GPUS", tmp_path)
    assert machine.describe_machine().gpus == ["A GPU"]
    assert row_fingerprint(row.changed(engine="onnx")) in prints
    assert row_fingerprint(row) not in prints


def test_only_targets_without_our_ops_want_a_portable_graph():
    def recipe(*targets):
        return parse_recipe({"teacher": "packaged", "bench": {"targets": list(targets)}}, {}, "r.yaml")

    assert recipe("onnxruntime", "cuda").bench == BenchSettings(targets=("onnxruntime", "cuda"))
    with pytest.raises(InputError, match=r"bench\.targets: found a runtime without ONNX Runtime's own ops"):
        recipe("onnxruntime", "tensorrt")
