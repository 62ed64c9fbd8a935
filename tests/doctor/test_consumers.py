"""`rankpress doctor`: each consumer's rules about files, on folders that break one of them at a time."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli import app
from compressor.doctor import examine
from compressor.doctor.examine import CONSUMERS, OWN_RUNTIME
from compressor.doctor.terminal import print_diagnosis
from compressor.errors import InputError
from tests.doctor.changes import (
    ALL,
    BEFORE_5,
    ELAND,
    READ_ONNX,
    READ_TORCH,
    ST_ONNX,
    TEI,
    TORCH,
    edit,
    reasons,
    refused,
    remove,
    verdicts,
    write,
)


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
        # These take the int8 file, or the torch checkpoint.
        (remove("onnx/model.onnx"), {OWN_RUNTIME, "fastembed", "FlashRank", "Vespa"}),
        (remove("onnx/model.onnx", "model.safetensors"), ALL - {"transformers.js", "optimum-onnx"}),
        (remove("onnx/model.onnx", "onnx/model_quantized.onnx"), READ_ONNX - {ST_ONNX, "optimum-onnx", TEI}),
        (write("onnx/model.onnx", b"\x08\x07 no graph"), READ_ONNX - {TEI}),
        (write("onnx/model.onnx", b""), READ_ONNX - {TEI}),
        (write("onnx/model.onnx", b"version https://git-lfs.github.com/spec/v1\n"), READ_ONNX - {TEI}),
        (remove("config.json"), ALL - {"fastembed", "Vespa"}),  # nothing else tells how many positions there are
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
        (edit("config.json", hidden_size=None), {TEI} | READ_TORCH),
        (edit("config.json", model_type="distilbert"), {"infinity"}),  # its tokenizer gives segments
        (edit("config.json", vocab_size=7), READ_TORCH),
        (edit("config.json", architectures=["BertModel"]), {TEI, "infinity"}),
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


def test_a_path_that_rerankers_would_guess_wrongly_from(folder):
    assert verdicts(folder)["rerankers"] == "loads"
    folder = folder.rename(folder.with_name("distilled-t5-like"))
    (reason,) = reasons(folder, "rerankers", "note")
    assert "'t5'" in reason.text
    assert "cross-encoder" in reason.fix


def test_short_rows_are_told_to_be_cut_otherwise(folder):
    edit("tokenizer_config.json", model_max_length=40)(folder)
    diagnosis = examine(folder)
    cutting = {
        one.consumer for one in diagnosis.findings if "model_max_length" in {reason.key for reason in one.reasons}
    }
    assert cutting == {TORCH, ST_ONNX, "optimum-onnx", "fastembed", "FlashRank", "rerankers", "infinity"}
    assert all(diagnosis.of(name).moves_scores and diagnosis.of(name).verdict != "does_not_load" for name in cutting)


def test_sigmoids_are_told(folder):
    edit("config.json", sentence_transformers=None)(folder)
    for consumer in (TORCH, ST_ONNX):
        assert reasons(folder, consumer, "note")[0].key == "sentence_transformers.activation_fn"
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
    assert list(flashrank) == ["consumer", "version", "evidence", "verdict", "moves_scores", "reasons"]
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
