"""Builds as data: what a recipe may write, what is written out, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compressor.builds import Build, Builds
from compressor.cascade_stages import Cascade, CascadeStage
from compressor.cpu import SATURATING
from compressor.errors import InputError
from compressor.ranker.builds import build_spec, check_builds
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.rounding import round_spec, with_precisions
from compressor.ranker.spec import Float16, Int8Blocks, Int8Dynamic, Int8Rows, Int8Static
from compressor.recipe import parse_recipe
from tests.tiny import tiny_spec


def builds(*given):
    return Builds.model_validate({"builds": list(given)})


def test_a_precision_alone_stands_for_its_usual_file_and_cpus():
    wide, narrow = builds("int8", "int8_reduced_range").builds
    assert (wide.file, narrow.file) == ("onnx/model_quantized.onnx", "onnx/model_qint8_avx2.onnx")
    assert narrow.cpus == SATURATING
    assert not set(wide.cpus) & set(narrow.cpus)
    assert builds({"precision": "int8"}).builds == (wide,)
    named = {"precision": "int8", "cpus": ["amx_int8"], "file": "onnx/model_qint8_avx512_vnni.onnx"}
    assert builds(named).builds[0].model_dump(mode="json") == named


def test_a_recipe_is_written_out_and_read_back():
    value = {"teacher": "packaged", "export": {"builds": ["int8", {"precision": "int8_reduced_range"}]}}
    recipe = parse_recipe(value, {}, "r.yaml")
    assert recipe.dump()["export"]["builds"][1] == {
        "precision": "int8_reduced_range", "cpus": ["avx512", "avx2"], "file": "onnx/model_qint8_avx2.onnx",
    }  # fmt: skip
    assert parse_recipe(recipe.dump(), {}, "r.yaml") == recipe


def test_the_build_of_a_cpu():
    found = builds("int8", "int8_reduced_range")
    expected = {"avx2": "int8_reduced_range", "avx512": "int8_reduced_range", "arm_dotprod": "int8", "amx_int8": "int8"}
    assert {cpu: found.for_cpu(cpu).precision for cpu in expected} == expected
    assert found.for_cpu("unknown") is None
    assert Builds().for_cpu("avx2") is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["int8", "int8"], "builds name a file twice: onnx/model_quantized.onnx"),
        (["int8", {"precision": "int8", "file": "onnx/model_int8.onnx"}], "builds name a CPU class twice: amx_int8"),
        ([{"precision": "int8", "cpus": ["unknown"]}], "CPUs of an unknown class take the main file"),
        ([{"precision": "int8", "cpus": []}], "at least 1 item"),
        ([{"precision": "int8", "cpus": ["sse"]}], "Input should be 'amx_int8'"),
        ([{"precision": "int4"}], "'int4' is no precision of a build: int8, int8_reduced_range"),
        ([{}], "None is no precision of a build"),
        (["../x"], "is no precision of a build"),
        ([3], "valid dictionary"),
        ([{"precision": ["int8"]}], "is no precision of a build"),
        ([{"precision": "int8", "folder": "x"}], "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        builds(*given)


@pytest.mark.parametrize(
    "file",
    [
        "onnx/model.onnx", "onnx/model_portable.onnx", "onnx/model_fp16.onnx", "model_int8.onnx", "onnx/cascade_0.onnx",
        "../onnx/model_int8.onnx", "/onnx/model_int8.onnx", "onnx/../model_int8.onnx", "onnx/model_int8.onnx\n", "",
        "onnx/model_int8_/../../x.onnx",
    ],
)  # fmt: skip
def test_files_have_names_that_consumers_look_for(file):
    with pytest.raises(ValidationError, match="is no name that consumers look for int8 under"):
        builds({"precision": "int8", "file": file})


@pytest.mark.parametrize("name", ["quantized", "int8", "uint8", "qint8_arm64", "quint8_avx2", "qint8_avx512_vnni"])
def test_names_of_consumers(name):
    assert builds({"precision": "int8", "file": f"onnx/model_{name}.onnx"}).builds[0].file.endswith(f"{name}.onnx")


def precisions(spec):
    return {name: linear.precision for name, linear in linears_of(spec)}


def test_the_shape_of_a_build():
    spec = tiny_spec()
    assert build_spec(spec, "int8") == round_spec(spec, Int8Dynamic(), Int8Rows())
    assert build_spec(spec, "int8_reduced_range") == round_spec(spec, Int8Dynamic(reduce_range=True), Int8Rows())
    mixed = with_precisions(spec, {"layers.0.ffn.up": Int8Static(), "layers.0.ffn.down": Int8Blocks()}, Int8Rows())
    found = build_spec(mixed, "int8_reduced_range")
    assert precisions(found) == {**precisions(mixed), "layers.0.ffn.up": Int8Static(reduce_range=True)}
    assert [table.precision for _, table in tables_of(found)] == [table.precision for _, table in tables_of(mixed)]


@pytest.mark.parametrize(
    ("precision", "linear", "message"),
    [
        ("int8", Int8Dynamic(), "found an int8 build of a ranker that is rounded; .*its main file is that build"),
        ("int8_reduced_range", Int8Dynamic(reduce_range=True), "found a build of 7 bits, where no matrix has 8 bits"),
        ("int8_reduced_range", Int8Blocks(), "found a build of 7 bits"),
        ("int8", Float16(), "found a ranker in half precision"),
    ],
)
def test_a_ranker_that_has_no_such_build(precision, linear, message):
    with pytest.raises(InputError, match=f"export.builds: {message}"):
        check_builds(round_spec(tiny_spec(), linear, None), [Build.usual(precision)])


def test_a_cascade_has_no_builds():
    spec = tiny_spec()
    check_builds(spec, [Build.usual("int8")])
    cascade = Cascade(stages=(CascadeStage(behind="embeddings", keep=0.5),))
    with pytest.raises(InputError, match="found a ranker with a cascade"):
        check_builds(spec.model_copy(update={"cascade": cascade}), [Build.usual("int8")])
    check_builds(spec.model_copy(update={"cascade": cascade}), [])
