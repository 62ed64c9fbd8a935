"""Projections between widths start where the student's states already say most of its teacher's."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.passes.distill import Distill
from compressor.passes.learn_widths import LearnWidths
from compressor.passes.subclone import Subclone
from compressor.passes.watched_teacher import watch
from compressor.training.batches import ListSource
from compressor.training.lists import ListSettings, draw_lists
from compressor.training.objective import Objective
from tests import tiny
from tests.passes.students import QUICK, supply_for


@pytest.fixture
def teacher():
    return tiny.build_ranker(seed=5)


@pytest.fixture
def narrow(teacher, tiny_data):
    step = Subclone(width=8)
    return step.apply(teacher, supply_for(step, tiny_data, teacher))


def batches_of(ranker, data):
    settings = ListSettings(list_size=4)
    source = ListSource(data=data, tokenizer=ranker.tokenizer, settings=settings, seed=1)
    lists = draw_lists(data, settings, epoch=0, seed=1)
    yield source.batch(lists, source.encode(lists), np.arange(sum(len(one.documents) for one in lists)))


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_a_fit_is_nearer_than_a_random_start(teacher, narrow, tiny_data, measure):
    step = Distill.model_validate({"losses": {}, "representations": {"hidden": {"measure": measure}}})
    watched = watch(step, narrow, supply_for(step, tiny_data, teacher))
    objective, module = Objective(watched=watched), narrow.trainable().eval()  # no dropout
    (batch,) = batches_of(teacher, tiny_data)
    before = objective(module, batch)["hidden"].item()
    objective.prepare(module, batches_of(teacher, tiny_data))
    assert objective(module, batch)["hidden"].item() < before / 2


def test_training_starts_from_the_fit(teacher, narrow, tiny_data):
    step = Distill.model_validate({**QUICK, "losses": {}, "representations": {"hidden": 1}, "epochs": 0.25})
    supply = supply_for(step, tiny_data, teacher)
    step.apply(narrow, supply)
    first = supply.curves["loss/hidden"][0][1]
    watched = watch(step, narrow, supply_for(step, tiny_data, teacher))
    (batch,) = batches_of(teacher, tiny_data)
    assert first < Objective(watched=watched)(narrow.trainable().eval(), batch)["hidden"].item() / 2


def test_equal_widths_need_no_projections(teacher, tiny_data):
    step = Distill.model_validate({"representations": {"hidden": 1}})
    objective = Objective(watched=watch(step, teacher, supply_for(step, tiny_data, teacher)))
    assert objective.extra is None
    objective.prepare(teacher.trainable(), batches_of(teacher, tiny_data))


def test_a_student_that_is_to_lose_dimensions_has_projections_of_equal_width(teacher, tiny_data):
    settings = {"budget": {"macs": 0.5}, "masks": {"hidden": True}, "representations": {"hidden": 1}}
    step = LearnWidths.model_validate(settings)
    projections = watch(step, teacher, supply_for(step, tiny_data, teacher)).projections
    assert projections is not None
    assert {tuple(one.shape) for one in projections.maps.values()} == {(16, 16)}
