"""sparsify while a ranker is distilled: shares by a cubic, exact counts, movement of scores, exact resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.algorithms.sparsity_settings import Gradual, MovementSettings
from compressor.passes import PlanError
from compressor.passes.sparsify import Sparsify
from compressor.ranker.sparsity import prunable_linears
from compressor.training.optimizer import learning_rate
from compressor.training.settings import TrainingSettings
from compressor.training.sparse_objective import SparseObjective
from compressor.training.weight_masks import MovementMasks, StepwiseMasks
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, score_rmse, supply_for

GRADUAL: dict[str, Any] = {**QUICK, "learning_rate": 3e-3, "epochs": 4}
HARD: dict[str, Any] = {"method": "movement", "movement": {"learning_rate": 0.1}}
SOFT: dict[str, Any] = {"method": "movement", "movement": {"threshold": "soft", "learning_rate": 0.3, "penalty": 3000}}


def step_of(**settings: Any) -> Sparsify:
    return Sparsify.model_validate({**GRADUAL, "gradual": {"prunings": 3}, **settings})


def zeros_of(ranker) -> dict[str, torch.Tensor]:
    return {name: ranker.weights[f"{name}.weight"] == 0 for name in prunable_linears(ranker.spec)}


def share_of(ranker) -> float:
    found = zeros_of(ranker).values()
    return sum(int(one.sum()) for one in found) / sum(one.numel() for one in found)


@pytest.fixture(scope="module")
def whole():
    return tiny.build_ranker(seed=3)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "magnitude", "sparsity": 0.75},
        {"method": "obert", "pattern": "2:4"},
        {"method": "wanda", "sparsity": 0.75, "pattern": "block_4"},
        {**HARD, "sparsity": 0.75},
        {**HARD, "pattern": "1:4"},
    ],
)
def test_the_share_is_met_and_what_stays_has_learned(whole, tiny_data, settings):
    step = step_of(**settings)
    sparse = applied(step, whole, tiny_data)
    size = SparsityPattern.of(step.pattern).size
    for zeros in zeros_of(sparse).values():
        counts = zeros.unflatten(1, (-1, size)).sum(dim=2)
        allowed = {"2:4": {2}, "1:4": {3}, "block_4": {0, 4}, "unstructured": {0, 1}}[step.pattern]
        assert set(counts.unique().tolist()) <= allowed
    assert share_of(sparse) == pytest.approx(0.5 if step.pattern == "2:4" else 0.75, abs=1e-3)
    [promise] = step.promises(sparse)
    assert promise.check(sparse) is None
    if step.pattern == "unstructured":
        at_once = applied(Sparsify(method="magnitude", sparsity=0.75), whole)
        assert score_rmse(sparse, whole, tiny_data) < score_rmse(at_once, whole, tiny_data)


def test_a_soft_threshold_closes_what_does_not_pay(whole, tiny_data):
    sparse = applied(step_of(**SOFT, sparsity=0.3), whole, tiny_data)
    assert share_of(sparse) > 0.3
    mild = applied(step_of(**{**SOFT, "movement": {**SOFT["movement"], "penalty": 0}}, sparsity=0.3), whole, tiny_data)
    assert 0.3 <= share_of(mild) + 1e-3 < share_of(sparse)


def test_scores_are_moved_by_the_product_of_gradient_and_weight():
    ranker = tiny.build_ranker(seed=3)
    name = "layers.0.ffn.up.weight"
    masks: Any = MovementMasks(
        "per_matrix", MovementSettings(), {name: ranker.weights[name]}, 0.5, SparsityPattern(), Gradual()
    )
    module = ranker.trainable().eval()
    masks.install(module, 10)
    masks.kept_0[:, :3] = False
    batch = tiny.batch_of(ranker.spec, [5, 7])
    module(**batch).sum().backward()
    plain = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] * masks.kept_0}).trainable().eval()
    plain(**batch).sum().backward()
    gradient: Any = plain.get_parameter(name).grad
    torch.testing.assert_close(masks.scores[0].grad, gradient * ranker.weights[name])
    torch.testing.assert_close(module.get_parameter(name).grad, gradient * masks.kept_0)


def test_zeros_that_are_there_stay(whole, tiny_data):
    some = applied(Sparsify(method="magnitude", sparsity=0.25), whole)
    for settings in ({"method": "obert"}, HARD):
        more = applied(step_of(**settings, sparsity=0.5), some, tiny_data)
        assert not any((before & ~zeros_of(more)[name]).any() for name, before in zeros_of(some).items())
        assert share_of(more) == pytest.approx(0.5, abs=1e-3)


def test_sizes_shrink_until_the_last_pruning(whole):
    name = "layers.0.ffn.up.weight"
    for pattern, norm in ((SparsityPattern(), 1), (SparsityPattern(4), 2)):
        gradual = Gradual(regularize=2.0, ramp=(0.0, 0.5))
        masks = StepwiseMasks(lambda weights, share: weights, {name: whole.weights[name]}, 0.5, pattern, gradual)
        masks.install(whole.trainable(), 10)
        blocks = whole.weights[name].unflatten(1, (-1, pattern.size))
        expected = 2 * torch.linalg.vector_norm(blocks, ord=norm, dim=2).mean()
        torch.testing.assert_close(masks.penalties()["size"], expected)
        masks.step += 5
        assert not masks.penalties()


def test_shares_climb_like_a_cubic_and_rates_begin_anew():
    shares = Gradual(start=0.3, ramp=(0.1, 0.7), prunings=4).shares(0.9, 100)
    assert shares == pytest.approx({10: 0.3, 30: 0.9 - 0.6 * 8 / 27, 50: 0.9 - 0.6 / 27, 70: 0.9})
    assert Gradual(prunings=1).shares(0.5, 3) == {2: 0.5}
    settings = TrainingSettings(schedule="linear", learning_rate=1.0, warmup_share=0.04)
    rates = [learning_rate(settings, step, 100, [10, 30]) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == rates[10] == rates[30] == 1
    assert rates[9] == pytest.approx(1 / 6)
    assert rates[29] == pytest.approx(1 / 20)
    assert rates[99] == pytest.approx(1 / 70)


@pytest.mark.parametrize("settings", [{"method": "obert"}, HARD, SOFT], ids=["obert", "hard", "soft"])
def test_a_killed_run_goes_on_to_the_same_bits(whole, tiny_data, monkeypatch, settings):
    step = step_of(
        **settings, sparsity=0.6, gradual={"prunings": 3, "regularize": 0.1}, epochs=2, checkpoint_every_s=1e-9
    )
    check_exact_resume(step, whole, whole, tiny_data, monkeypatch, call=5, kind=SparseObjective)


def test_layers_that_are_computed_twice_pass_the_same_masks(whole, tiny_data):
    results = [
        applied(step_of(**HARD, sparsity=0.5, epochs=2, gradient_checkpointing=saves), whole, tiny_data)
        for saves in (False, True)
    ]
    for name, weight in results[0].weights.items():
        torch.testing.assert_close(results[1].weights[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "found", "setting"),
    [
        ({"method": "movement", "gradual": None, **dict.fromkeys(QUICK)}, "movement without training", "gradual"),
        ({"method": "magnitude", "gradual": None}, "where nothing is trained", "epochs"),
        ({"method": "magnitude", "movement": {"penalty": 3}}, "does not use them", "movement"),
        ({"method": "magnitude", "epochs": 0}, "no epochs", "epochs"),
        ({"method": "magnitude", "ema": 0.9}, "bring weights back", "ema"),
        ({"method": "magnitude", "evaluate_every": 3}, "bring weights back", "evaluate_every"),
        ({"method": "magnitude", "losses": {}, "representations": {}}, "nothing to learn from", "losses"),
    ],
)
def test_what_cannot_be_is_refused(whole, settings, found, setting):
    wanted = {**GRADUAL, "gradual": {}, "sparsity": 0.5, **settings}
    step = Sparsify.model_validate({name: value for name, value in wanted.items() if value is not None})
    with pytest.raises(PlanError, match=found) as caught:
        step.plan(whole.spec)
    assert caught.value.setting == setting


def test_what_is_recorded(whole, tiny_data):
    step = step_of(method="magnitude", sparsity=0.5)
    supply = supply_for(step, tiny_data, whole)
    step.apply(whole, supply)
    assert supply.notes["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert "loss" in supply.curves
