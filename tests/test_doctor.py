"""`rankpress doctor`: each consumer's rules, on folders that break one of them at a time."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console
from typer.testing import CliRunner

from cli import app
from compressor.doctor import examine
from compressor.doctor.examine import CONSUMERS, OWN_RUNTIME
from compressor.doctor.findings import Reason
from compressor.doctor.graph_facts import read_graph
from compressor.doctor.terminal import print_diagnosis
from compressor.errors import InputError
from compressor.export import export_folder
from tests.ranker.cascades import cascade, cascading
from tests.tiny import tokenizer_files

Change = Callable[[Path], object]
TORCH, ST_ONNX = "sentence-transformers (torch)", 'sentence-transformers (backend="onnx")'
TEI, ELAND = "text-embeddings-inference", "eland (Elasticsearch)"
READ_ONNX = {OWN_RUNTIME, ST_ONNX, "optimum-onnx", "fastembed", "FlashRank", TEI, "Vespa", "transformers.js"}
READ_TORCH = {TORCH, "rerankers", ELAND, "infinity"}
ALL = READ_ONNX | READ_TORCH
BEFORE_5 = {ELAND, "infinity", ST_ONNX, "optimum-onnx"}  # versions of transformers


@pytest.fixture(scope="module")
def exported(tiny_ranker, tmp_path_factory) -> Path:
    """The tiny ranker's folder, whose words no consumer guesses from."""
    folder = tmp_path_factory.mktemp("folders") / "model"
    export_folder(tiny_ranker, folder, manifest={})
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


def verdicts(path: Path) -> dict[str, str]:
    return {one.consumer: one.verdict for one in examine(path).findings}


def refused(path: Path) -> set[str]:
    return {name for name, verdict in verdicts(path).items() if verdict == "does_not_load"}


def reasons(path: Path, consumer: str, kind: str = "obstacle") -> list[Reason]:
    return [reason for reason in examine(path).of(consumer).reasons if reason.kind == kind]


def edit(name: str, **keys: Any) -> Change:
    """Set keys of a JSON file; None takes them out."""

    def change(path: Path) -> None:
        value = json.loads((path / name).read_text()) if (path / name).exists() else {}
        value = {key: one for key, one in {**value, **keys}.items() if one is not None}
        (path / name).write_text(json.dumps(value))

    return change


def remove(*names: str) -> Change:
    return lambda path: [(path / name).unlink() for name in names]


def write(name: str, content: bytes) -> Change:
    return lambda path: (path / name).write_bytes(content)


def change_graph(change: Callable[[onnx.ModelProto], object]) -> Change:
    """Change ``onnx/model.onnx`` alone."""

    def changed(path: Path) -> None:
        model = onnx.load(path / "onnx/model.onnx")
        change(model)
        onnx.save(model, path / "onnx/model.onnx")

    return changed


def graph(
    *, inputs: dict[str, int], output: str = "logits", kind: int = TensorProto.FLOAT, columns: int = 1, axes: Any = None
) -> onnx.ModelProto:
    """Return a graph that scores a pair by the sum of its token ids, as another tool may export it."""
    axes = axes or ["rows", "columns"]
    given = [helper.make_tensor_value_info(name, number, axes) for name, number in inputs.items()]
    wanted = helper.make_tensor_value_info(output, kind, [axes[0], columns])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Expand", ["mean", "shape"], ["wide"]),
        helper.make_node("Cast", ["wide"], [output], to=kind),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, columns])
    whole = helper.make_graph(nodes, "foreign", given, [wanted], [shape])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


LONG = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}


def foreign(path: Path, model: onnx.ModelProto, **config: Any) -> Path:
    """Write a folder as another tool may: a graph in the root, a tokenizer, little else."""
    path.mkdir()
    onnx.save(model, path / "model.onnx")
    for name, content in tokenizer_files().items():
        (path / name).write_bytes(content)
    (path / "config.json").write_text(json.dumps({"model_type": "distilbert", "pad_token_id": 0, **config}))
    return path


