"""Checkpoints of every family against the stock models of transformers, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor.families import can_be_stock, load_teacher, peek_teacher, stock_checkpoint
from compressor.passes.add_exits import AddExits
from compressor.passes.cut_at_exit import CutAtExit
from tests.families.stock_models import Stock, ragged_inputs
from tests.passes.students import supply_for

TOLERANCE = 1e-5


def reloaded(folder):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def logits(ranker, inputs):
    with torch.inference_mode():
        return ranker.module(**inputs).numpy()


def test_scores_equal_those_of_the_stock_model(stock, tmp_path):
    ranker = load_teacher(str(stock.folder), tmp_path)
    inputs = ragged_inputs(ranker.spec.pad_id, segments=ranker.spec.embeddings.segments is not None)
    expected = stock.logits(inputs)
    assert np.ptp(expected) > 0.1, "random rows must score differently, or the comparison shows nothing"
    np.testing.assert_allclose(logits(ranker, inputs), expected, atol=TOLERANCE, rtol=0)


def test_the_spec_is_known_without_weights(stock, tmp_path):
    assert peek_teacher(str(stock.folder), tmp_path) == load_teacher(str(stock.folder), tmp_path).spec


def test_the_way_back_gives_a_checkpoint_with_equal_tensors_and_scores(stock, tmp_path):
    ranker = load_teacher(str(stock.folder), tmp_path)
    assert can_be_stock(ranker.spec) is None
    stock_checkpoint(ranker, tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (stock.folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    one_segment = ranker.spec.embeddings.segments is None
    for name in before:
        if one_segment and name.endswith(("position_embeddings.weight", "token_type_embeddings.weight")):
            continue  # the only segment's row moved into the positions
        assert torch.equal(before[name], after[name]), name
    inputs = ragged_inputs(ranker.spec.pad_id, segments=not one_segment)
    model = reloaded(tmp_path / "back")
    expected = stock.logits(inputs)
    found = Stock(folder=tmp_path, model=model).logits(inputs)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_a_cut_at_an_exit_is_a_stock_model_of_its_family(stock, tmp_path):
    ranker = load_teacher(str(stock.folder), tmp_path)
    elastic, cutting = AddExits(layers=(1,)), CutAtExit(layer=1)
    whole = elastic.apply(ranker, supply_for(elastic, None, ranker))
    cut = cutting.apply(whole, supply_for(cutting, None, whole))
    assert can_be_stock(cut.spec) is None
    stock_checkpoint(cut, tmp_path / "cut")
    inputs = ragged_inputs(ranker.spec.pad_id, segments=ranker.spec.embeddings.segments is not None)
    with torch.inference_mode():
        expected = whole.module.trace(**inputs).exits[1].numpy()
    assert np.abs(logits(whole, inputs) - expected).max() > 1e-3
    found = Stock(folder=tmp_path, model=reloaded(tmp_path / "cut")).logits(inputs)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_a_second_round_changes_nothing(stock, tmp_path):
    ranker = load_teacher(str(stock.folder), tmp_path)
    stock_checkpoint(ranker, tmp_path / "back")
    again = load_teacher("back", tmp_path)
    assert again.spec == ranker.spec
    assert again.weights.keys() == ranker.weights.keys()
    assert all(torch.equal(again.weights[name], ranker.weights[name]) for name in ranker.weights)
    assert again.tokenizer_files == ranker.tokenizer_files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(stock_bert, tmp_path, dtype):
    from safetensors.torch import save_file

    tensors = load_file(stock_bert.folder / "model.safetensors")
    rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for file in stock_bert.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(rounded, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ranker = load_teacher(".", tmp_path)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(ranker.weights["layers.1.ffn.down.weight"], rounded[name].float())


def test_shards_are_joined(stock_bert, tmp_path):
    stock_bert.model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    (tmp_path / "shards" / "tokenizer.json").write_bytes((stock_bert.folder / "tokenizer.json").read_bytes())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, sharded = load_teacher(str(stock_bert.folder), tmp_path), load_teacher("shards", tmp_path)
    assert all(torch.equal(whole.weights[name], sharded.weights[name]) for name in whole.weights)


def test_old_names_of_layer_norms_are_read(stock_bert, tmp_path):
    from safetensors.torch import save_file

    for file in stock_bert.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for n, t in tensors.items()}  # fmt: skip
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    whole, renamed = load_teacher(str(stock_bert.folder), tmp_path), load_teacher(".", tmp_path)
    assert all(torch.equal(whole.weights[name], renamed.weights[name]) for name in whole.weights)
