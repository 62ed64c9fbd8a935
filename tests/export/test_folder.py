"""The universal folder: its files, what they say, and that a failed export leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml

from compressor.errors import InputError, RunError
from compressor.export import export_folder, write_graph, write_model_card
from compressor.export import folder as folder_module
from compressor.export.configs import tokenizer_files
from compressor.export.parity import check_order
from compressor.ranker.history import StageRecord
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Rows, SimilarityHead, TableSpec
from compressor.runtime.ranker import OnnxRanker
from tests.tiny import MAX_LENGTH, WIDTH, build_ranker, tiny_layer, tiny_spec
from tests.tiny import tokenizer_files as tiny_tokenizer

SMALL_FILES = {
    "README.md", "config.json", "model.safetensors", "rankpress.json", "spec.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tiny_ranker, tiny_pairs, tmp_path_factory):
    """The tiny ranker with all extras, and its report."""
    record = StageRecord(verb="drop_layers", settings={"keep": [0, 1]})
    ranker = tiny_ranker.changed(history=(record,))
    folder = tmp_path_factory.mktemp("out") / "model"
    return export_folder(
        ranker, folder, manifest={"teacher": {"name": "org/teacher"}}, calibration_pairs=tiny_pairs, portable=True
    )


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_folder_holds_every_file(exported):
    graphs = {"onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_portable.onnx"}
    assert names_in(exported.folder) == SMALL_FILES | graphs


def test_folder_ranks_as_the_ranker_does(exported, tiny_ranker, tiny_pairs):
    expected = tiny_ranker.score(tiny_pairs)
    for file in (None, "onnx/model_portable.onnx"):
        found = OnnxRanker.load(exported.folder, file=file, threads=1).score(tiny_pairs)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    rounded = OnnxRanker.load(exported.folder, file="onnx/model_quantized.onnx", threads=1).score(tiny_pairs)
    assert 0 < np.abs(rounded - expected).max() < 0.2


def test_checkpoint_in_the_folder_loads_with_transformers(exported, tiny_ranker, tiny_pairs):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(exported.folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported.folder, local_files_only=True)
    assert tokenizer.model_max_length == MAX_LENGTH
    queries, documents = zip(*tiny_pairs[:3], strict=True)
    inputs = tokenizer(
        list(queries), list(documents), padding=True, truncation="only_second", return_tensors="pt"
    )  # fmt: skip
    with torch.inference_mode():
        found = model(**inputs).logits[:, 0].numpy()
    np.testing.assert_allclose(found, tiny_ranker.score(tiny_pairs[:3]), atol=1e-5)


def test_config_says_what_servers_ask_for(exported):
    config = read(exported.folder, "config.json")
    asked = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0}, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": MAX_LENGTH, "pad_token_id": 0,
    }  # fmt: skip
    assert {key: config.get(key) for key in asked} == asked
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"


def test_tokenizer_files_suit_every_consumer(exported):
    settings = read(exported.folder, "tokenizer_config.json")
    assert settings["model_max_length"] == MAX_LENGTH
    assert settings["pad_token"] == "[PAD]"  # noqa: S105  # a token of text
    special = read(exported.folder, "special_tokens_map.json")
    assert special["cls_token"] == "[CLS]"  # noqa: S105
    assert all(isinstance(text, str) for text in special.values())
    assert (exported.folder / "vocab.txt").read_text().split("\n")[:3] == ["[PAD]", "[UNK]", "[CLS]"]


def quirky(**changes: object) -> dict[str, bytes]:
    """Return the tiny tokenizer as foreign folders have it."""
    files = {"tokenizer.json": tiny_tokenizer()["tokenizer.json"]}
    tokenizer = json.loads(files["tokenizer.json"])
    tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                            "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    files["tokenizer.json"] = json.dumps(tokenizer).encode()
    return files | {name: json.dumps(value).encode() for name, value in changes.items()}


@pytest.mark.parametrize("has_segments", [True, False])
def test_tokenizers_give_no_segments_to_models_that_take_none(has_segments, tmp_path):
    from transformers import AutoTokenizer

    embeddings = tiny_spec().embeddings
    ranker = build_ranker(tiny_spec() if has_segments else tiny_spec(embeddings=embeddings.changed(segments=None)))
    for name, content in tokenizer_files(ranker).items():
        (tmp_path / name).write_bytes(content)
    given = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)("a dog", "a tree")
    assert ("token_type_ids" in given) == has_segments


def test_foreign_tokenizer_files_are_mended():
    config = {"model_max_length": 10**30, "pad_token": {"content": "[PAD]", "special": True}, "max_length": 9}
    ranker = build_ranker().changed(tokenizer_files=quirky(**{"tokenizer_config.json": config}))
    files = tokenizer_files(ranker)
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["model_max_length"], settings["pad_token"]) == (MAX_LENGTH, "[PAD]")
    assert "max_length" not in settings
    tokenizer = json.loads(files["tokenizer.json"])
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    assert files["vocab.txt"].startswith(b"[PAD]\n[UNK]\n")
    assert json.loads(files["special_tokens_map.json"])["sep_token"] == "[SEP]"  # noqa: S105


def test_tokenizer_without_the_padding_id_is_refused():
    embeddings = tiny_spec().embeddings.changed(tokens=TableSpec(rows=300, width=WIDTH))
    ranker = build_ranker(tiny_spec(embeddings=embeddings, pad_id=299))
    with pytest.raises(InputError, match=r"tokenizer\.json: found no token with the id 299"):
        tokenizer_files(ranker)


def test_manifest_describes_the_folder(exported, tiny_ranker):
    manifest = read(exported.folder, "rankpress.json")
    assert manifest == json.loads(json.dumps(exported.manifest))
    assert manifest["main_file"] == "onnx/model.onnx"
    assert manifest["kind"] == "cross_encoder"
    assert manifest["fingerprint"] == tiny_ranker.fingerprint
    assert manifest["teacher"] == {"name": "org/teacher"}
    assert [record["verb"] for record in manifest["history"]] == ["drop_layers"]
    assert set(manifest["files"]) == names_in(exported.folder) - {"README.md", "rankpress.json"}
    for name, entry in manifest["files"].items():
        content = (exported.folder / name).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest["files"]["onnx/model.onnx"]["role"] == "main"
    files = [entry["file"] for entry in manifest["parity"]]
    assert files == ["model.onnx", "model_quantized.onnx", "model_portable.onnx"]
    assert manifest["parity"][0]["max_difference"] <= 1e-4
    companion = manifest["parity"][1]["against_main_file"]
    assert 0 < companion["mean_difference"] <= companion["max_difference"] < companion["spread"]


def test_manifest_keeps_its_own_keys(tiny_ranker, tmp_path):
    with pytest.raises(ValueError, match="history"):
        export_folder(tiny_ranker, tmp_path / "model", manifest={"history": []})
    assert list(tmp_path.iterdir()) == []


def test_int8_ranker_is_the_main_file_and_has_no_companion(tiny_ranker, tiny_pairs, tmp_path):
    ranker = tiny_ranker.changed(spec=round_spec(tiny_ranker.spec, Int8Dynamic(), Int8Rows()))
    report = export_folder(ranker, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)
    assert names_in(report.folder) == SMALL_FILES - {"model.safetensors"} | {"onnx/model.onnx"}
    kinds = {tensor.data_type for tensor in onnx.load(report.folder / "onnx/model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert "no torch checkpoint" in (report.folder / "README.md").read_text()


def test_uneven_ranker_has_no_checkpoint(tmp_path):
    spec = tiny_spec(layers=(tiny_layer(), tiny_layer(norm_placement="pre")))
    report = export_folder(build_ranker(spec), tmp_path / "model", manifest={}, int8_companion=False)
    assert names_in(report.folder) == SMALL_FILES - {"model.safetensors"} | {"onnx/model.onnx"}


def test_bi_encoder_folder(tiny_pairs, tmp_path):
    ranker = build_ranker(tiny_spec(head=SimilarityHead(pool="mean")))
    report = export_folder(ranker, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)
    assert report.manifest["kind"] == "bi_encoder"
    assert "id2label" not in read(report.folder, "config.json")
    found = OnnxRanker.load(report.folder, threads=1).score(tiny_pairs)
    np.testing.assert_allclose(found, ranker.score(tiny_pairs), atol=1e-5)
    assert "pipeline_tag: sentence-similarity" in (report.folder / "README.md").read_text()


@pytest.mark.parametrize("fault", ["other weights", "NaN", "reversed"])
def test_failed_parity_leaves_the_old_folder(fault, tiny_ranker, tiny_pairs, tmp_path, monkeypatch):
    def broken(spec, weights, dialect):
        changed = dict(weights)
        sign = {"other weights": 1.01, "NaN": float("nan"), "reversed": -1.0}[fault]
        changed["head.output.weight"] = weights["head.output.weight"] * sign
        return write_graph(spec, changed, dialect)

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("kept")
    monkeypatch.setattr(folder_module, "write_graph", broken)
    with pytest.raises(RunError, match=r"model\.onnx does not score as the ranker does: over \d+ rows"):
        export_folder(tiny_ranker, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)
    assert names_in(tmp_path) == {"model/old"}


def test_what_a_ranker_magnifies_of_rounding_is_allowed_and_no_more(tiny_ranker, tiny_pairs, tmp_path, monkeypatch):
    name = "head.output.weight"
    loud = tiny_ranker.changed(weights={**tiny_ranker.weights, name: 1e5 * tiny_ranker.weights[name]})
    report = export_folder(loud, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs, int8_companion=False)
    assert all(1e-4 < parity.max_difference <= parity.allowed_max for parity in report.parity)

    def broken(spec, weights, dialect):
        return write_graph(spec, {**weights, name: weights[name] * (1 + 1e-4)}, dialect)

    monkeypatch.setattr(folder_module, "write_graph", broken)
    with pytest.raises(RunError, match="does not score as the ranker does"):
        export_folder(loud, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs, int8_companion=False)


def test_broken_int8_graph_fails_although_its_tolerance_is_wider(tiny_ranker, tiny_pairs, tmp_path, monkeypatch):
    ranker = tiny_ranker.changed(spec=round_spec(tiny_ranker.spec, Int8Dynamic(), Int8Rows()))

    def broken(spec, weights, dialect):
        without = torch.zeros_like(weights["layers.1.ffn.down.bias"])
        return write_graph(spec, {**weights, "layers.1.ffn.down.bias": without}, dialect)

    monkeypatch.setattr(folder_module, "write_graph", broken)
    with pytest.raises(RunError, match="does not score as the ranker does"):
        export_folder(ranker, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)


def test_order_allows_near_ties_alone():
    expected = np.array([3.0, 2.0, 1.99, 1.0, *np.zeros(10)])
    swapped = expected[[0, 2, 1, *range(3, 14)]]
    check_order("model.onnx", expected, swapped, near=0.02)
    with pytest.raises(RunError, match=r"place 2 is off by 0\.01"):
        check_order("model.onnx", expected, swapped, near=0.005)


def test_card_is_complete(exported, tmp_path):
    text = (exported.folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "sentence-transformers"
    assert front["pipeline_tag"] == "text-ranking"
    assert front["base_model"] == "org/teacher"
    assert front["base_model_relation"] == "finetune"
    assert {"cross-encoder", "reranker"} <= set(front["tags"])
    words = (
        "Not measured yet", "drop_layers", "OnnxRanker", "fastembed", "CrossEncoder", "text-embeddings-inference",
        "transformers.js", "softmax", "model_quantized.onnx",
    )  # fmt: skip
    assert [word for word in words if word not in text] == []
    write_model_card(tmp_path, exported.manifest, "| ranker | p50 |\n| --- | --- |")
    assert "| ranker | p50 |" in (tmp_path / "README.md").read_text()


def test_card_calls_a_teacher_that_was_only_rounded_quantized(exported, tmp_path):
    manifest = {**exported.manifest, "history": [{"verb": "quantize"}], "teacher": {"name": "packaged"}}
    write_model_card(tmp_path, manifest, None)
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert front["base_model_relation"] == "quantized"
    assert "base_model" not in front


@pytest.mark.packaged
@pytest.mark.slow
def test_packaged_teacher_is_exported_within_the_budget(packaged_teacher, tiny_pairs, tmp_path):
    from compressor.families import load_teacher

    ranker = load_teacher("packaged", tmp_path)
    report = export_folder(ranker, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)
    assert report.parity[0].max_difference <= 1e-4
    assert report.seconds < 20  # 4 to 5 s alone on two cores; other tests run beside
