"""nest_widths: first neurons that rank alone, sorted without changing a score, exact resume, and faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.nest_widths import NestWidths
from compressor.passes.nested_widths import TRAINED
from compressor.ranker.sub_network import WHOLE, SubNetwork, running
from compressor.training.objective import Watched
from tests import tiny
from tests.passes.students import QUICK, check_exact_resume, cut, distilled, score_rmse, supply_for, unlabelled

SHARES = (1.0, 0.5, 0.25, 0.125)
SCORES: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}}


@pytest.fixture(scope="module")
def teacher():
    """A cross-encoder of three layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 3), seed=3)


@pytest.fixture(scope="module")
def student(teacher):
    return cut(teacher, [0, 2])


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def step_of(**settings):
    return NestWidths.model_validate({**QUICK, **SCORES, **settings})


def nested(student, teacher, data, supply=None, **settings):
    step = step_of(**settings)
    assert step.plan(student.spec) == student.spec
    return step.apply(student, supply or supply_for(step, data, teacher))


def in_order(ranker, data, order):
    step = step_of(order=order)
    return step._in_order(ranker, supply_for(step, data, ranker))


def at(ranker, share, teacher, data):
    """Return how far the scores of the first neurons are from the teacher's."""
    widths = [round(layer.ffn_width * share) for layer in ranker.spec.layers]
    with running(ranker.module, SubNetwork(ffn_widths=widths)):
        return score_rmse(ranker, teacher, data)


@pytest.mark.parametrize("each_step", ["one", "sandwich"])
def test_every_width_ranks_better_than_after_a_plain_training(student, teacher, data, tmp_path, monkeypatch, each_step):
    monkeypatch.chdir(tmp_path)
    plain = distilled(in_order(student, data, "fisher"), teacher, data, **SCORES, epochs=30)
    result = nested(student, teacher, data, epochs=30, each_step=each_step)
    for share in SHARES[1:]:
        assert at(result, share, teacher, data) < 0.7 * at(plain, share, teacher, data), share
    assert score_rmse(result, teacher, data) < score_rmse(student, teacher, data) / 3


@pytest.mark.parametrize("order", ["fisher", "wanda", "predicted"])
def test_sorting_changes_no_score_and_puts_idle_neurons_last(teacher, data, order, tiny_pairs):
    weights = {name: tensor.clone() for name, tensor in teacher.weights.items()}
    weights["layers.1.ffn.down.weight"][:, :16] = 0  # the first half writes nothing
    idle = teacher.changed(weights=weights)
    result = in_order(idle, data, order)
    np.testing.assert_allclose(result.score(tiny_pairs), idle.score(tiny_pairs), atol=1e-5)
    written = result.weights["layers.1.ffn.down.weight"].norm(dim=0)
    assert (written[:16] > 0).all()
    assert (written[16:] == 0).all()
    kept = in_order(idle, data, "as_it_is")
    assert kept.fingerprint == idle.fingerprint


@pytest.mark.parametrize("each_step", ["one", "sandwich"])
def test_a_killed_training_goes_on_to_the_same_bits(student, teacher, data, monkeypatch, each_step):
    settings = {"epochs": 3, "checkpoint_every_s": 1e-9, "each_step": each_step, "layer_drop": 0.3, "dropout": True}
    step = step_of(**settings, representations={"hidden": 1})
    check_exact_resume(step, student, teacher, data, monkeypatch, call=8)


def test_neurons_behind_the_widths_of_a_step_do_not_learn_in_it(student, teacher, data):
    step = step_of(max_pairs=12, weight_decay=0.0, shares=[1, 0.25], order="as_it_is")
    for seed in range(20):  # until a step of the narrow width comes first
        (part,) = step.parts(student.spec, seed)(0)
        if part.ffn_widths == [8, 8]:
            break
    result = step.apply(student, supply_for(step, data, teacher, seed=seed))
    for layer in range(2):
        name = f"layers.{layer}.ffn.up.weight"
        moved = (result.weights[name] != student.weights[name]).any(dim=1)
        assert moved[:8].all()
        assert not moved[8:].any()


def test_the_history_says_what_was_trained(student, teacher, data):
    supply = supply_for(step_of(), data, teacher)
    nested(student, teacher, data, supply, epochs=0.25)
    assert supply.notes[TRAINED] == [[32, 32], [16, 16], [8, 8], [4, 4]]
    assert supply.notes["steps"] == 1


def test_a_sandwich_asks_the_teacher_once_a_batch(student, teacher, data, monkeypatch):
    trace, seen = Watched.trace, []

    def counted(self, batch):
        seen.append(batch)
        return trace(self, batch)

    monkeypatch.setattr(Watched, "trace", counted)
    supply = supply_for(step_of(), data, teacher)
    nested(student, teacher, data, supply, epochs=1, each_step="sandwich", representations={"hidden": 1})
    assert len(seen) == supply.notes["steps"] == 4


def test_the_best_weights_are_those_of_all_widths_together(student, teacher, tiny_data, monkeypatch):
    parts = []

    def evaluate(module):
        parts.append(module.part)
        return float(len(parts))

    monkeypatch.setattr("compressor.passes.distill.Distill._evaluation", lambda *_: evaluate)
    supply = supply_for(step_of(evaluate_every=1), tiny_data, teacher)
    nested(student, teacher, tiny_data, supply, epochs=0.25, evaluate_every=1)
    assert [part.ffn_widths[0] for part in parts] == [32, 16, 8, 4]
    assert [value for _, value in supply.curves["dev/nDCG@10"]] == [(1 + 2 + 3 + 4) / 4]
    assert student.module.part is WHOLE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": [0.5, 0.25]}, "name 1, the whole"),
        ({"shares": [1]}, "at least one smaller share"),
        ({"shares": [1, 0.25, 0.5]}, "the largest first"),
        ({"shares": [1, 0.5, 0.5]}, "each share once"),
        ({"shares": [1, 0]}, "greater than 0"),
        ({"shares": [2, 1]}, "less than or equal to 1"),
        ({"each_step": "two"}, "each_step"),
        ({"order": "random"}, "order"),
    ],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        step_of(**settings)


def test_shapes_that_cannot_be_nested_are_refused(teacher):
    without = teacher.spec.changed(layers=(tiny.tiny_layer(ffn=None),) * 2)
    with pytest.raises(PlanError, match="without feed-forwards"):
        step_of().plan(without)
    ffn = teacher.spec.layers[0].ffn
    factorized = ffn.changed(down=ffn.down.changed(form={"kind": "low_rank", "rank": 2}))
    spec = teacher.spec.changed(layers=(tiny.tiny_layer(ffn=factorized),) * 2)
    with pytest.raises(PlanError, match="layer 0 with factorized matrices") as caught:
        step_of().plan(spec)
    assert caught.value.setting == "order"
    assert step_of(order="as_it_is").plan(spec) == spec


def test_no_epochs_neither_sort_nor_train(student, teacher):
    step = step_of(epochs=0)
    supply = supply_for(step, None, teacher)
    assert step.apply(student, supply).fingerprint == student.fingerprint
    assert TRAINED not in supply.notes
    assert torch.equal(student.weights["layers.0.ffn.up.weight"], teacher.weights["layers.0.ffn.up.weight"])
