"""learn_factors: training begins with the ranker as it is, ends in factors alone, goes on when killed, learns more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.factorize import Factorize
from compressor.passes.learn_factors import LearnFactors
from compressor.ranker.forms import layer_linears
from compressor.ranker.linears import Linear
from compressor.ranker.spec import LinearSpec, LowRankForm
from compressor.training.stand_ins import GuidedLinear, StandInObjective, on_their_own
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, distilled, score_rmse, supply_for

START: dict[str, Any] = {"rank": 3, "n_pairs": 48}
LOSSES: dict[str, Any] = {"losses": {"mse": 1.0}, "representations": {}}


def step_of(**settings: Any) -> LearnFactors:
    return LearnFactors.model_validate({**QUICK, **START, **LOSSES, "learning_rate": 3e-3, **settings})


@pytest.fixture(scope="module")
def whole():
    """A ranker of two layers."""
    return tiny.build_ranker(seed=3)


def guided(n_steps: int = 10, share: float = 0.5) -> GuidedLinear:
    torch.manual_seed(5)
    linear = Linear(LinearSpec(inputs=6, outputs=4, form=LowRankForm(rank=2)))
    for parameter in linear.parameters():
        torch.nn.init.normal_(parameter)
    return GuidedLinear(linear, n_steps, weight=torch.randn(4, 6), bias=torch.randn(4), guided_share=share)


def test_the_matrix_fades_like_a_cosine_and_is_gone_after_its_share():
    part, values = guided(), torch.randn(7, 6)
    assert part.bias is not None
    assert part.guide_bias is not None
    whole = values @ part.guide_weight.T + part.guide_bias
    thin = values @ (part.up @ part.down).T + part.bias
    seen = []
    for _ in range(10):
        torch.testing.assert_close(part(values), part.guide * whole + (1 - part.guide) * thin)
        seen.append(part.guide)
        part.after_step()
    np.testing.assert_allclose(seen[:5], [0.5 + 0.5 * np.cos(np.pi * step / 5) for step in range(5)])
    assert seen[5:] == [0.0] * 5
    assert set(part.settled(part.state_dict())) == {"up", "down", "bias"}


def test_parts_of_a_linear_are_guided_too():
    part, values = guided(), torch.randn(7, 6)
    assert part.bias is not None
    assert part.guide_bias is not None
    part.after_step()
    torch.testing.assert_close(part(values, outputs=3), part(values)[:, :3])
    few = part.guide * (values[:, :5] @ part.guide_weight[:, :5].T + part.guide_bias)
    few = few + (1 - part.guide) * (values[:, :5] @ part.down[:, :5].T @ part.up.T + part.bias)
    torch.testing.assert_close(part(values[:, :5], inputs=5), few)


def test_training_begins_with_the_scores_of_the_whole_ranker(whole, tiny_data):
    step = step_of()
    thin = applied(Factorize.model_validate(START), whole, tiny_data)
    objective = StandInObjective(
        lambda name, linear, n_steps: step._guided(whole, name, linear, n_steps), list(layer_linears(thin.spec))
    )
    module = thin.trainable().eval()
    objective.begin(module, 10)
    batch = tiny.batch_of(whole.spec, [5, 17, 30])
    with torch.no_grad():
        torch.testing.assert_close(module(**batch), whole.module(**batch), rtol=0, atol=1e-6)
        with on_their_own(module):
            torch.testing.assert_close(module(**batch), thin.module(**batch), rtol=0, atol=1e-6)
    assert {name: tensor.shape for name, tensor in objective.settled(module.state_dict()).items()} == {
        name: tensor.shape for name, tensor in thin.weights.items()
    }


def test_plain_factors_come_out_and_have_learned(whole, tiny_data):
    notes: dict[str, Any] = {}
    start = applied(Factorize.model_validate(START), whole, tiny_data)
    found = applied(step_of(), whole, tiny_data, notes)
    assert found.spec == start.spec
    assert notes["ranks"] == dict.fromkeys(layer_linears(whole.spec), 3)
    assert score_rmse(found, whole, tiny_data) < 0.5 * score_rmse(start, whole, tiny_data)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_killed_run_goes_on_to_the_same_bits(whole, tiny_data, monkeypatch, ema):
    step = step_of(epochs=4, checkpoint_every_s=1e-9, ema=ema)
    check_exact_resume(step, whole, whole, tiny_data, monkeypatch, call=6)


def test_dev_data_judge_factors_alone(whole, tiny_data):
    """At the first evaluation matrices still give nearly all; factors of rank 1 without them rank otherwise."""
    step = step_of(rank=1, compensate="none", method="svd", epochs=4, evaluate_every=1, guided_share=1.0)
    step = step.model_copy(update={"learning_rate": 1e-12, "dev_measure": "kendall_tau"})
    supply = supply_for(step, tiny_data, whole)
    step.apply(whole, supply)
    (curve,) = (points for name, points in supply.curves.items() if name.startswith("dev/"))
    assert max(value for _, value in curve) - min(value for _, value in curve) < 1e-6
    assert curve[0][1] < 0.9


def test_the_neutral_budget_asks_for_nothing_and_no_epochs_are_refused(whole):
    assert step_of(rank=None, budget={"macs": 1}).needs() == frozenset()
    with pytest.raises(PlanError, match="no epochs") as caught:
        step_of(epochs=0).plan(whole.spec)
    assert caught.value.setting == "epochs"


def test_guided_training_is_no_worse_than_distilling_the_factors(whole, tiny_data):
    """From the same factors, with as many steps."""
    start = applied(Factorize.model_validate({**START, "compensate": "none", "method": "svd"}), whole, tiny_data)
    alone = distilled(start, whole, tiny_data, **LOSSES, learning_rate=3e-3)
    led = applied(step_of(compensate="none", method="svd"), whole, tiny_data)
    assert score_rmse(led, whole, tiny_data) < 1.25 * score_rmse(alone, whole, tiny_data)
