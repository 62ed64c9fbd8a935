"""calibrate_scores: the teacher's scale, by a line inside the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compressor.errors import RunError
from compressor.passes import PlanError
from compressor.passes.calibrate_scores import CalibrateScores
from compressor.passes.quantize import Quantize
from tests import tiny
from tests.passes.students import cut, supply_for
from tests.ranker.cases import SPECS


@pytest.fixture(scope="module")
def teacher():
    return tiny.build_ranker(seed=3)


@pytest.fixture(scope="module")
def texts(tiny_data):
    return tiny_data.texts(tiny_data.pairs())


def run(ranker, teacher, data, notes=None, **settings):
    step = CalibrateScores(**settings)
    step.plan(ranker.spec)
    supply = supply_for(step, data, teacher)
    result = step.apply(ranker, supply)
    if notes is not None:
        notes.update(supply.notes)
    return result


def on_another_scale(ranker, factor, constant):
    weights = {name: tensor.clone() for name, tensor in ranker.weights.items()}
    weights["head.output.weight"] *= factor
    weights["head.output.bias"] = weights["head.output.bias"] * factor + constant
    return ranker.changed(weights=weights)


@pytest.mark.parametrize("fit", ["moments", "least_squares"])
def test_a_scale_that_was_lost_is_found_again(teacher, tiny_data, texts, fit):
    found = run(on_another_scale(teacher, 0.2, -3), teacher, tiny_data, fit=fit)
    np.testing.assert_allclose(found.score(texts), teacher.score(texts), atol=1e-4)


def test_moments_become_the_teachers_and_order_stays(teacher, tiny_data, texts):
    notes: dict[str, Any] = {}
    student = cut(teacher, [1])
    found = run(student, teacher, tiny_data, notes).score(texts)
    wanted = teacher.score(texts)
    assert found.mean() == pytest.approx(wanted.mean(), abs=1e-4)
    assert found.std() == pytest.approx(wanted.std(), rel=1e-3)
    assert (np.argsort(found) == np.argsort(student.score(texts))).all()
    np.testing.assert_allclose(found, notes["factor"] * student.score(texts) + notes["constant"], atol=1e-4)


def test_least_squares_comes_nearest(teacher, tiny_data, texts):
    student, wanted = cut(teacher, [1]), teacher.score(texts)
    misses = {
        fit: float(((run(student, teacher, tiny_data, fit=fit).score(texts) - wanted) ** 2).mean())
        for fit in ("least_squares", "moments", "shift", "none")
    }
    assert misses["least_squares"] < min(misses["moments"], misses["shift"]) < misses["none"]


def test_a_quantized_ranker_keeps_its_rounding(teacher, tiny_data, texts):
    rounded = Quantize(scheme="int8_dynamic").apply(
        on_another_scale(teacher, 3, 1), supply_for(Quantize(scheme="int8_dynamic"), None, teacher)
    )
    found = run(rounded, teacher, tiny_data)
    assert [each.attention.query.precision.kind for each in found.spec.layers] == ["int8_dynamic"] * 2
    assert found.score(texts).std() == pytest.approx(teacher.score(texts).std(), rel=1e-3)


def test_a_scale_is_given(teacher, tiny_data, texts):
    found = run(teacher, teacher, tiny_data, to={"mean": -1, "deviation": 2}).score(texts)
    assert found.mean() == pytest.approx(-1, abs=1e-4)
    assert found.std() == pytest.approx(2, rel=1e-4)
    with pytest.raises(ValueError, match="needs scores to come near"):
        CalibrateScores(to={"mean": -1, "deviation": 2}, fit="least_squares")


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_without_constant_gets_one(teacher, tiny_data, texts, bias):
    head = teacher.spec.head
    spec = teacher.spec.changed(head=head.changed(output=head.output.changed(bias=bias)))
    weights = {name: tensor for name, tensor in teacher.weights.items() if bias or name != "head.output.bias"}
    student = teacher.changed(spec=spec, weights=weights)
    found = run(student, on_another_scale(teacher, 1, 4), tiny_data)
    assert found.spec.head.output.bias
    np.testing.assert_allclose(found.score(texts), teacher.score(texts) + 4, atol=1e-4)


def test_scores_that_fall_where_the_teachers_rise_are_refused(teacher, tiny_data):
    turned = on_another_scale(teacher, -1, 0)
    with pytest.raises(RunError, match="do not rise with the teacher's"):
        run(turned, teacher, tiny_data)
    assert run(turned, teacher, tiny_data, fit="shift") is not None


def test_scores_that_are_all_the_same_are_refused(teacher, tiny_data):
    with pytest.raises(RunError, match="are all the same"):
        run(on_another_scale(teacher, 0, 1), teacher, tiny_data, to={"mean": 0, "deviation": 1})


def test_a_bi_encoder_is_refused():
    spec = next(spec for spec in SPECS.values() if spec.head.kind == "similarity")
    with pytest.raises(PlanError, match="bi-encoder"):
        CalibrateScores().plan(spec)
