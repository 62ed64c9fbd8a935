"""Rankers as values: strict weights, no change in place, fingerprints, and blame for scores that are no numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compressor.errors import RunError
from compressor.ranker.encoder import expected_shapes, random_weights
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import check_weights
from compressor.ranker.spec import FeedForwardSpec, Int8Dynamic, LowRankForm, SimilarityHead
from tests.tiny import build_ranker, lively_weights, tiny_layer, tiny_spec


def test_weights_are_named_after_the_spec():
    low_rank = tiny_layer()
    assert isinstance(low_rank.ffn, FeedForwardSpec)
    up = low_rank.ffn.up.changed(form=LowRankForm(rank=3))
    spec = tiny_spec(layers=(tiny_layer(), low_rank.changed(ffn=low_rank.ffn.changed(up=up))))
    assert expected_shapes(spec) == {
        "embeddings.tokens.weight": (205, 16),
        "embeddings.positions.weight": (40, 16),
        "embeddings.segments.weight": (2, 16),
        "embeddings.norm.weight": (16,),
        "embeddings.norm.bias": (16,),
        **{
            f"layers.{i}.attention.{part}.{kind}": shape
            for i in (0, 1)
            for part in ("query", "key", "value", "output")
            for kind, shape in (("weight", (16, 16)), ("bias", (16,)))
        },
        **{
            f"layers.{i}.{norm}.{kind}": (16,)
            for i in (0, 1)
            for norm in ("attention_norm", "ffn_norm")
            for kind in ("weight", "bias")
        },
        "layers.0.ffn.up.weight": (32, 16),
        "layers.0.ffn.up.bias": (32,),
        "layers.1.ffn.up.down": (3, 16),
        "layers.1.ffn.up.up": (32, 3),
        "layers.1.ffn.up.bias": (32,),
        "layers.0.ffn.down.weight": (16, 32),
        "layers.0.ffn.down.bias": (16,),
        "layers.1.ffn.down.weight": (16, 32),
        "layers.1.ffn.down.bias": (16,),
        "head.dense.weight": (16, 16),
        "head.dense.bias": (16,),
        "head.output.weight": (1, 16),
        "head.output.bias": (1,),
    }


def test_random_weights_start_norms_at_one_and_repeat():
    spec = tiny_spec()
    weights = random_weights(spec, seed=3)
    assert torch.equal(weights["layers.0.ffn_norm.weight"], torch.ones(16))
    assert torch.equal(weights["layers.0.ffn.up.bias"], torch.zeros(32))
    assert weights["embeddings.tokens.weight"].std() == pytest.approx(0.02, rel=0.1)
    again, other = random_weights(spec, seed=3), random_weights(spec, seed=4)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["head.output.weight"], other["head.output.weight"])


def test_weights_that_do_not_fit_are_listed_leaf_by_leaf():
    spec = tiny_spec()
    weights = lively_weights(spec)
    del weights["head.dense.bias"]
    weights["layers.0.ffn.up.weight"] = weights["layers.0.ffn.up.weight"][:20]
    weights["layers.1.ffn_norm.weight"] = weights["layers.1.ffn_norm.weight"].half()
    weights["pooler.dense.weight"] = torch.zeros(2)
    with pytest.raises(RunError) as caught:
        check_weights(spec, weights)
    assert str(caught.value).splitlines() == [
        "weights do not fit the spec:",
        "  head.dense.bias: missing, expected [16]",
        "  layers.0.ffn.up.weight: expected [32, 16], found [20, 16]",
        "  layers.1.ffn_norm.weight: expected float32, found torch.float16",
        "  pooler.dense.weight: not in the spec",
    ]


def test_a_ranker_checks_its_weights(tiny_ranker):
    with pytest.raises(RunError, match=r"head\.dense\.weight: not in the spec"):
        tiny_ranker.changed(spec=tiny_spec(head=SimilarityHead(pool="mean")))


def test_a_ranker_cannot_be_reassigned(tiny_ranker):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_ranker.spec = tiny_spec()


def test_training_a_copy_leaves_the_ranker_alone(tiny_pairs):
    ranker = build_ranker()
    before, fingerprint = ranker.score(tiny_pairs), ranker.fingerprint
    module = ranker.trainable()
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    fresh = ranker.changed()
    assert fresh.fingerprint == fingerprint
    np.testing.assert_array_equal(fresh.score(tiny_pairs), before)


def test_the_shared_module_is_for_reading_only(tiny_ranker):
    module = tiny_ranker.module
    assert module is tiny_ranker.module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    name, parameter = next(iter(module.named_parameters()))
    assert parameter.data_ptr() == tiny_ranker.weights[name].data_ptr()  # no second copy in memory


def test_changing_a_ranker_gives_another_and_keeps_the_rest(tiny_ranker, tiny_pairs):
    name = "head.output.bias"
    other = tiny_ranker.changed(weights={**tiny_ranker.weights, name: tiny_ranker.weights[name] + 1})
    np.testing.assert_allclose(other.score(tiny_pairs), tiny_ranker.score(tiny_pairs) + 1, atol=1e-6)
    assert other.tokenizer_files is tiny_ranker.tokenizer_files


def test_fingerprint_is_over_everything_that_scores(tiny_ranker):
    same = build_ranker()
    assert same.fingerprint == tiny_ranker.fingerprint
    assert len(same.fingerprint) == 64

    weight = tiny_ranker.weights["layers.1.attention.key.weight"].clone()
    weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    linear = tiny_ranker.spec.layers[0].ffn.up
    layer = tiny_ranker.spec.layers[0]
    int8 = layer.changed(ffn=layer.ffn.changed(up=linear.changed(precision=Int8Dynamic())))
    others = {
        "one bit of a weight": {"weights": {**tiny_ranker.weights, "layers.1.attention.key.weight": weight}},
        "a precision": {"spec": tiny_ranker.spec.changed(layers=(int8, layer))},
        "the longest row": {"spec": tiny_ranker.spec.changed(max_length=39)},
        "the tokenizer": {"tokenizer_files": {**tiny_ranker.tokenizer_files, "vocab.txt": b"a"}},
        "one more file": {"tokenizer_files": {**tiny_ranker.tokenizer_files, "merges.txt": b""}},
    }
    prints = {what: tiny_ranker.changed(**change).fingerprint for what, change in others.items()}
    assert len({tiny_ranker.fingerprint, *prints.values()}) == len(prints) + 1


def test_fingerprint_ignores_origin_and_order(tiny_ranker):
    renamed = tiny_ranker.changed(
        history=(StageRecord(verb="distill"),),
        source_config={},
        weights=dict(reversed(tiny_ranker.weights.items())),
    )
    assert renamed.fingerprint == tiny_ranker.fingerprint


def test_fingerprint_tells_names_from_contents(tiny_ranker):
    files = {"tokenizer.json": tiny_ranker.tokenizer_files["tokenizer.json"]}
    left = tiny_ranker.changed(tokenizer_files={**files, "vocab.txt": b"xvocab.txty"})
    right = tiny_ranker.changed(tokenizer_files={**files, "vocab.txtx": b"", "vocab.txty": b""})
    assert left.fingerprint != right.fingerprint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_blamed_on_the_last_pass(tiny_ranker, tiny_pairs, value):
    broken = {**tiny_ranker.weights, "head.output.bias": torch.tensor([value])}
    loaded = tiny_ranker.changed(weights=broken)
    with pytest.raises(
        RunError, match=f"the ranker as loaded gives NaN or infinite scores for {len(tiny_pairs)} pairs"
    ):
        loaded.score(tiny_pairs)
    after = loaded.changed(history=(StageRecord(verb="drop_layers"), StageRecord(verb="quantize")))
    with pytest.raises(RunError, match="the ranker after pass quantize gives NaN"):
        after.score(tiny_pairs)


def test_one_bad_pair_is_enough(tiny_ranker):
    word = tiny_ranker.tokenizer.encode_texts(["moon"]).input_ids[0][1]
    table = tiny_ranker.weights["embeddings.tokens.weight"].clone()
    table[word] = float("nan")
    broken = tiny_ranker.changed(weights={**tiny_ranker.weights, "embeddings.tokens.weight": table})
    assert np.isfinite(broken.score([("a dog", "a cat")])).all()
    with pytest.raises(RunError, match="for 1 pairs"):
        broken.score([("a dog", "a cat"), ("a dog", "the moon")])


def test_no_pairs_give_no_scores(tiny_ranker):
    for ranker in (tiny_ranker, build_ranker(tiny_spec(head=SimilarityHead(pool="mean")))):
        scores = ranker.score([])
        assert (scores.shape, scores.dtype) == ((0,), np.float32)


def test_bi_encoder_scores_are_cosines():
    ranker = build_ranker(tiny_spec(head=SimilarityHead(pool="mean")))
    same, other = ranker.score([("a red car", "a red car"), ("a red car", "the sea is cold")])
    assert same == pytest.approx(1, abs=1e-6)
    assert -1 <= other < 0.99


def test_rows_are_cut_at_the_spec_not_at_the_tokenizer(tiny_ranker):
    short = tiny_ranker.changed(spec=tiny_ranker.spec.changed(max_length=12))
    assert short.tokenizer.encode_pairs([("a dog", "the moon " * 30)]).lengths.tolist() == [12]
