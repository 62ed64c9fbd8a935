"""Checkpoints that rankpress cannot score exactly are refused, each with a sentence that says what to do."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import InputError
from compressor.families import load_teacher, peek_teacher


@pytest.fixture
def checkpoint(stock_bert, tmp_path):
    """A copy of a good checkpoint to spoil."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    for file in stock_bert.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def refusal(folder, load=peek_teacher):
    with pytest.raises(InputError) as caught:
        load(folder.name, folder.parent)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "deberta-v2", "architectures": ["DebertaV2ForSequenceClassification"]},
         ["the model type 'deberta-v2'", "BERT (MiniLM, TinyBERT), ELECTRA, RoBERTa"]),
        ({"model_type": "modern-bert"}, ["did you mean 'modernbert'?"]),
        ({"model_type": ...}, ["no model_type"]),
        ({"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
         ["an encoder-decoder checkpoint (t5)", "monoT5 and RankT5 rankers are not compressed"]),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, ["a decoder checkpoint (qwen3"]),
        ({"model_type": "NewModel", "auto_map": {"AutoModel": "modeling.NewModel"}},
         ["an architecture of its own code", "code from a checkpoint is never run"]),
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}},
         ["id2label: found a head of 2 logits; allowed: 1", "train a one-logit head"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type: found 'relative_key'", "'absolute'"]),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantization_config: found quantized weights"]),
        ({"hidden_act": "mish"}, ["hidden_act: found 'mish'; allowed: gelu, "]),
        ({"num_attention_heads": 5}, ["num_attention_heads: found 5; allowed: a divisor of the width 16"]),
        ({"hidden_size": "16"}, ["hidden_size: found '16'; allowed: a whole number from 1"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps: found 0; allowed: a positive number"]),
        ({"is_decoder": True}, ["is_decoder: found True; allowed: False"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_config_of_another_kind_is_refused(checkpoint, changes, words):
    change_config(checkpoint, **changes)
    message = refusal(checkpoint)
    assert "config.json" in message
    for word in words:
        assert word in message


def test_all_faults_of_a_config_come_at_once(checkpoint):
    change_config(checkpoint, hidden_act="mish", layer_norm_eps=-1, quantization_config=...)
    assert len(refusal(checkpoint).splitlines()) == 2


def test_a_base_encoder_gets_no_random_head(checkpoint):
    change_tensors(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("classifier")})
    message = refusal(checkpoint)
    assert "a base encoder without a scoring head (no classifier.weight, classifier.bias)" in message
    assert "a fresh head would score at random" in message
    assert "give this encoder to the pass start_from" in message


def test_missing_tensors_are_named(checkpoint):
    change_tensors(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if "layer.1.output" not in n})
    assert "without bert.encoder.layer.1.output.dense.weight, bert.encoder.layer.1.output.dense.bias" in refusal(
        checkpoint
    )


def test_unexpected_tensors_are_named(checkpoint):
    change_tensors(checkpoint, lambda tensors: {**tensors, "bert.encoder.layer.7.adapter.weight": torch.ones(2)})
    assert "tensors of no known place: bert.encoder.layer.7.adapter.weight" in refusal(checkpoint)


def test_a_layer_too_many_is_not_silently_left_out(checkpoint):
    change_config(checkpoint, num_hidden_layers=2)
    assert "tensors of no known place: bert.encoder.layer.2." in refusal(checkpoint)


def test_wrong_shapes_are_named(checkpoint):
    change_config(checkpoint, intermediate_size=48)
    message = refusal(checkpoint)
    assert "bert.encoder.layer.0.intermediate.dense.weight: found shape [40, 16]; allowed: [48, 16]" in message


def test_two_logits_are_seen_without_labels_too(checkpoint):
    change_config(checkpoint, id2label=..., label2id=...)
    change_tensors(checkpoint, lambda tensors: {
        **tensors, "classifier.weight": torch.ones(2, 16), "classifier.bias": torch.ones(2)
    })  # fmt: skip
    assert "classifier.weight: found shape [2, 16]; allowed: [1, 16]" in refusal(checkpoint)


def test_an_adapter_is_refused(checkpoint):
    (checkpoint / "adapter_config.json").write_text("{}")
    assert "give its base, and name this folder in the pass merge_adapters" in refusal(checkpoint)


def test_a_pickled_checkpoint_is_refused_unread(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    message = refusal(checkpoint, load_teacher)
    assert "only a pickled checkpoint, which may run code" in message
    assert "save_pretrained" in message


def test_a_folder_without_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    assert "no model.safetensors; allowed: safetensors" in refusal(checkpoint, load_teacher)


def test_a_broken_weight_file_is_refused(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"not safetensors")
    assert "a broken safetensors file" in refusal(checkpoint)


def test_integer_weights_are_refused(checkpoint):
    name = "bert.encoder.layer.0.output.dense.weight"
    change_tensors(checkpoint, lambda tensors: {**tensors, name: tensors[name].to(torch.int8)})
    message = refusal(checkpoint, load_teacher)
    assert f"{name}: found 1 weights of type torch.int8; allowed: float32" in message


def test_an_exported_folder_without_float_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "rankpress.json").write_text("{}")
    assert "give the last folder under stages/" in refusal(checkpoint)


def test_a_missing_config_is_named(checkpoint):
    (checkpoint / "config.json").unlink()
    assert f"{checkpoint}: found a folder without config.json; allowed: packaged" in refusal(checkpoint)


def test_a_config_that_is_a_list_is_refused(checkpoint):
    (checkpoint / "config.json").write_text("[]")
    assert "a JSON list or value; allowed: an object" in refusal(checkpoint)


def test_a_missing_tokenizer_is_named(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    for load in (peek_teacher, load_teacher):
        assert "no tokenizer.json" in refusal(checkpoint, load)


def test_a_tokenizer_of_another_model_is_refused(checkpoint):
    change_config(checkpoint, vocab_size=50)
    name = "bert.embeddings.word_embeddings.weight"
    change_tensors(checkpoint, lambda tensors: {**tensors, name: tensors[name][:50].clone()})
    message = refusal(checkpoint, load_teacher)
    assert "allowed: at most 50" in message
    assert "belongs to another model" in message


def test_a_lost_shard_is_named(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "whose files are missing: model-00002-of-00002.safetensors" in refusal(checkpoint)


def test_a_shard_outside_the_folder_is_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "allowed: names inside the folder" in refusal(checkpoint)


@pytest.mark.parametrize("reference", ["packagd", "./nowhere", "a/b/c", "nowhere.onnx"])
def test_a_reference_to_nothing_says_what_may_stand_there(tmp_path, reference):
    with pytest.raises(
        InputError, match=r"no such file or folder; allowed: packaged.*, a checkpoint's folder"
    ) as caught:
        load_teacher(reference, tmp_path)
    assert ("did you mean 'packaged'?" in str(caught.value)) == (reference == "packagd")


def test_a_file_of_another_kind_is_refused(checkpoint):
    with pytest.raises(InputError, match=r"the file model.safetensors; .*give its folder"):
        load_teacher("teacher/model.safetensors", checkpoint.parent)


def test_weights_that_are_no_numbers_are_named(checkpoint):
    def spoil(tensors):
        name = next(name for name in tensors if name.endswith("query.weight"))
        tensors[name][0, :2] = torch.tensor([torch.nan, torch.inf])
        return tensors

    change_tensors(checkpoint, spoil)
    message = refusal(checkpoint, load_teacher)
    assert "attention.query.weight: found 2 NaN or infinite weights in teacher; allowed: finite numbers" in message
