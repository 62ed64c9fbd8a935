"""layer_drop: depth that can be cut on demand, losses that cope with layers left out, exact resume, and faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.add_exits import AddExits
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.finetune import Finetune
from compressor.ranker.sub_network import WHOLE
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, cut, distilled, score_rmse, supply_for, unlabelled

SCORES: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}}


@pytest.fixture(scope="module")
def teacher():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def student(teacher):
    return cut(teacher, [0, 1, 3])


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def test_layers_can_be_cut_afterwards(student, teacher, data):
    def without_one(ranker):
        cuts = [DropLayers(keep=kept, compensate="none") for kept in ((0, 1), (0, 2), (1, 2))]
        return np.mean([score_rmse(applied(step, ranker), teacher, data) for step in cuts])

    plain = distilled(student, teacher, data, **SCORES, epochs=25)
    dropped = distilled(student, teacher, data, **SCORES, epochs=25, layer_drop=0.2)
    assert without_one(dropped) < 0.6 * without_one(plain)
    assert score_rmse(dropped, teacher, data) < score_rmse(student, teacher, data) / 2


@pytest.mark.parametrize("exits", [False, True])
def test_a_killed_training_goes_on_to_the_same_bits(student, teacher, data, monkeypatch, exits):
    ranker = applied(AddExits(), student) if exits else student
    settings = {**QUICK, "layer_drop": 0.5, "epochs": 3, "checkpoint_every_s": 1e-9, "dropout": True}
    step = Distill.model_validate({**settings, "representations": {"hidden": 1, "relations": 1}})
    check_exact_resume(step, ranker, teacher, data, monkeypatch, call=6)


def test_a_layer_left_out_neither_learns_nor_decays(student, teacher, data):
    every = {"hidden": 1, "relations": {"layers": "uniform"}, "embeddings": 1}
    ranker = applied(AddExits(), student)
    settings = {"losses": {"mse": 1}, "representations": every, "max_pairs": 12, "weight_decay": 0.1, "layer_drop": 0.5}
    step = Distill.model_validate({**QUICK, **settings})
    supply = supply_for(step, data, teacher)
    (part,) = step.parts(ranker.spec, supply.seed)(0)
    result = step.apply(ranker, supply)
    still = {name for name, tensor in result.weights.items() if torch.equal(tensor, ranker.weights[name])}
    left_out = {name for name in ranker.weights for layer in part.skipped if name.startswith(f"layers.{layer}.")}
    assert 0 < len(part.skipped) < 3
    assert left_out
    assert still == left_out


def test_losses_without_a_layer_to_measure_are_left_out_of_the_step(student, teacher, data):
    curves: dict[str, Any] = {}
    settings: dict[str, Any] = {"losses": {"mse": 1}, "representations": {"relations": {"layers": "last"}}, "epochs": 4}
    distilled(student, teacher, data, lambda supply: curves.update(supply.curves), layer_drop=0.5, **settings)
    steps, of_last_layer = len(curves["loss/mse"]), len(curves["loss/relations"])
    assert 0 < of_last_layer < steps == 16
    assert all(np.isfinite(value) for points in curves.values() for _, value in points)


def test_judgments_and_micro_batches_go_along(student, tiny_data):
    step = Finetune.model_validate({**QUICK, "layer_drop": 0.5, "epochs": 2})
    losses = []
    for tokens in (8192, 200):
        each = step.changed(batch_tokens=tokens)
        supply = supply_for(each, tiny_data, student)
        each.apply(student, supply)
        losses.append([value for _, value in supply.curves["loss"]])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)  # one draw serves all of a step's micro-batches
    assert np.ptp(losses[0]) > 0.01


def test_dev_data_are_ranked_by_the_whole(student, teacher, tiny_data, monkeypatch):
    seen = []

    def evaluate(module):
        seen.append(module.part)
        return 0.5

    monkeypatch.setattr(Distill, "_evaluation", lambda *_: evaluate)
    distilled(student, teacher, tiny_data, layer_drop=0.5, epochs=1, evaluate_every=1)
    assert seen == [WHOLE] * 4


@pytest.mark.parametrize(
    ("kept", "settings", "found"),
    [
        ([0], {"layer_drop": 0.2}, "layer_drop 0.2 for a ranker of one layer"),
        ([0, 1], {"layer_drop": 0.2, "losses": {}}, "layer_drop with losses on inner states alone"),
    ],
)
def test_what_makes_no_sense_is_refused(teacher, kept, settings, found):
    with pytest.raises(PlanError, match=found) as caught:
        Distill.model_validate(settings).plan(cut(teacher, kept).spec)
    assert caught.value.setting == "layer_drop"


@pytest.mark.parametrize("share", [1, -0.1, True, "half"])
def test_a_probability_is_below_one(share):
    with pytest.raises(ValueError, match="layer_drop"):
        Distill.model_validate({"layer_drop": share})
