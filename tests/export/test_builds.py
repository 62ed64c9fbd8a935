"""Several builds in one folder: written, compared with torch, listed, and taken by the CPUs that they are for."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import cpu
from compressor.bench.rows import RowSpec, build_note, row_fingerprint
from compressor.bench.run import run_bench
from compressor.bench.size import cost_of
from compressor.builds import Builds
from compressor.errors import InputError
from compressor.export import export_folder
from compressor.export.packing import pack
from compressor.gate_settings import BenchSettings
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Rows
from compressor.runtime.packed import unpack
from compressor.runtime.ranker import OnnxRanker
from tests.ranker.cascades import cascading

BOTH = Builds.model_validate({"builds": ["int8", "int8_reduced_range"]}).builds
FLAGS = {
    "onnx/model_qint8_avx2.onnx": ("avx2", "fma"), "onnx/model_quantized.onnx": ("avx2", "avx_vnni"),
    "onnx/model.onnx": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tiny_ranker, tiny_pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("builds") / "model"
    return export_folder(tiny_ranker, folder, manifest={}, calibration_pairs=tiny_pairs, builds=BOTH)


def largest_weight(path):
    weights = [one for one in onnx.load(path).graph.initializer if one.data_type == onnx.TensorProto.INT8]
    products = [numpy_helper.to_array(one) for one in weights if ".ffn." in one.name or ".attention." in one.name]
    assert products
    return max(int(np.abs(one.astype(int)).max()) for one in products)


def test_every_build_is_written_checked_and_listed(exported):
    folder, manifest = exported.folder, exported.manifest
    assert largest_weight(folder / "onnx/model_quantized.onnx") == 127
    assert largest_weight(folder / "onnx/model_qint8_avx2.onnx") == 63
    assert [one.file for one in exported.parity] == ["model.onnx", "model_quantized.onnx", "model_qint8_avx2.onnx"]
    for entry in manifest["parity"][1:]:
        assert 0 < entry["against_main_file"]["mean_difference"] < entry["against_main_file"]["spread"]
    assert manifest["builds"] == [build.model_dump(mode="json") for build in BOTH]
    assert json.loads((folder / "rankpress.json").read_text())["builds"] == manifest["builds"]
    roles = {name: entry["role"] for name, entry in manifest["files"].items()}
    assert roles["onnx/model_qint8_avx2.onnx"] == (
        "build for avx512, avx2: the main file in int8_dynamic, weights of 7 bits"
    )
    assert roles["onnx/model.onnx"] == "main"
    card = (folder / "README.md").read_text()
    assert "| `onnx/model_qint8_avx2.onnx` | int8_reduced_range | avx512, avx2 |" in card
    assert "It is not what the table above measures" not in card, "the companion is a build here"


@pytest.mark.parametrize("file", FLAGS)
def test_the_runtime_takes_the_build_of_its_cpu(exported, file, tiny_pairs, monkeypatch):
    monkeypatch.setattr(cpu, "isa_flags", lambda: FLAGS[file])
    taken = OnnxRanker.load(exported.folder, threads=1)
    assert taken.onnx_path == exported.folder / file
    assert cpu.class_of(FLAGS[file]) in taken.reason
    asked = OnnxRanker.load(exported.folder, file=file, threads=1)
    assert asked.reason == "asked for"
    np.testing.assert_array_equal(taken.score(tiny_pairs), asked.score(tiny_pairs))


def test_a_folder_without_builds_says_so(tiny_ranker, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2",))
    folder = export_folder(tiny_ranker, tmp_path / "model", manifest={}).folder
    found = OnnxRanker.load(folder, threads=1)
    assert (found.onnx_path, found.reason) == (folder / "onnx/model.onnx", "the main file")
    assert build_note(RowSpec(name="model", folder=folder)) is None


def test_an_int8_ranker_has_a_build_of_seven_bits(tiny_ranker, tiny_pairs, tmp_path, monkeypatch):
    ranker = tiny_ranker.changed(spec=round_spec(tiny_ranker.spec, Int8Dynamic(), Int8Rows()))
    report = export_folder(ranker, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs, builds=BOTH[1:])
    assert {path.name for path in (report.folder / "onnx").iterdir()} == {"model.onnx", "model_qint8_avx2.onnx"}
    assert (largest_weight(report.folder / "onnx/model.onnx"), report.manifest["parity"][1]["file"]) == (
        127, "model_qint8_avx2.onnx",
    )  # fmt: skip
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2", "avx_vnni"))
    assert OnnxRanker.load(report.folder, threads=1).onnx_path.name == "model.onnx"


def test_a_build_may_take_the_name_of_the_companion(tiny_ranker, tmp_path):
    named = {"precision": "int8_reduced_range", "file": "onnx/model_quantized.onnx"}
    report = export_folder(
        tiny_ranker, tmp_path / "model", manifest={}, builds=Builds.model_validate({"builds": [named]}).builds
    )
    assert largest_weight(report.folder / "onnx/model_quantized.onnx") == 63
    assert len(report.parity) == 2


def test_a_pack_of_the_main_file_names_no_builds(exported, tmp_path):
    pack(exported.folder, tmp_path / "ranker.pack", main_only=True)
    unpack(tmp_path / "ranker.pack", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "rankpress.json").read_text())["builds"] == []
    found = OnnxRanker.load(tmp_path / "model", threads=1)
    assert (found.onnx_path.name, found.reason) == ("model.onnx", "the main file")


def test_what_has_no_build_is_refused_before_anything_is_written(tiny_ranker, tmp_path):
    ranker = tiny_ranker.changed(spec=round_spec(tiny_ranker.spec, Int8Dynamic(reduce_range=True), None))
    for one in (ranker, cascading()):
        with pytest.raises(InputError, match=r"export\.builds: found"):
            export_folder(one, tmp_path / "model", manifest={}, builds=BOTH[1:])
    assert not (tmp_path / "model").exists()


def test_a_report_is_of_the_build_that_runs(exported, tiny_data, monkeypatch):
    """Rows of one folder under two CPUs: file, size, note and stored scores are those of the build."""
    row, sizes, prints = RowSpec(name="model", folder=exported.folder), {}, set()
    for file, flags in FLAGS.items():
        monkeypatch.setattr(cpu, "isa_flags", lambda flags=flags: flags)
        assert row.graph_path == exported.folder / file
        sizes[file] = cost_of(row, row.graph_path, np.array([8])).size_bytes
        note = build_note(row)
        assert note is not None
        assert note.startswith(f"model ran {file}, the ")
        prints.add(row_fingerprint(row))
    assert sizes == {file: (exported.folder / file).stat().st_size for file in FLAGS}
    assert len(prints) == 3
    assert build_note(row.changed(file="onnx/model.onnx")) is None
    monkeypatch.undo()
    settings = BenchSettings(threads=(1,), n_queries=2, rounds=1, warmup_queries=1, candidates=8)
    report = run_bench([row], [tiny_data], settings, teacher="model")
    (measured,) = report.rows
    assert measured.file == row.graph_path.relative_to(exported.folder).as_posix()
    assert measured.size_bytes == row.graph_path.stat().st_size
    assert build_note(row) in report.notes