def test_every_consumer_loads_what_we_export(exported):
    diagnosis = examine(exported)
    found = {one.consumer: one.verdict for one in diagnosis.findings}
    assert set(found) == ALL == {OWN_RUNTIME, *(one.name for one in CONSUMERS)}
    assert "does_not_load" not in found.values()
    assert diagnosis.exit_code == 0
    assert {OWN_RUNTIME, TORCH, "FlashRank", "fastembed", TEI} <= {
        name for name, verdict in found.items() if verdict == "loads"
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("model.safetensors"), READ_TORCH),
        (write("model.safetensors", b"x" * 40), READ_TORCH),
        (write("model.safetensors", struct.pack("<Q", 10**12) + b"{}"), READ_TORCH),
        (remove("onnx/model.onnx"), READ_ONNX - {"transformers.js", "optimum-onnx"}),  # these take the int8 file
        (write("onnx/model.onnx", b"\x08\x07 no graph"), READ_ONNX),
        (write("onnx/model.onnx", b""), READ_ONNX),
        (write("onnx/model.onnx", b"version https://git-lfs.github.com/spec/v1\n"), READ_ONNX),
        (remove("config.json"), ALL - {OWN_RUNTIME, "fastembed", "Vespa"}),
        (write("config.json", b'{"model_type": '), ALL - {"Vespa"}),
        (remove("special_tokens_map.json"), {"FlashRank"}),
        (write("special_tokens_map.json", b"[]"), READ_TORCH | READ_ONNX - {TEI, "Vespa", "transformers.js"}),
        (remove("tokenizer_config.json"), {"fastembed", "FlashRank", "transformers.js"}),
        (remove("tokenizer.json"), READ_ONNX - {ST_ONNX, "optimum-onnx"}),  # transformers builds one of vocab.txt
        (write("tokenizer.json", b"{}"), ALL),
        (remove("vocab.txt"), {ELAND}),
        (edit("tokenizer_config.json", pad_token={"content": "[PAD]"}), {"fastembed", "FlashRank"}),
        (edit("tokenizer_config.json", model_max_length=1e30), {"fastembed"}),
        (edit("tokenizer_config.json", tokenizer_class="TokenizersBackend"), BEFORE_5),
        (edit("tokenizer_config.json", extra_special_tokens=["[Q]"]), BEFORE_5),
        (edit("config.json", pad_token_id=None), {"FlashRank"}),
        (edit("config.json", hidden_size=None), {TEI}),
        (edit("config.json", architectures=["BertModel"]), {TEI}),
        (edit("config.json", id2label={"0": "no", "1": "yes"}), {TEI, ST_ONNX} | READ_TORCH),
        (edit("config.json", model_type="t5"), {ELAND, "transformers.js"}),
        (edit("sentence_bert_config.json", do_lower_case=False), {TEI}),
        (edit("sentence_bert_config.json", max_seq_length=40), set()),
    ],
)  # fmt: skip
def test_what_is_missing_or_broken_keeps_those_away_who_need_it(folder, change, expected):
    change(folder)
    diagnosis = examine(folder)
    assert {one.consumer for one in diagnosis.findings if one.verdict == "does_not_load"} == expected
    assert diagnosis.exit_code == (3 if OWN_RUNTIME in expected else 0)


def test_a_head_that_would_be_made_up_is_refused(folder):
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: one for name, one in weights.items() if "classifier" not in name}, folder / "model.safetensors")
    assert refused(folder) == READ_TORCH
    assert reasons(folder, "rerankers")[0].key == "classifier"


def test_the_reason_names_file_key_and_what_to_do(folder):
    edit("tokenizer_config.json", model_max_length=1e30)(folder)
    (reason,) = reasons(folder, "fastembed")
    assert (reason.file, reason.key) == ("tokenizer_config.json", "model_max_length")
    assert "1e+30" in reason.text
    assert reason.fix


