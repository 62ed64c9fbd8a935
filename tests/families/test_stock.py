"""The way back: which specs have a stock form, and what the written folder says."""

from __future__ import annotations

import json

import pytest

from compressor.errors import RunError
from compressor.families import can_be_stock, load_teacher, stock_checkpoint
from compressor.families.stock import IDENTITY, stock_config
from compressor.ranker.encoder import random_weights
from compressor.ranker.spec import Int8Dynamic, LowRankForm


@pytest.fixture
def ranker(stock_bert, tmp_path):
    return load_teacher(str(stock_bert.folder), tmp_path)


def with_layer(spec, index, **changes):
    layers = list(spec.layers)
    layers[index] = layers[index].changed(**changes)
    return spec.changed(layers=tuple(layers))


def test_dropped_layers_leave_a_stock_form(ranker, tmp_path):
    spec = ranker.spec.changed(layers=ranker.spec.layers[:1])
    assert can_be_stock(spec) is None
    stock_checkpoint(ranker.changed(spec=spec, weights=random_weights(spec, 0)), tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["num_hidden_layers"] == 1


def test_other_dropout_and_shorter_rows_leave_a_stock_form(ranker):
    assert can_be_stock(ranker.spec.changed(max_length=20, dropout={"hidden": 0.3})) is None


def test_a_narrower_layer_has_no_stock_form(ranker, tmp_path):
    ffn = ranker.spec.layers[1].ffn
    ffn = ffn.changed(up=ffn.up.changed(outputs=8), down=ffn.down.changed(inputs=8))
    spec = with_layer(ranker.spec, 1, ffn=ffn)
    assert can_be_stock(spec) == "layers.1.ffn.up.outputs is 8, the stock architecture has 40"
    with pytest.raises(RunError, match=r"no stock form: layers.1.ffn.up.outputs is 8"):
        stock_checkpoint(ranker.changed(spec=spec, weights=random_weights(spec, 0)), tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()


def test_fewer_heads_have_no_stock_form(ranker):
    attention = ranker.spec.layers[0].attention
    thin = {name: getattr(attention, name).changed(outputs=8) for name in ("query", "key", "value")}
    fewer = attention.changed(heads=2, **thin, output=attention.output.changed(inputs=8))
    layers = [layer.changed(attention=fewer) for layer in ranker.spec.layers]
    reason = can_be_stock(ranker.spec.changed(layers=tuple(layers)))
    assert reason == "layers.0.attention.head_width is 4, the stock architecture has 8"


def test_factors_and_int8_have_no_stock_form(ranker):
    ffn = ranker.spec.layers[2].ffn
    factored = ffn.changed(down=ffn.down.changed(form=LowRankForm(rank=4)))
    rounded = ffn.changed(down=ffn.down.changed(precision=Int8Dynamic()))
    assert "layers.2.ffn.down.form is {" in str(can_be_stock(with_layer(ranker.spec, 2, ffn=factored)))
    assert "layers.2.ffn.down.precision is {" in str(can_be_stock(with_layer(ranker.spec, 2, ffn=rounded)))


def test_the_config_keeps_what_a_spec_does_not_say(ranker):
    source = {
        "initializer_range": 0.5, "torch_dtype": "float16", "_name_or_path": "somewhere", "id2label": {"0": "score"},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    }  # fmt: skip
    config = stock_config(ranker.spec, source)
    assert config["initializer_range"] == 0.5
    assert config["id2label"], config["label2id"] == ({"0": "score"}, {"score": 0})
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.activation.Sigmoid"
    assert not {"torch_dtype", "dtype", "_name_or_path"} & config.keys()


def test_the_older_name_of_the_activation_is_kept(ranker):
    source = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}
    config = stock_config(ranker.spec, source)
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.activation.Sigmoid"


def test_a_config_out_of_nothing_leaves_logits_as_they_are(ranker):
    config = stock_config(ranker.spec, {})
    assert config["sentence_transformers"]["activation_fn"] == IDENTITY
    assert config["id2label"] == {"0": "LABEL_0"}
