"""A student from another checkpoint: whichever head it has, with its own tokenizer, under the recipe's teacher."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import InputError
from compressor.families import can_be_stock, load_teacher, stock_checkpoint
from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.passes.quantize import Quantize
from compressor.passes.start_from import StartFrom
from compressor.pipeline import check_recipe, make_stages, run_passes
from compressor.ranker.spec import SimilarityHead
from compressor.ranker.store import save_ranker
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests import tiny
from tests.passes.students import QUICK, score_rmse, supply_for, unlabelled

OTHER = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 3)


@pytest.fixture(scope="module")
def teacher(tiny_ranker):
    return tiny_ranker


@pytest.fixture
def folder(tmp_path):
    """A stock cross-encoder of three layers; the teacher has two."""
    stock_checkpoint(tiny.build_ranker(OTHER, seed=5), tmp_path / "other")
    return tmp_path / "other"


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without_head(folder):
    change_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("classifier")})
    return folder


def other_words(folder):
    """Exchange two words of a folder's vocabulary."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["dog"], words["door"] = words["door"], words["dog"]
    path.write_text(json.dumps(tokenizer))


def started(teacher, folder, seed=12, **settings):
    step = StartFrom.model_validate({"checkpoint": str(folder), **settings})
    planned = step.plan(teacher.spec)
    supply = supply_for(step, None, teacher, seed=seed)
    result = step.apply(teacher, supply)
    assert result.spec == planned
    return result, supply.notes


def test_a_cross_encoder_starts_as_it_is(teacher, folder, tiny_pairs):
    result, notes = started(teacher, folder)
    np.testing.assert_array_equal(result.score(tiny_pairs), tiny.build_ranker(OTHER, seed=5).score(tiny_pairs))
    assert notes == {"family": "bert", "format": "safetensors", "drawn": []}
    assert result.history == ()


def test_a_bare_encoder_gets_a_head_from_the_seed_and_keeps_its_pooler(teacher, folder, tiny_pairs):
    expected = tiny.build_ranker(OTHER, seed=5).weights
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


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no such file or folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"?"), "a broken safetensors file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "an encoder-decoder checkpoint"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge it into its base first"),
    ],
)
def test_what_cannot_be_read_is_a_fault_of_the_setting(teacher, folder, spoil, words):
    spoil(folder)
    with pytest.raises(PlanError) as caught:
        StartFrom(checkpoint=str(folder)).plan(teacher.spec)
    assert caught.value.setting == "checkpoint"
    assert words in f"{caught.value.found} {caught.value.fix}"


def test_a_quantized_start_is_refused(teacher, tmp_path):
    step = Quantize(scheme="int8_dynamic")
    save_ranker(step.apply(teacher, supply_for(step, None, teacher)), tmp_path / "small")
    with pytest.raises(PlanError, match="a quantized ranker") as caught:
        StartFrom(checkpoint=str(tmp_path / "small")).plan(teacher.spec)
    assert "before its quantize" in caught.value.fix


def recipe_of(teacher, passes, base):
    if not (base / "teacher").is_dir():
        stock_checkpoint(teacher, base / "teacher")
    value = {"teacher": "teacher", "data": {"train": "api-docs/train"}, "passes": passes}
    recipe = parse_recipe(value, registered(), "r.yaml")
    return recipe.model_copy(update={"passes": tuple(step.placed(base) for step in recipe.passes)})  # type: ignore[attr-defined]


def faults_of(teacher, passes, base):
    with pytest.raises(InputError) as caught:
        check_recipe(recipe_of(teacher, passes, base), teacher.spec, base / "r.yaml")
    return str(caught.value)


def test_it_stands_first_unless_it_goes_on_with_the_ranker_at_hand(teacher, folder, tmp_path):
    behind = [{"drop_layers": {"keep": [1]}}, {"start_from": {"checkpoint": "other"}}]
    message = faults_of(teacher, behind, tmp_path)
    assert "passes.1.start_from" in message
    assert "behind other passes, whose work it would throw away" in message
    behind[1] = {"start_from": {"checkpoint": "self", "head": "new"}}
    shapes = check_recipe(recipe_of(teacher, behind, tmp_path), teacher.spec, tmp_path / "r.yaml")
    assert [len(shape.layers) for shape in shapes] == [2, 1, 1]


STATES: Any = {"distill": {"representations": {"hidden": 1}}}
SCORES: Any = {"distill": {"representations": {}}}
LIVE: Any = {"distill": {"representations": {}, "teacher_scores": "live"}}


