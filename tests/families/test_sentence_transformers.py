"""sentence-transformers loads what we write with equal scores, and we load what it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from compressor.errors import InputError
from compressor.families import can_be_stock, load_teacher, peek_teacher, stock_checkpoint, teacher_fingerprint
from tests.families.stock_models import VOCABULARY, build_stock, randomized, tokenizer_files


def _texts(pairs):
    return [text for pair in pairs for text in pair]


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert_mean"])
def test_cross_encoder_scores_are_equal(name, tmp_path, tiny_pairs):
    from sentence_transformers import CrossEncoder

    build_stock(name, tmp_path / "teacher")
    ranker = load_teacher("teacher", tmp_path)
    stock_checkpoint(ranker, tmp_path / "student")
    model = CrossEncoder(str(tmp_path / "student"), device="cpu")
    pairs = [pair for pair in tiny_pairs if len(pair[1]) < 100]  # it cuts the longer of the two texts, we the document
    assert len(pairs) > 10
    expected = model.predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(ranker.score(pairs), expected, atol=1e-5, rtol=0)


def test_a_folder_that_cross_encoder_saved_is_read(tmp_path, tiny_pairs):
    from sentence_transformers import CrossEncoder

    build_stock("bert", tmp_path / "teacher")
    CrossEncoder(str(tmp_path / "teacher"), device="cpu", activation_fn=torch.nn.Identity()).save_pretrained(
        str(tmp_path / "saved")
    )
    assert (tmp_path / "saved" / "modules.json").is_file()
    before, after = load_teacher("teacher", tmp_path), load_teacher("saved", tmp_path)
    assert after.source_config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"
    assert np.array_equal(before.score(tiny_pairs), after.score(tiny_pairs))


def _base_encoder(folder, model_type="bert", **fields):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=64, **fields,
    )  # fmt: skip
    randomized(AutoModel.from_config(config)).save_pretrained(folder)
    for file, content in tokenizer_files(config.pad_token_id).items():
        (folder / file).write_bytes(content)


@pytest.mark.parametrize(("model_type", "pooling"), [("bert", "mean"), ("bert", "cls"), ("roberta", "mean")])
def test_bi_encoder_similarities_are_equal_both_ways(tmp_path, tiny_pairs, model_type, pooling):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    (tmp_path / "base").mkdir()
    _base_encoder(tmp_path / "base", model_type)
    transformer = Transformer(str(tmp_path / "base"), max_seq_length=24)
    modules = [transformer, Pooling(16, pooling), Normalize()]
    stock = SentenceTransformer(modules=modules, device="cpu")
    stock.save_pretrained(str(tmp_path / "saved"))
    ranker = load_teacher("saved", tmp_path)
    assert (ranker.spec.head.kind, ranker.spec.max_length) == ("similarity", 24)
    assert peek_teacher("saved", tmp_path) == ranker.spec

    def similarities(model):
        vectors = model.encode(_texts(tiny_pairs), show_progress_bar=False, normalize_embeddings=True)
        return (vectors[::2] * vectors[1::2]).sum(axis=1)

    np.testing.assert_allclose(ranker.score(tiny_pairs), similarities(stock), atol=1e-5, rtol=0)

    assert can_be_stock(ranker.spec) is None
    stock_checkpoint(ranker, tmp_path / "back")
    again = SentenceTransformer(str(tmp_path / "back"), device="cpu")
    np.testing.assert_allclose(similarities(again), similarities(stock), atol=1e-5, rtol=0)


def test_a_transformer_in_a_folder_of_its_own_is_read(tmp_path):
    """Older versions of sentence-transformers kept the model and its tokenizer in 0_Transformer."""
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "1_Pooling").mkdir()
    _base_encoder(tmp_path / "0_Transformer")
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    modules = [{"path": path, "type": f"sentence_transformers.models.{path[2:]}"}
               for path in ("0_Transformer", "1_Pooling")]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    ranker = load_teacher(".", tmp_path)
    assert (ranker.spec.max_length, ranker.spec.head.pool) == (20, "mean")
    before = teacher_fingerprint(".", tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert teacher_fingerprint(".", tmp_path) != before


@pytest.mark.parametrize(
    ("kinds", "pooling", "settings", "words"),
    [
        (["Transformer", "Pooling", "Dense"], {}, {}, "the modules Transformer, Pooling, Dense"),
        (["Transformer", "Pooling"], {"pooling_mode": "max"}, {}, r"the pooling \['max'\]; allowed: cls or mean"),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, {},
         "allowed: cls or mean"),
        (["Transformer", "Pooling"], {"pooling_mode": "mean"}, {"similarity_fn_name": "dot"}, "not of unit length"),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode": "mean"}, {"similarity_fn_name": "euclidean"},
         "the similarity 'euclidean'"),
        (["Transformer", "Pooling"], {"pooling_mode": "mean"}, {"default_prompt_name": "query"},
         "prompts before texts are not supported"),
    ],
)  # fmt: skip
def test_modules_that_compute_something_else_are_refused(tmp_path, kinds, pooling, settings, words):
    _base_encoder(tmp_path)
    paths = ["", "1_Pooling", "2_More"]
    modules = [{"idx": i, "path": paths[i], "type": f"some.place.{kind}"} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=words):
        peek_teacher(".", tmp_path)


def test_pooling_settings_of_older_versions_are_read(tmp_path):
    _base_encoder(tmp_path)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
               {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    old = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(old))
    assert peek_teacher(".", tmp_path).head.pool == "first"
