"""Masks that learn: scores move as their papers say, multipliers climb, dropped units come back."""

from __future__ import annotations

import pytest
import torch

from compressor.algorithms.gates import Gates
from compressor.passes.width_budget import Budget, width_costs
from compressor.training.mask_settings import MaskSettings
from compressor.training.optimizer import build_optimizer
from compressor.training.settings import TrainingSettings
from compressor.training.width_masks import HardConcreteMasks, MovementMasks
from tests import tiny


def masks_of(kind, budget=0.5, n_steps=100, **settings):
    spec = tiny.tiny_spec()
    costs = width_costs(spec, Budget(macs=budget), 30, on_residual=settings.get("hidden", False))
    masks = kind(spec, costs, budget, MaskSettings.model_validate(settings), seed=3)
    masks.n_steps = n_steps
    return masks


def test_a_movement_score_gets_the_product_of_weights_and_their_gradient():
    masks = masks_of(MovementMasks)
    masks.step.fill_(40)  # some are closed: theirs is found all the same
    module = tiny.build_ranker(seed=3).trainable().eval()
    masks.install(module, 100)
    masks.set_gates(drawn=True)
    module(**tiny.batch_of(module.spec, [7, 20])).square().sum().backward()
    gates = masks.expected()
    assert any((each == 0).any() for each in gates.neurons)
    down = module.get_parameter("layers.0.ffn.down.weight")
    assert down.grad is not None
    product = (down * down.grad).sum(dim=0)
    is_open = gates.neurons[0] == 1
    found = masks.split("neurons", masks.scores["neurons"].grad)[0]
    torch.testing.assert_close(found[is_open], product[is_open], atol=1e-6, rtol=1e-4)
    assert (found[~is_open] != 0).any()


def test_the_movement_budget_falls_like_a_cubic():
    masks = masks_of(MovementMasks, ramp=(0.0, 1.0))
    shares = []
    for step in (0, 50, 100):
        masks.step.fill_(step)
        gates = masks.expected()
        counts = [torch.stack([each.sum() for each in found]) for found in (gates.heads, gates.neurons)]
        shares.append(float(masks.costs.of(*counts)))
    assert shares == pytest.approx([1, 0.5 + 0.5 / 8, 0.5], abs=0.06)  # a head is a large step
    assert shares[1] <= 0.5625 + 1e-6
    assert shares[2] <= 0.5 + 1e-6


@pytest.mark.parametrize("hidden", [False, True])
def test_multipliers_climb_and_scores_descend_to_the_budget(hidden):
    masks = masks_of(HardConcreteMasks, n_steps=300, hidden=hidden)
    named = dict(masks.named_parameters())
    rates = {name: rate for start, rate in masks.rates.items() for name in named if name.startswith(start)}
    optimizer = build_optimizer(named, TrainingSettings(), rates)
    assert masks.penalty() is None  # before the ramp
    highest = 0.0
    for _ in range(300):
        penalty = masks.penalty()
        if penalty is not None:
            penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.after_step()
        highest = max(highest, float(masks.lagrangian.linear.detach()))
    assert highest > 0
    assert float(masks.expected_cost().detach()) == pytest.approx(0.5, abs=0.03)


def test_equal_steps_draw_equal_gates_and_others_do_not():
    masks = masks_of(HardConcreteMasks)
    for scores in masks.scores.values():
        torch.nn.init.zeros_(scores)

    def drawn() -> Gates:
        masks.set_gates(drawn=True)
        return masks.gates

    first, again = drawn(), drawn()
    masks.after_step()
    later = drawn()
    assert torch.equal(first.neurons[0], again.neurons[0])
    assert not torch.equal(first.neurons[0], later.neurons[0])


@pytest.mark.parametrize("kind", [HardConcreteMasks, MovementMasks])
def test_the_dropped_unit_that_scores_answer_to_comes_back_for_the_weakest(kind):
    masks = masks_of(kind, budget=0.8, regrow={"every": 1, "share": 1.0}, ramp=(0.0, 1.0))
    with torch.no_grad():
        masks.scores["neurons"].copy_(torch.linspace(2.0, 3.0, 64))
        masks.scores["neurons"][[5, 6, 7, 9]] = -4.0
        masks.scores["heads"].fill_(5.0)
    masks.step.fill_(50)
    before = masks.expected()
    assert before.neurons[0][5] == before.neurons[0][9] == 0
    masks.set_gates(drawn=True)
    pull = torch.zeros(32)
    pull[9] = 1.0
    (masks.gates.neurons[0] * pull).sum().backward()
    masks.after_step()
    after = masks.expected()
    assert after.neurons[0][9] > 0
    was, is_open = (torch.cat(each.neurons) > 0 for each in (before, after))
    assert (was & ~is_open).any(), "nobody made room"
    assert abs(int(is_open.sum()) - int(was.sum())) <= 3  # the budget falls meanwhile


def test_rates_of_their_own_are_constant_and_do_not_decay():
    weight, score = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer({"w": weight, "extra.s": score}, TrainingSettings(), {"extra.s": 0.5})
    groups = {id(group["params"][0]): group for group in optimizer.param_groups}
    assert groups[id(score)]["lr"] == 0.5
    assert groups[id(score)]["constant"]
    assert groups[id(score)]["weight_decay"] == 0
    assert not groups[id(weight)].get("constant")