def own_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    model.graph.node.append(helper.make_node("Polish", ["logits"], ["polished"], domain="my.company"))


def function_of_its_own(model: onnx.ModelProto) -> None:
    own_operator(model)
    inner = helper.make_node("Identity", ["x"], ["y"])
    standard = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("my.company", "Polish", ["x"], ["y"], [inner], [standard]))


def test_operators_that_onnx_runtime_has_not_keep_all_of_its_users_away(folder):
    change_graph(own_operator)(folder)
    assert refused(folder) == READ_ONNX
    (reason,) = reasons(folder, "Vespa")
    assert reason.key == "my.company"
    assert "Polish" in reason.text


def test_a_function_that_the_file_defines_is_no_such_operator(folder):
    change_graph(function_of_its_own)(folder)
    assert refused(folder) == set()


def move_weights_out(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.convert_model_to_external_data(
        model, all_tensors_to_one_file=True, location="model.onnx_data", size_threshold=512
    )


def two_inputs_of_one_shape(model: onnx.ModelProto) -> None:
    model.graph.node[-1].input.append(model.graph.node[-1].input[0])  # an operator that takes fewer


def test_a_graph_that_onnx_runtime_refuses_is_refused_by_all_of_its_users(folder):
    change_graph(two_inputs_of_one_shape)(folder)
    assert refused(folder) == READ_ONNX
    assert "ONNX Runtime" in reasons(folder, "fastembed")[0].text


def test_weights_outside_of_the_graph(folder):
    change_graph(move_weights_out)(folder)
    assert refused(folder) == {"Vespa", "transformers.js"}
    facts = read_graph(folder, "onnx/model.onnx")
    assert facts.external_files == ("model.onnx_data",)
    assert facts.size_bytes > (folder / "onnx/model.onnx_data").stat().st_size > 0
    edit("config.json", **{"transformers.js_config": {"use_external_data_format": True}})(folder)
    assert refused(folder) == {"Vespa"}
    (folder / "onnx/model.onnx_data").unlink()
    assert refused(folder) == READ_ONNX


def test_weights_outside_of_the_folder_are_not_there(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    model = onnx.load(folder / "onnx/model.onnx")
    move_weights_out(model)
    for entry in (one for tensor in model.graph.initializer for one in tensor.external_data if one.key == "location"):
        entry.value = "../../secret"
    (folder / "onnx/model.onnx").write_bytes(model.SerializeToString())
    assert read_graph(folder, "onnx/model.onnx").missing_files == ("../../secret",)


def test_foreign_folders_load_where_their_rules_are_kept(tmp_path):
    path = foreign(tmp_path / "foreign", graph(inputs=LONG))
    found = verdicts(path)
    # The tokenizer gives type ids of 1, FlashRank feeds them, and this graph has no such input.
    assert refused(path) == READ_TORCH | {"FlashRank", TEI, ST_ONNX, "transformers.js"}
    assert reasons(path, "FlashRank")[0].key == "post_processor"
    assert {one.key for one in reasons(path, TEI)} >= {"architectures", "id2label", "max_position_embeddings"}
    assert reasons(path, TORCH)[0].text == "no weights for torch"
    assert found["optimum-onnx"] == "loads"
    assert "model.onnx" in reasons(path, "transformers.js")[0].text  # in the root, where it does not look


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"inputs": {**LONG, "position_ids": TensorProto.INT64}}, {OWN_RUNTIME, "fastembed", "optimum-onnx"}),
        ({"inputs": dict.fromkeys(LONG, TensorProto.INT32)}, {"fastembed"}),
        ({"inputs": LONG, "output": "relevance"}, {"optimum-onnx"}),
        ({"inputs": LONG, "columns": 2}, {OWN_RUNTIME, "fastembed", "optimum-onnx", "Vespa"}),
        ({"inputs": LONG, "axes": [1, 32]}, {OWN_RUNTIME, "fastembed", "optimum-onnx"}),
        ({"inputs": LONG, "kind": TensorProto.FLOAT16}, set()),
    ],
)
def test_graphs_that_some_consumers_cannot_feed_or_read(tmp_path, change, expected):
    path = foreign(tmp_path / "foreign", graph(**change), id2label={"0": "LABEL_0"})
    always = READ_TORCH | {"FlashRank", TEI, "transformers.js"}
    assert refused(path) - always - {ST_ONNX} == expected
    assert (ST_ONNX in refused(path)) == ("optimum-onnx" in expected)


