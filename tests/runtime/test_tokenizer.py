from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import InputError
from compressor.runtime import tokenizer as tokenizer_module
from compressor.runtime.tokenizer import MIN_DOCUMENT_TOKENS, PairTokenizer
from tests.runtime.tiny_folder import CLS, SEP, VOCABULARY, tokenizer, tokenizer_files


def words(*names: str) -> list[int]:
    return [VOCABULARY[name] for name in names]


def built(max_length: int = 32, **config: Any) -> PairTokenizer:
    return PairTokenizer.from_files(tokenizer_files(max_length, **config))


def test_pair_layout() -> None:
    encoded = built().encode_pairs([("Magnets work", "the red sea"), ("iron", "")])
    assert encoded.input_ids[0].tolist() == [CLS, *words("magnets", "work"), SEP, *words("the", "red", "sea"), SEP]
    assert encoded.type_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert encoded.input_ids[1].tolist() == [CLS, *words("iron"), SEP, SEP]
    assert encoded.lengths.tolist() == [8, 4]
    assert encoded.input_ids[0].dtype == encoded.type_ids[0].dtype == encoded.lengths.dtype == np.int64
    assert (encoded.n_cut_documents, encoded.n_cut_queries) == (0, 0)


def test_equals_the_library_where_the_query_fits(pairs: list[tuple[str, str]]) -> None:
    reference = tokenizer()
    reference.enable_truncation(24, strategy="only_second")
    encoded = built(24).encode_pairs(pairs)
    for row, ids, types in zip(reference.encode_batch(pairs), encoded.input_ids, encoded.type_ids, strict=True):
        assert (row.ids, row.type_ids) == (ids.tolist(), types.tolist())
    assert encoded.n_cut_documents > 5


def test_only_the_document_is_cut() -> None:
    encoded = built(10).encode_pairs([("how do magnets work", "the red sea and the blue moon")])
    assert encoded.input_ids[0].tolist() == [
        CLS, *words("how", "do", "magnets", "work"), SEP, *words("the", "red", "sea"), SEP
    ]  # fmt: skip
    assert (encoded.n_cut_documents, encoded.n_cut_queries) == (1, 0)


def test_the_left_end_is_cut_where_the_folder_says_so() -> None:
    encoded = built(8, truncation_side="left").encode_pairs([("how", "the red sea and the blue moon")])
    kept = words("and", "the", "blue", "moon")
    assert encoded.input_ids[0].tolist() == [CLS, *words("how"), SEP, *kept, SEP]


def test_an_overlong_query_leaves_room_for_its_document() -> None:
    max_length = 3 + 100
    query, long_document, short_document = "sun " * 300, "red " * 300, "blue moon"
    pairs = [(query, long_document), (query, short_document), ("sun " * 80, long_document), (query, long_document)]
    encoded = built(max_length).encode_pairs(pairs)
    n_query = [int((ids == VOCABULARY["sun"]).sum()) for ids in encoded.input_ids]
    assert n_query == [100 - MIN_DOCUMENT_TOKENS, 98, 100 - MIN_DOCUMENT_TOKENS, 100 - MIN_DOCUMENT_TOKENS]
    assert encoded.lengths.tolist() == [max_length] * 4
    assert encoded.input_ids[1].tolist()[-3:] == [*words("blue", "moon"), SEP]
    assert (encoded.n_cut_documents, encoded.n_cut_queries) == (3, 4)


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    tokens = built(20)
    pairs = [
        ("sun " * n_query, "red " * n_document)
        for n_query in (1, 9, 15, 16, 17, 60)
        for n_document in (0, 1, 7, 8, 9, 60)
    ]
    together = tokens.encode_pairs(pairs)
    for pair, ids, types in zip(pairs, together.input_ids, together.type_ids, strict=True):
        alone = tokens.encode_pairs([pair])
        assert alone.input_ids[0].tolist() == ids.tolist()
        assert alone.type_ids[0].tolist() == types.tolist()
        assert len(ids) <= 20


