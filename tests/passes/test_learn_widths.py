"""learn_widths: what does nothing goes first, the budget is kept, a killed run goes on, what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.learn_widths import LearnWidths
from compressor.ranker.cost import macs, parameters
from compressor.training.masked_objective import MaskedObjective
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, supply_for
from tests.ranker.cases import SPECS

METHODS = ("l0", "movement")


def step_of(**settings: Any) -> LearnWidths:
    return LearnWidths.model_validate({**QUICK, "learning_rate": 1e-3, "round_to": 4, **settings})


@pytest.fixture(scope="module")
def whole():
    """A ranker of two layers, two heads and 32 neurons each."""
    return tiny.build_ranker(seed=3)


@pytest.fixture(scope="module")
def idle(whole):
    """The same, but head 0 of layer 1 and neurons 8 to 27 of layer 0 write nothing."""
    weights = {name: tensor.clone() for name, tensor in whole.weights.items()}
    weights["layers.1.attention.output.weight"][:, :8] = 0
    weights["layers.0.ffn.down.weight"][:, 8:28] = 0
    return whole.changed(weights=weights)


@pytest.mark.parametrize("method", METHODS)
def test_what_does_nothing_goes_first(idle, tiny_data, method):
    whole = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    budget = {"parameters": 1 - (4 * 16 * 8 + 2 * 16 * 20) / whole}
    notes: dict[str, Any] = {}
    step = step_of(budget=budget, method=method, epochs=30, masks={"learning_rate": 0.2})
    small = applied(step, idle, tiny_data, notes)
    assert notes["heads"] == [2, 1]
    assert sum(notes["ffn_widths"]) == 44
    assert notes["ffn_widths"][0] <= 16
    busy = [unit for unit in range(32) if not 8 <= unit < 28]
    rows = torch.cdist(idle.weights["layers.0.ffn.up.weight"][busy], small.weights["layers.0.ffn.up.weight"])
    assert rows.min(dim=1).values.max() < 0.3, "a neuron that works went before those that do nothing"
    assert rows.argmin(dim=1).unique().numel() == len(busy)


@pytest.mark.parametrize("method", METHODS)
def test_a_block_that_does_nothing_goes_as_a_whole(whole, tiny_data, method):
    weights = {**whole.weights, "layers.0.attention.output.weight": torch.zeros(16, 16)}
    idle = whole.changed(weights=weights)
    step = step_of(budget={"parameters": 0.75}, method=method, epochs=30, masks={"learning_rate": 0.2})
    small = applied(step, idle, tiny_data)
    assert small.spec.layers[0].attention is None
    assert small.spec.layers[1].heads == 2


@pytest.mark.parametrize(
    ("method", "kind", "masks"),
    [
        ("l0", "macs", {}),
        ("l0", "macs", {"hidden": True}),
        ("l0", "parameters", {"regrow": {"every": 3}}),
        ("movement", "macs", {"regrow": {"every": 3}}),
    ],
)
def test_a_budget_is_kept_and_used(whole, tiny_data, method, kind, masks):
    notes: dict[str, Any] = {}
    step = step_of(budget={kind: 0.6}, method=method, epochs=3, masks={"learning_rate": 0.5, **masks})
    small = applied(step, whole, tiny_data, notes)
    assert 0.5 < notes["kept_share"] <= 0.6
    if kind == "macs":
        n_tokens = notes["mean_tokens"]
        assert macs(small.spec, n_tokens) / macs(whole.spec, n_tokens) == pytest.approx(notes["kept_share"], abs=1e-4)
    assert parameters(small.spec) < parameters(whole.spec)
    assert len(step.plan(whole.spec).layers) == len(small.spec.layers)
    assert np.isfinite(small.score(tiny_data.texts(tiny_data.pairs()))).all()


@pytest.mark.parametrize(
    ("method", "masks"),
    [("l0", {"regrow": {"every": 2}}), ("l0", {"hidden": True}), ("movement", {"regrow": {"every": 2}})],
)
def test_a_killed_run_goes_on_to_the_same_bits(whole, tiny_data, monkeypatch, method, masks):
    step = step_of(
        budget={"macs": 0.6}, method=method, epochs=4, masks={"learning_rate": 0.5, "ramp": (0.1, 0.8), **masks},
        checkpoint_every_s=1e-9,
    )  # fmt: skip
    check_exact_resume(step, whole, whole, tiny_data, monkeypatch, call=6, kind=MaskedObjective)


def test_layers_that_are_computed_twice_pass_the_same_gates(whole, tiny_data):
    results = []
    for saves_memory in (False, True):
        step = step_of(
            budget={"macs": 0.6}, epochs=2, gradient_checkpointing=saves_memory, masks={"learning_rate": 0.5}
        )
        results.append(applied(step, whole, tiny_data))
    assert results[0].spec == results[1].spec
    for name, weight in results[0].weights.items():
        torch.testing.assert_close(results[1].weights[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "found", "setting"),
    [
        ({"budget": {"macs": 1e-5}}, "less than what is left without a head or neuron", "budget"),
        ({"budget": {"macs": 0.5}, "epochs": 0}, "no epochs, in which no mask learns", "epochs"),
        ({"budget": {"macs": 0.5}, "evaluate_every": 5}, "dev data that would choose", "evaluate_every"),
        ({"budget": {"macs": 0.5}, "method": "movement", "masks": {"hidden": True}}, "residual", "masks.hidden"),
        ({"budget": {"macs": 0.5}, "losses": {}, "representations": {}}, "nothing to learn from", "losses"),
    ],
)
def test_what_cannot_be_is_refused(whole, settings, found, setting):
    with pytest.raises(PlanError, match=found) as caught:
        step_of(**settings).plan(whole.spec)
    assert caught.value.setting == setting


def test_factorized_outputs_are_refused():
    with pytest.raises(PlanError, match="factorized"):
        step_of(budget={"macs": 0.5}).plan(SPECS["low_rank"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": {}}, "name one budget"),
        ({"budget": {"macs": 0.5}, "masks": {"ramp": (0.6, 0.2)}}, "begins at 0.6 and ends at 0.2"),
        ({"budget": {"macs": 0.5}, "masks": {"regrow": {"every": 0}}}, "greater than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        step_of(**settings)


def test_a_budget_that_only_the_texts_show_to_be_too_small_is_refused_before_training(whole, tiny_data):
    step = step_of(budget={"macs": 1e-5})
    with pytest.raises(InputError, match="less than what is left without a head or neuron"):
        step.apply(whole, supply_for(step, tiny_data, whole))
