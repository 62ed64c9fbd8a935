"""Rankers on disk: what comes back scores equally to the bit, and hostile or broken folders say what is wrong."""

from __future__ import annotations

import json
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import InputError, RunError
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import Ranker
from compressor.ranker.store import load_ranker, save_ranker
from tests.ranker.cases import SPECS
from tests.tiny import build_ranker


@pytest.fixture
def folder(tiny_ranker: Ranker, tmp_path: Path) -> Path:
    save_ranker(tiny_ranker, tmp_path / "ranker")
    return tmp_path / "ranker"


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_ranker(folder)
    return str(caught.value)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", SPECS)
def test_saved_ranker_scores_equally_to_the_bit(name, tiny_pairs, tmp_path):
    ranker = build_ranker(SPECS[name]).changed(
        history=(StageRecord(verb="import", notes={"path": "somewhere"}), StageRecord(verb="distill", seconds=1.5))
    )
    save_ranker(ranker, tmp_path / "a")
    again = load_ranker(tmp_path / "a")
    np.testing.assert_array_equal(again.score(tiny_pairs), ranker.score(tiny_pairs))
    assert again.fingerprint == ranker.fingerprint
    assert (again.spec, again.history, again.source_config) == (ranker.spec, ranker.history, ranker.source_config)
    assert again.tokenizer_files == ranker.tokenizer_files
    save_ranker(again, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_folder_holds_what_it_should(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "history.json", "model.safetensors", "spec.json", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip


def test_saving_replaces_the_whole_folder(tiny_ranker, folder):
    (folder / "left_over.txt").write_text("from before")
    save_ranker(tiny_ranker, folder)
    assert not (folder / "left_over.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["ranker"]


def test_a_save_that_fails_leaves_the_old_folder(tiny_ranker, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError):
        save_ranker(tiny_ranker.changed(source_config={"unwritable": object()}), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["ranker"]


def test_weights_that_share_memory_are_saved(tiny_ranker, tiny_pairs, tmp_path):
    weights = dict(tiny_ranker.weights)
    for name in [name for name in weights if name.startswith("layers.0.")]:
        weights[name.replace("layers.0.", "layers.1.")] = weights[name]  # a student whose layers start alike
    joined = torch.cat([weights["layers.0.attention.query.weight"], weights["layers.0.attention.key.weight"]])
    weights["layers.0.attention.query.weight"] = joined[:16]
    weights["layers.0.attention.key.weight"] = joined[16:]
    weights["layers.0.ffn.down.weight"] = weights["layers.0.ffn.down.weight"].T.contiguous().T
    ranker = tiny_ranker.changed(weights=weights)
    save_ranker(ranker, tmp_path / "tied")
    again = load_ranker(tmp_path / "tied")
    assert again.fingerprint == ranker.fingerprint
    np.testing.assert_array_equal(again.score(tiny_pairs), ranker.score(tiny_pairs))


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt", "model.safetensors", "added.json"])
def test_tokenizer_files_of_other_names_are_refused(tiny_ranker, tmp_path, name):
    """They would leave the folder, overwrite its own files, or not be read back."""
    files = {**tiny_ranker.tokenizer_files, name: b"x"}
    with pytest.raises(RunError, match=re.escape(f"tokenizer files ['{name}']; allowed: tokenizer.json")):
        save_ranker(tiny_ranker.changed(tokenizer_files=files), tmp_path / "ranker")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors", "config.json", "history.json", "tokenizer.json"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    message = refused(folder)
    assert name in message
    assert "no such file" in message or "no tokenizer.json" in message


def test_missing_folder_is_named(tmp_path):
    assert f"{tmp_path / 'nothing' / 'spec.json'}: found no such file" in refused(tmp_path / "nothing")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    assert str(tmp_path / "model.bin") in refused(tmp_path / "model.bin")


@pytest.mark.parametrize("name", ["spec.json", "config.json", "history.json"])
@pytest.mark.parametrize("content", [b'{"a": 1,\n "b": }', b"\x80\x04\x95", b"", b"\xff\xfe{}"])
def test_broken_json_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    message = refused(folder)
    assert str(folder / name) in message
    assert "broken JSON" in message


def test_broken_json_names_the_line(folder):
    (folder / "spec.json").write_text('{"a": 1,\n "b": }')
    assert "spec.json: line 2: found broken JSON" in refused(folder)


def test_json_that_nests_without_end_is_refused(folder):
    (folder / "spec.json").write_text("[" * 100_000)
    assert "spec.json" in refused(folder)


@pytest.mark.parametrize("name", ["spec.json", "config.json", "history.json"])
def test_json_of_another_kind_is_refused(folder, name):
    (folder / name).write_text("[1, 2]" if name != "history.json" else '{"verb": 1}')
    assert name in refused(folder)


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_where_a_file_should_be_is_refused(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name in refused(folder)


def test_unknown_spec_key_is_named_with_its_place(folder):
    spec = json.loads((folder / "spec.json").read_text())
    spec["layers"][1]["ffn"]["sparsity"] = 0.5
    spec["colour"] = "red"
    (folder / "spec.json").write_text(json.dumps(spec))
    message = refused(folder)
    assert "layers.1.ffn.sparsity: found Extra inputs are not permitted" in message
    assert "colour: found Extra inputs" in message  # all faults at once


def test_newer_schema_is_refused(folder):
    rewrite(folder / "spec.json", schema_version=2)
    assert "schema_version: found Input should be 1" in refused(folder)


def test_spec_that_asks_for_other_weights_is_refused(folder):
    spec = json.loads((folder / "spec.json").read_text())
    del spec["layers"][1]
    (folder / "spec.json").write_text(json.dumps(spec))
    message = refused(folder)
    assert "model.safetensors" in message
    assert "layers.1.attention.query.weight: not in the spec" in message


def test_spec_that_asks_for_enormous_weights_allocates_nothing(folder):
    spec = json.loads((folder / "spec.json").read_text())
    spec["embeddings"]["tokens"]["rows"] = 10**12
    (folder / "spec.json").write_text(json.dumps(spec))
    assert "embeddings.tokens.weight: expected [1000000000000, 16], found [205, 16]" in refused(folder)


def test_weights_of_another_shape_or_kind_are_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["head.output.weight"] = torch.zeros(2, 16)
    weights["head.output.bias"] = weights["head.output.bias"].bfloat16()
    del weights["head.dense.bias"]
    save_file(weights, path)
    message = refused(folder)
    assert "head.output.weight: expected [1, 16], found [2, 16]" in message
    assert "head.output.bias: expected float32, found torch.bfloat16" in message
    assert "head.dense.bias: missing, expected [16]" in message


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["model.safetensors", "spec.json", "history.json", "tokenizer.json"])
def test_a_pickle_is_never_run(folder, name):
    (folder / name).write_bytes(pickle.dumps(_Bomb()))
    if name == "tokenizer.json":
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            load_ranker(folder).score([("a", "b")])
    else:
        assert name in refused(folder)
    assert not Path("exploded").exists()


def test_torch_checkpoint_instead_of_safetensors_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "model.safetensors: found no such file" in refused(folder)


def _header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 4,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 50) + b"{",
        _header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        _header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"\x00" * 4),
        _header({"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}, b"\x00" * 4),
    ],
    ids=["empty", "short", "huge header", "cut header", "cut data", "shape beyond data", "unknown kind"],
)
def test_broken_safetensors_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    message = refused(folder)
    assert str(folder / "model.safetensors") in message
    assert "broken safetensors" in message