def test_half_precision_logits_are_refused_by_the_server_that_reads_float32(tmp_path):
    path = foreign(tmp_path / "foreign", graph(inputs=LONG, kind=TensorProto.FLOAT16))
    assert any("float16" in reason.text for reason in reasons(path, TEI))


def test_a_list_ranker_is_scored_pair_by_pair_elsewhere(tmp_path):
    export_folder(cascading(cascade({"behind": 1, "keep": 0.5})), tmp_path / "model", manifest={}, int8_companion=False)
    diagnosis = examine(tmp_path / "model")
    for consumer in READ_ONNX - {OWN_RUNTIME}:
        assert "cascade" in {reason.key for reason in diagnosis.of(consumer).reasons}, consumer
    assert {diagnosis.of(consumer).verdict for consumer in READ_TORCH - {"infinity"}} == {"loads"}


def test_a_path_that_rerankers_would_guess_wrongly_from(folder):
    assert verdicts(folder)["rerankers"] == "loads"
    folder = folder.rename(folder.with_name("distilled-t5-like"))
    (reason,) = reasons(folder, "rerankers", "note")
    assert "'t5'" in reason.text
    assert "cross-encoder" in reason.fix


def test_sigmoids_are_told(folder):
    edit("config.json", sentence_transformers=None)(folder)
    for consumer in (TORCH, ST_ONNX):
        assert [one.key for one in reasons(folder, consumer, "note")] == ["sentence_transformers.activation_fn"]
    edit("config.json", sentence_transformers={"activation_fn": "my.module.Fn"})(folder)
    assert "trust_remote_code" in reasons(folder, TORCH, "note")[0].text


def test_int8_is_told_to_move_scores(folder):
    shutil.copy(folder / "onnx/model_quantized.onnx", folder / "onnx/model.onnx")
    diagnosis = examine(folder)
    assert diagnosis.of("fastembed").verdict == "loads_with_note"
    assert diagnosis.of("fastembed").moves_scores
    assert diagnosis.of(OWN_RUNTIME).verdict == "loads"
    assert not diagnosis.of(TORCH).moves_scores


def test_no_such_folder_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        examine(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file"):
        examine(tmp_path / "file")


def test_json_is_whole_and_stable(folder):
    remove("special_tokens_map.json")(folder)
    done = CliRunner().invoke(app, ["doctor", str(folder), "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert list(told) == ["schema", "rankpress", "folder", "findings"]
    (flashrank,) = [one for one in told["findings"] if one["consumer"] == "FlashRank"]
    assert flashrank["verdict"] == "does_not_load"
    assert list(flashrank) == ["consumer", "version", "verdict", "moves_scores", "reasons"]
    assert list(flashrank["reasons"][0]) == ["kind", "file", "key", "text", "fix", "moves_scores"]
    assert flashrank["reasons"][0]["file"] == "special_tokens_map.json"


def test_the_table_is_whole_on_a_narrow_terminal(folder, capsys):
    remove("onnx/model.onnx", "onnx/model_quantized.onnx")(folder)
    assert CliRunner().invoke(app, ["doctor", str(folder)]).exit_code == 3
    print_diagnosis(examine(folder), Console(width=80, highlight=False))
    text = capsys.readouterr().out
    assert "…" not in text
    for consumer in (OWN_RUNTIME, *(one.name for one in CONSUMERS)):
        assert consumer.split()[0] in text
    assert "✗ does not load" in text
    assert "→" in text
