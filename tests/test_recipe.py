"""Recipes: reading, defaults written back, overrides, and every fault with its message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import compressor.passes  # noqa: F401  # fills the registry
from compressor.errors import InputError
from compressor.pipeline import check_recipe, make_plan
from compressor.ranker.spec import ClassifierHead, LinearSpec, TableSpec
from compressor.recipe import load_recipe, parse_recipe
from compressor.registry import registered
from tests.tiny import tiny_layer, tiny_spec

RECIPES = Path(__file__).parent.parent / "recipes"

GOOD = """
teacher: packaged
data:
  calibration: api-docs/train
  test: api-docs/test
passes:
  - drop_layers: {keep: every_other}
  - quantize
gate: {max_loss: {nDCG@10: 1%}, min_speedup: {stock_onnx_fp32: 3}}
"""


def load(tmp_path, text, overrides=()):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return load_recipe(path, registered(), overrides)


def faults(tmp_path, text, overrides=()):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, overrides)
    return [str(fault).replace(str(tmp_path) + "/", "") for fault in caught.value.faults]


def test_defaults_are_written_back(tmp_path):
    recipe = load(tmp_path, GOOD)
    written = yaml.safe_load(recipe.dump_yaml())
    assert written["passes"][1]["quantize"].items() >= {"scheme": "int8_static", "embeddings": True}.items()
    assert written["bench"]["candidates"] == 100
    assert written["seed"] == 12
    assert parse_recipe(written, registered(), "again") == recipe


def test_order_is_kept(tmp_path):
    recipe = load(tmp_path, "teacher: packaged\npasses: [quantize, {drop_layers: {keep: [0]}}]")
    assert [type(step).verb for step in recipe.passes] == ["quantize", "drop_layers"]


def test_empty_passes_are_legal(tmp_path):
    assert load(tmp_path, "teacher: packaged\npasses:").passes == ()


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_say_what_they_are_for(path):
    load_recipe(path, registered())
    header = path.read_text().split("\nteacher:")[0]
    assert header.startswith("#")
    for word in ("Goal", "Expected", "Command", "Time"):
        assert word in header, f"{path.name}: the header comment does not give its {word.lower()}"
        said = header.split(word, 1)[1].split("\n", 1)[0].split()
        assert len(said) > 1, f"{path.name}: its {word.lower()} is '{' '.join(said)}', which says nothing"


def packaged_shape():
    """Return the shape of the packaged teacher, which is not needed for it: BERT of 12 layers, 384 wide."""
    layer: Any = tiny_layer()
    square, up, down, logit = (
        LinearSpec(inputs=inputs, outputs=outputs)
        for inputs, outputs in ((384, 384), (384, 1536), (1536, 384), (384, 1))
    )
    attention = layer.attention.changed(
        heads=12, head_width=32, query=square, key=square, value=square, output=square
    )  # fmt: skip
    rows = {"tokens": 30_522, "positions": 512, "segments": 2}
    tables = {name: TableSpec(rows=count, width=384) for name, count in rows.items()}
    return tiny_spec(
        width=384,
        max_length=512,
        embeddings=tiny_spec().embeddings.changed(**tables),
        layers=(layer.changed(attention=attention, ffn=layer.ffn.changed(up=up, down=down)),) * 12,
        head=ClassifierHead(pool="first", dense=square, activation="tanh", output=logit),
    )


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.rglob("*.yaml")) if "start_from" not in path.read_text()],  # files of its own
    ids=lambda path: path.stem,
)
def test_shipped_recipes_can_be_planned_on_the_packaged_teachers_shape(path):
    recipe = load_recipe(path, registered())
    shapes = check_recipe(recipe, packaged_shape(), path)
    assert len(shapes) == len(recipe.passes) + 1
    planned = make_plan(recipe, path.stem, shapes)
    assert planned.steps[-1].macs_per_pair <= planned.steps[0].macs_per_pair


def test_there_are_recipes():
    assert list(RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("override", "reads", "value"),
    [
        ("bench.candidates=50", lambda recipe: recipe.bench.candidates, 50),
        ("passes.0.drop_layers.keep=[0, 1]", lambda recipe: recipe.passes[0].keep, (0, 1)),
        ("teacher=some/folder", lambda recipe: recipe.teacher, "some/folder"),
        ("gate.max_size_mb=40", lambda recipe: recipe.gate.max_size_mb, 40),
        ("export.portable=true", lambda recipe: recipe.export.portable, True),
        ("passes=[]", lambda recipe: recipe.passes, ()),
    ],
)
def test_overrides(tmp_path, override, reads, value):
    assert reads(load(tmp_path, GOOD, [override])) == value


FAULTY = [
    ("", ["r.yaml: found nothing; allowed: a mapping with teacher, data, passes, ..."]),
    ("- a\n- b", ["r.yaml: found ['a', 'b']; allowed: a mapping with teacher, data, passes, ..."]),
    ("teacher: [unclosed", ["r.yaml: line 1: found broken YAML: expected ',' or ']', but got '<stream end>'"]),
    ("teacher: a\nteacher: b", ["r.yaml: line 2: found broken YAML: the key 'teacher' stands twice"]),
    ("teacher: !!python/object:os.system x", ["r.yaml: line 1: found broken YAML: could not determine a constructor "
      "for the tag 'tag:yaml.org,2002:python/object:os.system'"]),
    ("passes: []", ["r.yaml: teacher: found nothing; allowed: a value: this key is required"]),
    ("teacher: 3", ["r.yaml: teacher: found 3; allowed: text"]),
    ("teacher: packaged\nseed: -1", ["r.yaml: seed: found -1; allowed: greater than or equal to 0"]),
    ("teacher: packaged\npases: []", ["r.yaml: pases: found the unknown key 'pases'; allowed: bench, data, export, "
      "gate, passes, seed; did you mean 'passes'?"]),
    ("teacher: packaged\npasses: quantize", ["r.yaml: passes: found 'quantize'; allowed: a list of passes"]),
    ("teacher: packaged\npasses: [quantise]", ["r.yaml: passes.0: found the unknown pass 'quantise'; allowed: "
      f"{', '.join(sorted(registered()))}; did you mean 'quantize'?"]),
    ("teacher: packaged\npasses: [{quantize: {}, drop_layers: {}}]", ["r.yaml: passes.0: found {'quantize': {}, "
      "'drop_layers': {}}; allowed: one verb with its settings, such as '- quantize: {scheme: int8_dynamic}'"]),
    ("teacher: packaged\npasses: [{quantize: fast}]", ["r.yaml: passes.0.quantize: found 'fast'; allowed: a mapping of "
      "settings: scheme, rounding, observer, percentile, n_pairs, block_size, reduce_range, embeddings, head, "
      "keep_fp32, keep_within"]),
    ("teacher: packaged\npasses: [{quantize: {scheme: int8_dinamic}}]", ["r.yaml: passes.0.quantize.scheme: found "
      "'int8_dinamic'; allowed: 'int8_dynamic', 'int8_static', 'int8_blocks', 'int4_blocks', 'fp16', 'bf16' or "
      "'none'; did you mean 'int8_dynamic'?"]),
    ("teacher: packaged\npasses: [{quantize: {embedings: true}}]", ["r.yaml: passes.0.quantize.embedings: found the "
      "unknown key 'embedings'; allowed: block_size, embeddings, head, keep_fp32, keep_within, n_pairs, observer, "
      "percentile, reduce_range, rounding, scheme; did you mean 'embeddings'?"]),
    ("teacher: packaged\npasses: [drop_layers]", ["r.yaml: passes.0.drop_layers.keep: found nothing; allowed: a value: "
      "this key is required"]),
    ("teacher: packaged\npasses: [{drop_layers: {keep: {layers: 6, pairs: 3}}}]", ["r.yaml: "
      "passes.0.drop_layers.keep.pairs: found the unknown key 'pairs'; allowed: n_pairs; did you mean 'n_pairs'?"]),
    ("teacher: packaged\nbench: {candidates: 0}", ["r.yaml: bench.candidates: found 0; allowed: greater than 0"]),
    ("teacher: packaged\nbench: {candidates: ten}", ["r.yaml: bench.candidates: found 'ten'; allowed: a whole number"]),
    ("teacher: ''", ["r.yaml: teacher: found ''; allowed: text that is not empty"]),
    ("teacher: packaged\nbench:", ["r.yaml: bench: found nothing; allowed: a mapping of threads, candidates, measures, "
      "targets, n_queries, rounds, warmup_queries, time_budget_s, padded_batch_pairs, seed"]),
    ("teacher: packaged\nbench: {threads: 1, 2: 3}", ["r.yaml: bench.threads: found 1; allowed: a list",
      "r.yaml: bench.2: found the unknown key '2'; allowed: candidates, measures, n_queries, padded_batch_pairs, "
      "rounds, seed, targets, time_budget_s, warmup_queries"]),
    ("teacher: packaged\nbench: {targets: [openvno]}", ["r.yaml: bench.targets.0: found 'openvno'; allowed: "
      "'onnxruntime', 'cuda', 'tensorrt', 'openvino' or 'openvino_bf16'; did you mean 'openvino'?"]),
    ("teacher: packaged\nbench: {targets: [onnxruntime, openvino]}", ["r.yaml: bench.targets: found a runtime without "
      "ONNX Runtime's own ops, and no export in standard ops alone; add export: {portable: true}"]),
    ("teacher: packaged\npasses: [{distill: {adapters: {kind: lorra}}}]", ["r.yaml: passes.0.distill.adapters.kind: "
      "found 'lorra'; allowed: 'lora', 'randlora'; did you mean 'lora'?"]),
    ("teacher: packaged\nbench: {threads: []}", ["r.yaml: bench.threads: found []; allowed: a list that is not empty"]),
    ("teacher: packaged\nbench: {time_budget_s: .inf}", ["r.yaml: bench.time_budget_s: found inf; allowed: a finite "
      "number"]),
    ("teacher: packaged\nseed: 99999999999", ["r.yaml: seed: found 99999999999; allowed: less than 4294967296"]),
    ("teacher: packaged\nexport: {portable: maybe}", ["r.yaml: export.portable: found 'maybe'; allowed: true or "
      "false"]),
    ("teacher: packaged\ngate: {max_loss: 1%}", ["r.yaml: gate.max_loss: found '1%'; allowed: a mapping"]),
    ("teacher: packaged\ngate: {min_agreement: {kendal_tau: 1}}", ["r.yaml: gate.min_agreement.kendal_tau: found the "
      "unknown key 'kendal_tau'; allowed: kendall_tau, overlap@10; did you mean 'kendall_tau'?"]),
    ("teacher: packaged\ngate: {}", ["r.yaml: gate: found no limits; allowed: max_loss, min_speedup, max_size_mb, "
      "min_agreement, max_score_rmse"]),
    ("teacher: packaged\ngate: {max_loss: {AP: 1%}, min_speedup: {stock_onxx: 2}}", ["r.yaml: gate.max_loss.AP: found "
      "'AP', which is not measured; allowed: nDCG@10, RR@10; add it to bench.measures", "r.yaml: "
      "gate.min_speedup.stock_onxx: found 'stock_onxx', which is not measured; allowed: stock_onnx_fp32, "
      "torch_fp32_padded; did you mean 'stock_onnx_fp32'?"]),
    ("teacher: packaged\ndata: {test: [api-docs/test, api-docs/test]}", ["r.yaml: data.test: found api-docs/test "
      "twice; take one away"]),
    ("teacher: \0", ["r.yaml: found broken YAML: unacceptable character #x0000: special characters are not allowed in "
      '"<unicode string>", position 9']),
    ("teacher: " + "[" * 5000, ["r.yaml: found broken YAML: brackets nested too deep"]),
    ("teacher: packaged\nexport: {builds: [int8, int9]}", ["r.yaml: export.builds.1: "
      "found 'int9'; 'int9' is no precision of a build: int8, int8_reduced_range"]),
    ("teacher: packaged\nexport: {int8: true}", ["r.yaml: export.int8: found the unknown key 'int8'; allowed: builds, "
      "int8_companion, portable; did you mean 'int8_companion'?"]),
]  # fmt: skip


MIXED_UP = [
    ("seed: true", "seed: found True; allowed: a whole number"),
    ("bench: {threads: [1, yes]}", "bench.threads.1: found True; allowed: a whole number"),
    ("gate: {max_size_mb: on}", "gate.max_size_mb: found True; allowed: a number"),
    ("gate: {min_speedup: {stock_onnx_fp32: true}}", "gate.min_speedup.stock_onnx_fp32: found True; allowed: a number"),
    ("passes: [{drop_layers: {keep: [0, true]}}]", "passes.0.drop_layers.keep.1: found True; allowed: a whole number"),
    ("passes: [{drop_layers: {keep: {layers: on}}}]",
     "passes.0.drop_layers.keep.layers: found True; allowed: a whole number"),
    ("data: {train: {collection: api-docs, queries: true}}", "data.train.queries: found True; allowed: a whole number"),
    ("export: {portable: 1}", "export.portable: found 1; allowed: true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MIXED_UP)
def test_truth_values_are_no_numbers_and_numbers_no_truth_values(tmp_path, text, expected):
    assert faults(tmp_path, f"teacher: packaged\n{text}") == [f"r.yaml: {expected}"]


@pytest.mark.parametrize(("text", "expected"), FAULTY, ids=range(len(FAULTY)))
def test_each_fault_has_its_message(tmp_path, text, expected):
    assert faults(tmp_path, text) == expected


def test_a_wrong_union_names_all_that_is_allowed(tmp_path):
    (fault,) = faults(tmp_path, "teacher: packaged\npasses: [{drop_layers: {keep: every_othr}}]")
    assert fault == (
        "r.yaml: passes.0.drop_layers.keep: found 'every_othr'; allowed: a list or 'every_other' or a mapping of "
        "layers, n_pairs; did you mean 'every_other'?"
    )


def test_all_faults_come_at_once(tmp_path):
    text = "teacher: 3\npases: []\nseed: x\npasses: [nothing, {quantize: {scheme: int9}}, {drop_layers: {kep: 1}}]"
    found = faults(tmp_path, text)
    places = [fault.split(": found")[0].removeprefix("r.yaml: ") for fault in found]
    assert places == [
        "teacher", "seed", "pases", "passes.0", "passes.1.quantize.scheme", "passes.2.drop_layers.keep",
        "passes.2.drop_layers.kep",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "command line: --set: found 'seed'; allowed: key.to.value=yaml"),
        ("=3", "command line: --set: found '=3'; allowed: key.to.value=yaml"),
        ("passes.7.quantize=1", "command line: --set: passes.7: found '7'; allowed: 0 to 1"),
        ("passes.first=1", "command line: --set: passes.first: found 'first'; allowed: 0 to 1"),
        ("teacher.name=x", "command line: --set: teacher.name: found 'packaged'; allowed: a path to a mapping or list"),
        ("seed=[1", "command line: --set: line 1: found broken YAML: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_faulty_overrides(tmp_path, override, message):
    assert faults(tmp_path, GOOD, [override]) == [message]


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "absent.yaml", registered())
    with pytest.raises(InputError, match="not a text file"):
        load_recipe(tmp_path, registered())