def test_many_texts_go_through_the_library_in_parts(
    pairs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = built().encode_pairs(pairs)
    monkeypatch.setattr(tokenizer_module, "_TEXTS_AT_ONCE", 7)
    parts = built().encode_pairs(pairs)
    assert [ids.tolist() for ids in parts.input_ids] == [ids.tolist() for ids in whole.input_ids]
    assert parts.n_cut_documents == whole.n_cut_documents > 0


@pytest.mark.parametrize("max_length", [5, 6, 7])
def test_the_shortest_rows_hold_a_token_of_each(max_length: int) -> None:
    (ids,) = built(max_length).encode_pairs([("sun " * 50, "red " * 50)]).input_ids
    assert len(ids) == max_length
    assert {VOCABULARY["sun"], VOCABULARY["red"]} <= set(ids.tolist())


def test_texts_are_rows_of_one_segment() -> None:
    encoded = built(5).encode_texts(["red sea", "how do magnets work"])
    assert [ids.tolist() for ids in encoded.input_ids] == [
        [CLS, *words("red", "sea"), SEP], [CLS, *words("how", "do", "magnets"), SEP]
    ]  # fmt: skip
    assert not any(types.any() for types in encoded.type_ids)
    assert encoded.n_cut_documents == 1


def test_settings_baked_into_tokenizer_json_are_switched_off() -> None:
    files = tokenizer_files(32)
    baked = tokenizer()
    baked.enable_truncation(4)
    baked.enable_padding(length=32)
    files["tokenizer.json"] = baked.to_str().encode()
    assert PairTokenizer.from_files(files).encode_pairs([("how do magnets", "work")]).lengths.tolist() == [7]


def test_a_tokenizer_without_special_tokens_still_tells_the_segments_apart() -> None:
    files = tokenizer_files(16)
    tree = json.loads(files["tokenizer.json"])
    tree["post_processor"] = None
    files["tokenizer.json"] = json.dumps(tree).encode()
    tokens = PairTokenizer.from_files(files)
    assert tokens.n_specials == 0
    encoded = tokens.encode_pairs([("red sea", "sun")])
    assert (encoded.input_ids[0].tolist(), encoded.type_ids[0].tolist()) == (words("red", "sea", "sun"), [0, 0, 1])


def files_with(tokenizer_config: Any = None, baked: int | None = None, **others: Any) -> dict[str, bytes]:
    built_tokenizer = tokenizer()
    if baked is not None:
        built_tokenizer.enable_truncation(baked)
    files = {"tokenizer.json": built_tokenizer.to_str().encode()}
    for name, value in {"tokenizer_config": tokenizer_config, **others}.items():
        if value is not None:
            files[f"{name}.json"] = json.dumps(value).encode()
    return files


@pytest.mark.parametrize(
    ("files", "max_length"),
    [
        (files_with(), 512),
        (files_with(baked=128), 128),
        (files_with({"model_max_length": 256}, baked=128), 256),
        (files_with({"model_max_length": 1e30}), 512),
        (files_with({"model_max_length": int(1e30)}, config={"max_position_embeddings": 2048}), 2048),
        (files_with({"model_max_length": None}), 512),
        (files_with({"max_length": 64}), 64),
        (files_with({"model_max_length": 512}, config={"max_position_embeddings": 128, "model_type": "bert"}), 128),
        (files_with({"model_max_length": 64}, config={"max_position_embeddings": 512}), 64),
        (files_with(config={"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}), 512),
        (files_with(config={"max_position_embeddings": 514, "model_type": "xlm-roberta"}), 512),
        (files_with(config={"max_position_embeddings": 514, "model_type": "bert", "pad_token_id": 1}), 514),
        (files_with({"model_max_length": 512}, modules=[], sentence_bert_config={"max_seq_length": 256}), 256),
        (files_with({"model_max_length": 512}, sentence_bert_config={"max_seq_length": 256}), 512),
    ],
)
def test_max_length(files: dict[str, bytes], max_length: int) -> None:
    assert PairTokenizer.from_files(files).max_length == max_length
    assert PairTokenizer.from_files(files, max_length=99).max_length == 99


@pytest.mark.parametrize(
    ("files", "pad_id"),
    [
        (files_with({"pad_token": "[SEP]"}), 3),
        (files_with({"pad_token": {"content": "[SEP]", "lstrip": False}}), 3),
        (files_with({"pad_token": None}, special_tokens_map={"pad_token": {"content": "[CLS]"}}), 2),
        (files_with(config={"pad_token_id": 3}), 3),
        (files_with(), 0),
    ],
)
def test_pad_id(files: dict[str, bytes], pad_id: int) -> None:
    assert PairTokenizer.from_files(files).pad_id == pad_id


def test_pad_id_from_the_padding_of_tokenizer_json() -> None:
    padding = tokenizer()
    padding.enable_padding(pad_id=2, pad_token="[CLS]")  # noqa: S106
    assert PairTokenizer.from_files({"tokenizer.json": padding.to_str().encode()}).pad_id == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            "F: found no tokenizer.json; allowed: the fast tokenizer's single file; a slow tokenizer is converted by "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        ),
        ({"tokenizer.json": b"{}"}, "F/tokenizer.json: found a file that the tokenizers library cannot read ("),
        (
            {**files_with(), "tokenizer_config.json": b'{\n"pad_token": '},
            "F/tokenizer_config.json: line 2: found broken JSON (Expecting value",
        ),
        (files_with([1]), "F/tokenizer_config.json: found a JSON list; allowed: a JSON object"),
        (
            files_with({"model_max_length": "512"}),
            "F/tokenizer_config.json: model_max_length: found '512'; allowed: a number of tokens, at least 1; "
            "write the longest row that the model was trained with, such as 512",
        ),
        (files_with({"model_max_length": 0}), "model_max_length: found 0; allowed: a number of tokens, at least 1"),
        (files_with({"model_max_length": True}), "model_max_length: found True; allowed"),
        (files_with({"model_max_length": float("nan")}), "model_max_length: found nan; allowed"),
        (
            files_with({"model_max_length": 4}),
            "F: model_max_length: found rows of at most 4 tokens; allowed: at least 5: the special tokens, one token "
            "of the query and one of the document",
        ),
        (files_with({"pad_token": "<none>"}), "F: pad_token: found '<none>'; allowed: a token of tokenizer.json"),
        (
            files_with({"pad_token": 0}),
            "F/tokenizer_config.json: pad_token: found 0; allowed: a string, or an object with a string 'content'",
        ),
        (
            files_with({"truncation_side": "up"}),
            "F/tokenizer_config.json: truncation_side: found 'up'; allowed: 'right' or 'left'",
        ),
    ],
)
def test_faults(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PairTokenizer.from_files(files, source="F")
    assert str(caught.value).startswith(message) or f"F/tokenizer_config.json: {message}" in str(caught.value)


def test_all_faults_of_the_settings_come_at_once() -> None:
    files = {**files_with({"model_max_length": -1, "pad_token": 3}), "config.json": b"no"}
    with pytest.raises(InputError) as caught:
        PairTokenizer.from_files(files, source="F")
    assert [str(fault.source) for fault in caught.value.faults] == [
        "F/config.json", "F/tokenizer_config.json", "F/tokenizer_config.json"
    ]  # fmt: skip


def test_a_folder_with_the_tokenizer_alone(tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokens = PairTokenizer.from_folder(tmp_path)
    assert (tokens.max_length, tokens.pad_id, tokens.n_specials) == (512, 0, 3)
