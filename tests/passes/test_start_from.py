"""A student from another checkpoint: whichever head it has, with its own tokenizer."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.errors import InputError
from compressor.families import can_be_stock, load_teacher, stock_checkpoint
from compressor.passes import PlanError
from compressor.passes.start_from import StartFrom
from compressor.ranker.spec import SimilarityHead
from compressor.ranker.store import save_ranker
from tests import tiny
from tests.passes.starts import OTHER, change_tensors, other_checkpoint, other_ranker, started, without_head


@pytest.fixture(scope="module")
def teacher(tiny_ranker):
    return tiny_ranker


@pytest.fixture
def folder(tmp_path):
    return other_checkpoint(tmp_path / "other")


def test_a_cross_encoder_starts_as_it_is(teacher, folder, tiny_pairs):
    result, notes = started(teacher, folder)
    np.testing.assert_array_equal(result.score(tiny_pairs), other_ranker().score(tiny_pairs))
    assert notes == {"family": "bert", "format": "safetensors", "drawn": []}
    assert result.history == ()


def test_a_bare_encoder_gets_a_head_from_the_seed_and_keeps_its_pooler(teacher, folder, tiny_pairs):
    expected = other_ranker().weights
    result, notes = started(teacher, without_head(folder))
    assert notes["drawn"] == ["head.output.bias", "head.output.weight"]
    for name, tensor in result.weights.items():
        assert torch.equal(tensor, expected[name]) == (name not in notes["drawn"]), name
    again, other = (started(teacher, folder, seed=seed)[0] for seed in (12, 13))
    assert again.fingerprint == result.fingerprint
    assert np.ptp(result.score(tiny_pairs) - other.score(tiny_pairs)) > 0
    assert can_be_stock(result.spec) is None


def test_an_encoder_without_a_pooler_and_a_prefix_gets_a_whole_head(teacher, folder):
    def bare(tensors):
        named = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
        return {name: t for name, t in named.items() if not name.startswith(("classifier", "pooler"))}

    change_tensors(folder, bare)
    result, notes = started(teacher, folder)
    assert len(notes["drawn"]) == 4
    assert torch.equal(result.weights["head.dense.bias"], torch.zeros(tiny.WIDTH))
    assert 0.01 < result.weights["head.dense.weight"].std() < 0.03  # BERT draws 0.02


def test_a_new_head_is_asked_for(teacher, folder):
    _, notes = started(teacher, folder, head="new")
    assert notes["drawn"] == ["head.output.bias", "head.output.weight"]


def test_a_head_of_three_logits_is_not_used(teacher, folder):
    def widen(tensors):
        return {**tensors, "classifier.weight": torch.ones(3, tiny.WIDTH), "classifier.bias": torch.ones(3)}

    change_tensors(folder, widen)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {str(i): f"class {i}" for i in range(3)}, "sentence_transformers": {"activation_fn": "x"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="a head of 3 logits"):
        load_teacher(str(folder), Path())
    result, notes = started(teacher, folder)
    assert notes["drawn"] == ["head.output.bias", "head.output.weight"]
    assert not {"sentence_transformers", "id2label"} & result.source_config.keys()  # they spoke of the old logits


@pytest.mark.parametrize(
    "family", ["roberta", "electra_projected", "distilbert", "modernbert_mean", "modernbert_biases"]
)
def test_encoders_of_every_family_score_with_their_new_head(teacher, tmp_path, tiny_pairs, family):
    from tests.families.stock_models import build_stock

    stock = build_stock(family, tmp_path)
    head = tuple(
        name for name, _ in stock.model.named_parameters() if not name.startswith(stock.model.base_model_prefix)
    )
    change_tensors(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n not in head})
    result, notes = started(teacher, tmp_path)
    assert len(notes["drawn"]) == len(head)
    assert np.ptp(result.score(tiny_pairs)) > 0
    assert can_be_stock(result.spec) is None


def test_a_bi_encoder_lends_its_encoder_and_may_read_longer_rows(teacher, tmp_path, tiny_pairs):
    encoder = tiny.build_ranker(OTHER.changed(head=SimilarityHead(pool="mean"), max_length=20), seed=5).changed()
    weights = {name: tensor for name, tensor in encoder.weights.items() if not name.startswith("head.")}
    stock_checkpoint(encoder.changed(weights=weights), tmp_path / "vectors")
    result, notes = started(teacher, tmp_path / "vectors")
    assert (result.spec.max_length, len(notes["drawn"])) == (20, 4)
    assert all(torch.equal(result.weights[name], tensor) for name, tensor in weights.items())
    longer, _ = started(teacher, tmp_path / "vectors", max_length=40)
    assert max(longer.tokenizer.encode_pairs(tiny_pairs).lengths) == 40
    with pytest.raises(PlanError, match="rows of 41 tokens for a table of 40 positions"):
        StartFrom(checkpoint=str(tmp_path / "vectors"), max_length=41).plan(teacher.spec)


def test_a_stored_ranker_and_the_ranker_at_hand(teacher, tmp_path, tiny_pairs):
    save_ranker(teacher, tmp_path / "stored")
    stored, _ = started(teacher, tmp_path / "stored")
    own, _ = started(teacher, "self")
    np.testing.assert_array_equal(stored.score(tiny_pairs), own.score(tiny_pairs))
    vectors = tiny.build_ranker(tiny.tiny_spec(head=SimilarityHead(pool="first")))
    ranker, notes = started(vectors, "self")
    assert (ranker.spec.head.kind, len(notes["drawn"])) == ("classifier", 4)


def test_an_encoder_in_onnx(teacher, tmp_path, tiny_pairs):
    """A graph without a logit gives its last states; without int8 they are those of the checkpoint to the bit."""
    from transformers import AutoModel

    stock_checkpoint(teacher, tmp_path / "stock")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    model = AutoModel.from_pretrained(tmp_path / "stock", attn_implementation="eager").eval()

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *values):
            return self.model(**dict(zip(names, values, strict=True))).last_hidden_state

    rows = tuple(torch.ones(2, 5, dtype=torch.int64) for _ in names)
    shutil.copytree(tmp_path / "stock", tmp_path / "graph", ignore=shutil.ignore_patterns("*.safetensors"))
    axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces deprecations of its own inner calls
        torch.onnx.export(
            States().eval(), rows, str(tmp_path / "graph" / "model.onnx"), input_names=names,
            output_names=["last_hidden_state"], dynamic_axes=axes, dynamo=False, opset_version=17,
        )  # fmt: skip
    result, notes = started(teacher, tmp_path / "graph")
    assert notes["largest_difference_to_float_graph"] < 1e-5
    body = [name for name in teacher.weights if not name.startswith("head.")]
    assert all(torch.equal(result.weights[name], teacher.weights[name]) for name in body)
    with pytest.raises(InputError, match=r"an encoder that has no scoring head.*start_from takes encoders"):
        load_teacher("graph", tmp_path)


def test_the_key_follows_the_checkpoints_content(teacher, folder, tmp_path):
    step = StartFrom(checkpoint="other").placed(tmp_path)
    assert step.checkpoint == str(folder)
    assert StartFrom(checkpoint="maker/model").placed(tmp_path).checkpoint == "maker/model"
    before = step.fingerprints()
    without_head(folder)
    assert before.keys() == step.fingerprints().keys() == {str(folder)}
    assert before != step.fingerprints()
    assert StartFrom(checkpoint="self").fingerprints() == {}


def test_a_hub_model_is_planned_without_its_weights(teacher, folder, tmp_path, monkeypatch):
    calls = []
    light = tmp_path / "light"
    shutil.copytree(without_head(folder), light, ignore=shutil.ignore_patterns("*.safetensors"))

    def fetched(model, *, revision, allow_patterns):
        calls.append(model)
        return str(folder if any("safetensors" in pattern for pattern in allow_patterns) else light)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    result, notes = started(teacher, "maker/encoder@v2")
    assert len(result.spec.layers) == 3
    assert notes["drawn"] == ["head.output.bias", "head.output.weight"]
    assert set(calls) == {"maker/encoder"}
