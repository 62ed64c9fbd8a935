"""start_from in a recipe: its faults, its place, which losses can follow it, and the road through the pipeline."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from compressor.errors import InputError
from compressor.families import stock_checkpoint
from compressor.passes import Pass, PlanError
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.passes.quantize import Quantize
from compressor.passes.start_from import StartFrom
from compressor.pipeline import check_recipe, make_stages, run_passes
from compressor.ranker.history import StageRecord
from compressor.ranker.spec import TableSpec
from compressor.ranker.store import save_ranker
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests import tiny
from tests.passes.starts import OTHER, other_checkpoint, other_words, started, without_head
from tests.passes.students import QUICK, cut, distilled, score_rmse, supply_for, unlabelled


@pytest.fixture(scope="module")
def teacher(tiny_ranker):
    return tiny_ranker


@pytest.fixture
def folder(tmp_path):
    return other_checkpoint(tmp_path / "other")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no such file or folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"?"), "a broken safetensors file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "an encoder-decoder checkpoint"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "give its base, and name this folder in the pass merge_adapters",
        ),
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
    placed = tuple(step.placed(base) for step in recipe.passes if isinstance(step, Pass))
    return recipe.model_copy(update={"passes": placed})


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
    embeddings = OTHER.embeddings.changed(positions=TableSpec(rows=64, width=tiny.WIDTH))
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
    passes = [{"start_from": {"checkpoint": "other"}}, {"finetune": {**QUICK, "epochs": 45}}]
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


def test_layers_of_another_checkpoint_stem_from_no_teacher_layer(teacher, folder, tiny_data):
    """`layers: kept` follows the history through `self`, and falls back to uniform behind another checkpoint."""
    maps = []
    for reference in (str(folder), "self"):
        student, notes = started(teacher, reference)
        settings = {"checkpoint": reference, "head": "auto", "max_length": None}
        start = StageRecord(verb="start_from", settings=settings, notes=notes)
        student = cut(student.changed(history=(*teacher.history, start)), [0])
        found: dict[str, Any] = {}
        quick = {"epochs": 0.1, "representations": {"hidden": 1}}
        distilled(student, teacher, unlabelled(tiny_data), lambda supply: found.update(supply.notes), **quick)  # noqa: B023
        maps.append(found["layer_maps"]["hidden"])
    assert maps == [{0: 1}, {0: 0}]