def test_states_are_learned_from_a_teacher_of_the_same_tokens_alone(teacher, folder, tmp_path):
    start = {"start_from": {"checkpoint": "other"}}
    for step in (STATES, SCORES, LIVE):
        recipe = recipe_of(teacher, [start, step], tmp_path)
        assert len(check_recipe(recipe, teacher.spec, tmp_path / "r.yaml")) == 3
    other_words(folder)
    for step, setting in ((STATES, "representations"), (LIVE, "teacher_scores")):
        message = faults_of(teacher, [start, step], tmp_path)
        assert f"passes.1.distill.{setting}: found a teacher that cuts text into other tokens" in message
        assert "set representations: {} and teacher_scores: stored" in message
    check_recipe(recipe_of(teacher, [start, SCORES], tmp_path), teacher.spec, tmp_path / "r.yaml")


def test_longer_rows_than_the_teacher_reads_are_refused_in_the_plan(teacher, tmp_path):
    embeddings = OTHER.embeddings.changed(positions=OTHER.embeddings.positions.changed(rows=64))
    stock_checkpoint(tiny.build_ranker(OTHER.changed(embeddings=embeddings, max_length=40)), tmp_path / "other")
    start = {"start_from": {"checkpoint": "other", "max_length": 64}}
    assert "rows of up to 64 tokens and a teacher that reads 40" in faults_of(teacher, [start, STATES], tmp_path)


def test_the_fingerprint_of_a_tokenizer_is_what_it_does(teacher):
    files = dict(teacher.tokenizer_files)
    tokenizer = json.loads(files["tokenizer.json"])

    def fingerprint(**changes):
        content = json.dumps({**tokenizer, **changes}, indent=3).encode()
        return teacher.changed(tokenizer_files={**files, "tokenizer.json": content}).tokenizer.fingerprint

    same = teacher.tokenizer.fingerprint
    padding = {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    ids = {name: [f"[{name.upper()}]", tokenizer["model"]["vocab"][f"[{name.upper()}]"]] for name in ("sep", "cls")}
    vocabulary = dict(sorted(tokenizer["model"]["vocab"].items()))
    assert fingerprint(truncation=None, padding=padding, decoder=None) == same
    assert fingerprint(post_processor={"type": "BertProcessing", **ids}) == same  # another way to say [CLS] A [SEP] B
    assert fingerprint(model={**tokenizer["model"], "vocab": vocabulary}) == same
    assert fingerprint(normalizer={**tokenizer["normalizer"], "lowercase": False}) != same
    assert fingerprint(post_processor=None) != same
    swapped = {**vocabulary, "dog": vocabulary["door"], "door": vocabulary["dog"]}
    assert fingerprint(model={**tokenizer["model"], "vocab": swapped}) != same


def test_a_student_of_other_tokens_learns_the_teachers_scores(teacher, folder, tiny_data):
    other_words(folder)
    student, _ = started(teacher, without_head(folder))
    data = unlabelled(tiny_data)
    step = Distill.model_validate({**QUICK, "losses": {"mse": 1}, "representations": {}})
    result = step.apply(student, supply_for(step, data, teacher))
    assert score_rmse(result, teacher, data) < 0.7 * score_rmse(student, teacher, data)


def test_an_encoder_becomes_a_ranker_through_the_pipeline(teacher, folder, tiny_data, tmp_path):
    """The whole road: start, finetune on judgments, stored stages with a history that says where it began."""
    passes = [{"start_from": {"checkpoint": "other"}}, {"finetune": {**QUICK, "epochs": 30}}]
    without_head(folder)
    recipe = recipe_of(teacher, passes, tmp_path)
    stages = make_stages(recipe, "teacher's hash", lambda need: tiny_data, tmp_path / "stages")
    result = run_passes(stages, lambda: teacher, lambda need: tiny_data, 12, lambda line: None)
    assert [record.verb for record in result.history] == ["start_from", "finetune"]
    assert result.history[0].notes["drawn"] == ["head.output.bias", "head.output.weight"]
    assert len(result.spec.layers) == 3

    def reciprocal_rank(ranker):
        pairs = tiny_data.pairs()
        scores = ranker.score(tiny_data.texts(pairs)).reshape(len(tiny_data.queries), -1)
        grades = np.array([tiny_data.qrels[q].get(d, 0) for q, d in pairs]).reshape(scores.shape)
        return np.mean([1 / (1 + np.argmax(g[np.argsort(-s)] > 1)) for s, g in zip(scores, grades, strict=True)])

    start, _ = started(teacher, folder)
    assert reciprocal_rank(result) > reciprocal_rank(start) + 0.2
    assert Finetune(epochs=0).reads_along == ""
