"""Gates: hard-concrete ones are what their paper says, and a ranker behind gates scores as the one that is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compressor.algorithms.absent_blocks import never_absent
from compressor.algorithms.budgets import BudgetError
from compressor.algorithms.gates import Gates, cut_at_gates, install_gates, narrowed_stream
from compressor.algorithms.hard_concrete import expected_gates, open_chances, sampled_gates
from compressor.algorithms.width_choice import ChosenUnits, UnitScores, best_units, paid_for
from compressor.passes.width_budget import Budget, least_widths, width_costs
from compressor.ranker.spec import ClassifierHead
from tests import tiny
from tests.ranker.cases import WITHOUT_RULES

MAPS = WITHOUT_RULES["linear_maps"]
ALL = {**WITHOUT_RULES, "linear_maps": MAPS.changed(layers=MAPS.layers[:-1])}  # the last one's map is factorized
DENSE = [
    name
    for name, spec in ALL.items()
    if isinstance(spec.head, ClassifierHead)
    and all(not each.attention or each.attention.output.form.kind == "dense" for each in spec.layers)
]
LENGTHS = [5, 17, 40, 23]


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_gates_are_zero_and_one_as_often_as_they_should_be(logit):
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    gates = sampled_gates(torch.full_like(uniform, logit), uniform)
    is_open = 1 / (1 + math.exp(-(logit - 2 / 3 * math.log(0.1 / 1.1))))
    assert float(open_chances(torch.tensor(logit))) == pytest.approx(is_open)
    assert float((gates > 0).float().mean()) == pytest.approx(is_open, abs=0.005)
    is_one = 1 - 1 / (1 + math.exp(-(2 / 3 * math.log(1.1 / 0.1) - logit)))  # P(s >= 1 - 0.1 / 1.2), s stretched
    assert float((gates == 1).float().mean()) == pytest.approx(is_one, abs=0.005)


def test_gates_without_noise_and_their_gradient():
    logits = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    gates = expected_gates(logits)
    assert gates.tolist() == [0, pytest.approx(0.5), 1]
    assert torch.autograd.grad(gates.sum(), logits)[0].tolist() == [0, pytest.approx(1.2 * 0.25), 0]


def random_gates(spec, on_residual, seed=0):
    """Draw gates of which a good part is 0, whole blocks among them where blocks may go, and what is not 0."""
    generator = torch.Generator().manual_seed(seed)
    needed = never_absent(spec, least_widths(spec).of(spec))

    def gate(count):
        values = torch.rand(count, generator=generator) + 0.25
        return torch.where(torch.rand(count, generator=generator) < 0.4, 0.0, values)

    found = {"attention": [gate(each.heads) for each in spec.layers]}
    found["ffn"] = [gate(each.ffn_width) for each in spec.layers]
    for block, layers in found.items():
        if (0, block) not in needed:
            layers[0].zero_()
        for index, each in enumerate(layers):
            if (index, block) in needed and len(each) and not each.any():
                each[0] = 0.7
    residual = gate(spec.width) if on_residual else None
    gates = Gates(heads=found["attention"], neurons=found["ffn"], residual=residual)
    units = ChosenUnits(
        heads=[each.nonzero()[:, 0] for each in gates.heads], neurons=[each.nonzero()[:, 0] for each in gates.neurons],
        residual=None if residual is None else residual.nonzero()[:, 0],
    )  # fmt: skip
    return gates, units


@pytest.mark.parametrize("on_residual", [False, True])
@pytest.mark.parametrize("name", DENSE)
def test_masked_equals_cut(name, on_residual):
    ranker = tiny.build_ranker(ALL[name], seed=2)
    gates, units = random_gates(ranker.spec, on_residual)
    cut = cut_at_gates(ranker, gates, units)
    module = ranker.trainable().eval()
    install_gates(module, lambda: gates, on_residual=on_residual)
    batch = tiny.batch_of(ranker.spec, LENGTHS)
    with torch.inference_mode():
        masked, narrow = module.trace(**batch), cut.module.trace(**batch)
        whole = ranker.module(**batch)
    torch.testing.assert_close(narrow.logits, masked.logits, atol=1e-4, rtol=0)
    for index, exit_logits in masked.exits.items():
        torch.testing.assert_close(narrow.exits[index], exit_logits, atol=1e-4, rtol=0)
    assert (masked.logits - whole).abs().max() > 1e-3
    assert sum(one.numel() for one in cut.weights.values()) < sum(one.numel() for one in ranker.weights.values())
    assert cut.spec.width == (len(units.residual) if units.residual is not None else ranker.spec.width)


@pytest.mark.parametrize("name", ["bert", "electra", "modernbert", "uneven_layers", "without_blocks"])
@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_costs_of_units_add_up_to_those_of_shapes(name, kind):
    spec, budget = WITHOUT_RULES[name], Budget.model_validate({kind: 0.5})
    costs = width_costs(spec, budget, 30, on_residual=True)
    _, units = random_gates(spec, on_residual=True)
    assert units.residual is not None
    counts = [[len(each) for each in found] for found in (units.heads, units.neurons)]
    small = narrowed_stream(spec, len(units.residual), *counts)
    heads, neurons = (torch.tensor(each).float() for each in counts)
    found = costs.of(heads, neurons, len(units.residual) / spec.width)
    assert float(found) == pytest.approx(budget.cost(small, 30) / budget.cost(spec, 30), rel=1e-4)


def random_scores(spec, on_residual, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return UnitScores(
        heads=[torch.randn(each.heads, generator=generator) for each in spec.layers],
        neurons=[torch.randn(each.ffn_width, generator=generator) for each in spec.layers],
        residual=torch.randn(spec.width, generator=generator) if on_residual else None,
    )


@pytest.mark.parametrize("on_residual", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_best_units_fill_a_budget_and_never_more(share, on_residual):
    spec, budget = WITHOUT_RULES["modernbert"], Budget(macs=share)
    costs = width_costs(spec, budget, 30, on_residual=on_residual)
    scores = random_scores(spec, on_residual)
    units = best_units(scores, costs, share, 4)
    width = spec.width if units.residual is None else len(units.residual)
    small = narrowed_stream(spec, width, *([len(each) for each in found] for found in (units.heads, units.neurons)))
    assert share - 0.1 < budget.cost(small, 30) / budget.cost(spec, 30) <= share + 1e-6
    for kept, values in zip([*units.heads, *units.neurons], [*scores.heads, *scores.neurons], strict=True):
        gone = np.setdiff1d(np.arange(len(values)), kept)
        assert not len(kept) or not len(gone) or values[kept].min() >= values[gone].max()
    assert all(len(each) % 4 == 0 for each in units.neurons)


def test_blocks_that_cannot_go_keep_a_unit():
    spec = WITHOUT_RULES["bert"]
    costs = width_costs(spec, Budget(macs=0.5), 30)
    scores = random_scores(spec, on_residual=False)
    scores.heads[0].fill_(-10.0)
    assert len(best_units(scores, costs, 0.5, 4).heads[0]) == 0
    assert len(best_units(scores, costs, 0.5, 4, needed={(0, "attention")}).heads[0]) == 1
    with pytest.raises(BudgetError):
        best_units(scores, costs, 1e-4, 4, needed={(0, "attention")})


def test_the_best_that_can_be_paid_stay():
    scores, prices = torch.tensor([0.5, 2.0, 1.0, 1.0]), torch.tensor([0.1, 0.4, 0.2, 0.2])
    assert paid_for(scores, prices, 0.6).tolist() == [0, 1, 1, 0]
