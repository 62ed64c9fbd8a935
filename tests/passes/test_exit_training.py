"""Exits trained along with the head: each learns, with whatever else is learned, and a cut goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compressor.passes  # noqa: F401  # fills the registry
from compressor.errors import RunError
from compressor.passes.add_exits import AddExits
from compressor.passes.cut_at_exit import CutAtExit
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.pipeline import check_recipe, make_stages, run_passes
from compressor.ranker.history import StageRecord
from compressor.recipe import parse_recipe
from compressor.registry import registered
from tests import tiny
from tests.passes.students import QUICK, cut, distilled, score_rmse, supply_for, unlabelled

SCORES: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}}


@pytest.fixture(scope="module")
def teacher():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


@pytest.fixture(scope="module")
def elastic(teacher):
    """Three of the teacher's layers, with exits behind the first two."""
    return behind(AddExits(), cut(teacher, [0, 1, 3]), teacher)


@pytest.fixture(scope="module")
def trained(elastic, teacher, data, tmp_path_factory):
    return learned(elastic, teacher, data, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def without(elastic, teacher, data, tmp_path_factory):
    """The same training with the exits left out of it."""
    return learned(elastic, teacher, data, tmp_path_factory.mktemp("without"), exits=0)


def learned(student, teacher, data, scratch, **settings):
    step = Distill.model_validate({**QUICK, **SCORES, **settings})
    return step.apply(student, supply_for(step, data, teacher, scratch=scratch))


def behind(step, ranker, teacher, data=None):
    """Return a pass's result with the history that the pipeline would write."""
    step.plan(ranker.spec)
    supply = supply_for(step, data, teacher)
    result = step.apply(ranker, supply)
    record = StageRecord(verb=step.verb, settings=step.model_dump(mode="json"), notes=supply.notes)
    return result.changed(history=(*ranker.history, record))


def at(ranker, layer):
    """Return the ranker that ends at an exit."""
    return behind(CutAtExit(layer=layer), ranker, ranker)


def test_one_training_teaches_the_head_and_every_exit(elastic, trained, without, teacher, data):
    assert elastic.spec.exit_layers == (0, 1)
    assert trained.spec == elastic.spec
    assert score_rmse(trained, teacher, data) < score_rmse(elastic, teacher, data) / 4
    for layer in elastic.spec.exit_layers:
        start, left_out, end = (score_rmse(at(one, layer), teacher, data) for one in (elastic, without, trained))
        assert end < start / 2
        assert end < left_out / 2


def test_exits_of_weight_zero_learn_nothing(elastic, trained, without):
    def moved(result):
        return {name for name, tensor in result.weights.items() if not torch.equal(tensor, elastic.weights[name])}

    exits = {name for name in elastic.weights if ".exit." in name}
    assert moved(without) == elastic.weights.keys() - exits
    assert exits <= moved(trained)


def test_exits_learn_from_the_final_scores_alone_where_no_loss_on_scores_is_given(elastic, teacher, data):
    curves: dict[str, Any] = {}
    settings: dict[str, Any] = {"losses": {}, "representations": {"hidden": 1}}
    distilled(elastic, teacher, data, lambda supply: curves.update(supply.curves), **settings)
    assert set(curves) == {"loss", "loss/exits", "loss/hidden", "learning_rate"}
    losses = [value for _, value in curves["loss/exits"]]
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


def test_the_final_scores_learn_nothing_from_exits(elastic, teacher, data):
    """With the exits' losses alone, the head, which only final scores read, does not move."""
    settings: dict[str, Any] = {"losses": {}, "representations": {"hidden": {"layers": {0: 0}}}, "epochs": 1}
    result = distilled(elastic, teacher, data, weight_decay=0.0, **settings)
    of_head = [name for name in elastic.weights if name.startswith("head.")]
    assert of_head
    assert all(torch.equal(result.weights[name], elastic.weights[name]) for name in of_head)
    assert not torch.equal(
        result.weights["layers.1.exit.output.weight"], elastic.weights["layers.1.exit.output.weight"]
    )


def test_inner_states_are_learned_along(elastic, teacher, data):
    found: dict[str, Any] = {}
    settings: dict[str, Any] = {"representations": {"hidden": 1, "relations": 1}, "losses": {"mse": 1}}
    result = distilled(
        elastic, teacher, data, lambda supply: found.update(supply.curves, notes=supply.notes), **settings
    )
    assert {"loss/exits", "loss/hidden", "loss/relations", "loss/mse"} <= set(found)
    assert found["notes"]["layer_maps"]["hidden"] == {0: 0, 1: 1, 2: 3}
    for name in ("loss/exits", "loss/hidden"):
        values = [value for _, value in found[name]]
        assert np.mean(values[-8:]) < 0.7 * np.mean(values[:8]), name
    assert score_rmse(at(result, 1), teacher, data) < score_rmse(at(elastic, 1), teacher, data) / 2


def test_judgments_teach_exits_too(elastic, tiny_data):
    step = Finetune.model_validate(QUICK)
    supply = supply_for(step, tiny_data, elastic)
    result = step.apply(elastic, supply)
    values = [value for _, value in supply.curves["loss/exits"]]
    assert np.mean(values[-15:]) < 0.95 * np.mean(values[:5])  # by far, were there more in these texts to learn from
    assert not torch.equal(
        result.weights["layers.0.exit.output.weight"], elastic.weights["layers.0.exit.output.weight"]
    )


def test_a_layer_map_behind_a_cut_knows_what_the_layers_were(teacher, data):
    student = behind(AddExits(), cut(teacher, [0, 2, 3]), teacher)
    notes: dict[str, Any] = {}
    distilled(at(student, 1), teacher, data, lambda supply: notes.update(supply.notes), epochs=0.25)
    assert notes["layer_maps"]["hidden"] == {0: 0, 1: 2}  # by depth alone it would be {0: 1, 1: 3}


RECIPE: dict[str, Any] = {
    "teacher": "packaged",
    "data": {"train": "api-docs/train"},
    "passes": [{"add_exits": {}}, {"distill": {**QUICK, "epochs": 1}}, {"cut_at_exit": {"layer": 1}}],
}


def stages_of(layer, data):
    passes = [*RECIPE["passes"][:2], {"cut_at_exit": {"layer": layer}}]
    return make_stages(
        parse_recipe({**RECIPE, "passes": passes}, registered(), "r"), "t", lambda need: data, Path("stages")
    )


def test_another_depth_comes_out_of_the_same_training(teacher, data, monkeypatch):
    said: list[str] = []

    def ranker_at(layer):
        return run_passes(stages_of(layer, data), lambda: teacher, lambda need: data, 12, said.append)

    deep = ranker_at(2)
    monkeypatch.setattr(Distill, "apply", lambda *_: pytest.fail("trained again"))
    shallow = ranker_at(1)
    assert "resuming behind distill: 2 of 3 passes are stored" in said
    assert (len(deep.spec.layers), len(shallow.spec.layers)) == (3, 2)
    name = "layers.1.ffn.up.weight"
    assert torch.equal(deep.weights[name], shallow.weights[name])
    assert not torch.equal(deep.weights["head.output.weight"], shallow.weights["head.output.weight"])
    assert shallow.history[-1].notes["kept_layers"] == [0, 1]


def test_a_pass_that_loses_exits_is_stopped(teacher, data, monkeypatch):
    monkeypatch.setattr(Distill, "apply", lambda self, ranker, supply: ranker.without_exits())
    with pytest.raises(RunError, match=r"add_exits promised: .* found: no exit behind layers 1, 2"):
        run_passes(stages_of(1, data), lambda: teacher, lambda need: data, 12, lambda line: None)


def test_a_plan_foretells_the_shapes(teacher):
    shapes = check_recipe(parse_recipe(RECIPE, registered(), "r"), teacher.spec, Path("r"))
    assert [(len(shape.layers), shape.exit_layers) for shape in shapes] == [(4, ()), (4, (1, 2)), (4, (1, 2)), (2, ())]
