"""What a recipe's `teacher:` may be, and what is recorded of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compressor.errors import InputError
from compressor.families import hub, load_teacher, peek_teacher, teacher_fingerprint
from compressor.ranker.store import save_ranker


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to reach the hub fails."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def test_the_history_starts_with_the_import(stock_bert, tmp_path, offline):
    ranker = load_teacher(str(stock_bert.folder), tmp_path)
    (record,) = ranker.history
    assert record.verb == "import"
    assert record.settings == {"teacher": str(stock_bert.folder)}
    assert record.notes == {"family": "bert", "format": "safetensors"}
    assert ranker.source_config["hidden_size"] == 16


def test_a_stored_ranker_is_a_teacher_with_its_history(tmp_path, tiny_ranker, tiny_pairs, offline):
    save_ranker(tiny_ranker, tmp_path / "stored")
    ranker = load_teacher("stored", tmp_path)
    assert np.array_equal(ranker.score(tiny_pairs), tiny_ranker.score(tiny_pairs))
    assert ranker.history[:-1] == tiny_ranker.history
    assert ranker.history[-1].notes["format"] == "rankpress"
    assert peek_teacher("stored", tmp_path) == tiny_ranker.spec
    assert len(teacher_fingerprint("stored", tmp_path)) == 64


def test_rows_end_where_the_tokenizer_says(stock_bert, tmp_path):
    # The position table has 64 rows, the tokenizer's model_max_length is 40.
    assert load_teacher(str(stock_bert.folder), tmp_path).spec.max_length == 40


def test_a_home_folder_and_a_relative_one_are_found(stock_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(stock_bert.folder.parent))
    assert peek_teacher(f"~/{stock_bert.folder.name}", tmp_path) == peek_teacher(
        stock_bert.folder.name, stock_bert.folder.parent
    )


def test_the_fingerprint_follows_every_file_that_scores_depend_on(stock_bert, tmp_path):
    def copied(name):
        (tmp_path / name).mkdir()
        for file in stock_bert.folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    first = teacher_fingerprint(str(stock_bert.folder), tmp_path)
    (copied("same") / "README.md").write_text("no weight depends on this")
    assert teacher_fingerprint("same", tmp_path) == first
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        folder = copied(f"other-{file}")
        with (folder / file).open("ab") as stream:
            stream.write(b" ")
        assert teacher_fingerprint(folder.name, tmp_path) != first, file


def test_a_hub_id_is_fetched_with_its_revision_and_without_code(stock_bert, tmp_path, monkeypatch):
    calls = []

    def fetched(model, *, revision, allow_patterns):
        calls.append((model, revision, tuple(allow_patterns)))
        return str(stock_bert.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    peek_teacher("maker/ranker", tmp_path)
    load_teacher("maker/ranker@v1.2", tmp_path)
    assert [call[:2] for call in calls] == [("maker/ranker", None), ("maker/ranker", "v1.2")]
    assert not any("safetensors" in pattern for pattern in calls[0][2])
    assert "model*.safetensors" in calls[1][2]
    assert not any(pattern.endswith((".py", ".bin")) for call in calls for pattern in call[2])


def _failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_an_unreachable_hub_gives_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    monkeypatch.setattr("huggingface_hub.snapshot_download", _failing(LocalEntryNotFoundError("no network")))
    with pytest.raises(InputError, match="no folder 'maker/ranker' here, and the Hugging Face hub cannot be reached"):
        load_teacher("maker/ranker", tmp_path)


def test_an_unexpected_answer_of_the_hub_gives_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _failing(ConnectionError("reset")))
    with pytest.raises(InputError, match=r"which the Hugging Face hub did not give \(ConnectionError\)"):
        load_teacher("maker/ranker", tmp_path)


@pytest.mark.parametrize(
    ("reference", "is_id"),
    [("maker/ranker", True), ("maker/ranker@main", True), ("maker/ranker.v2-x@refs/pr/1", True), ("ranker", False),
     ("./ranker", False), ("../maker/ranker", False), ("/maker/ranker", False), ("a/b/c", False), ("", False)],
)  # fmt: skip
def test_what_looks_like_a_hub_id(reference, is_id):
    assert hub.is_hub_id(reference) == is_id


def test_a_config_is_kept_as_it_came(stock_bert, tmp_path):
    config = json.loads((stock_bert.folder / "config.json").read_text())
    assert load_teacher(str(stock_bert.folder), tmp_path).source_config == config
