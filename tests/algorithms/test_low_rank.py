"""Factors are the best of their rank in every norm, losses are what they say, and gradients are those of scores."""

from __future__ import annotations

import pytest
import torch

from compressor.algorithms.calibration import calibration_batches
from compressor.algorithms.linear_gradients import measure_fisher, measure_output_sensitivity
from compressor.algorithms.low_rank import decomposed
from compressor.algorithms.score_gradients import measure_score_gradients
from compressor.ranker.forms import layer_linears

ROWS, COLUMNS = 7, 5


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(size: int, seed: int) -> torch.Tensor:
    samples = drawn(40, size, seed=seed) * torch.logspace(-1, 1, size, dtype=torch.float64)
    return samples.T @ samples / 40


WEIGHT = drawn(ROWS, COLUMNS)
NORMS = {
    "plain": (None, None),
    "inputs": (moments(COLUMNS, 1), None),
    "inputs and outputs": (moments(COLUMNS, 2), moments(ROWS, 3)),
    "diagonals": (drawn(COLUMNS, seed=4).square(), drawn(ROWS, seed=5).square()),
}


def full(second: torch.Tensor | None, size: int) -> torch.Tensor:
    if second is None:
        return torch.eye(size, dtype=torch.float64)
    return second.diag() if second.dim() == 1 else second


def error(found: torch.Tensor, inputs: torch.Tensor | None, outputs: torch.Tensor | None) -> float:
    lost = WEIGHT - found
    return float((full(outputs, ROWS) * (lost @ full(inputs, COLUMNS) @ lost.T)).sum())


def best_by_descent(rank: int, inputs: torch.Tensor | None, outputs: torch.Tensor | None) -> float:
    """Return the least error that alternating least squares finds from several random starts."""
    left, right = full(outputs, ROWS), full(inputs, COLUMNS)
    errors = []
    for seed in range(3):
        down = drawn(rank, COLUMNS, seed=100 + seed)
        for _ in range(200):
            up = torch.linalg.solve(down @ right @ down.T, down @ right @ WEIGHT.T).T
            down = torch.linalg.solve(up.T @ left @ up, up.T @ left @ WEIGHT)
        errors.append(error(up @ down, inputs, outputs))
    return min(errors)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_no_factors_of_a_rank_are_nearer(norm, rank):
    inputs, outputs = NORMS[norm]
    parts = decomposed(WEIGHT, inputs, outputs)
    up, down = parts.factors(rank)
    assert (up.shape, down.shape) == ((ROWS, rank), (rank, COLUMNS))
    found = error(up.double() @ down.double(), inputs, outputs)
    assert found == pytest.approx(float(parts.losses[rank]), rel=1e-4)
    assert found == pytest.approx(best_by_descent(rank, inputs, outputs), rel=1e-3)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))


@pytest.mark.parametrize("norm", NORMS)
def test_more_rank_never_loses_more_and_full_rank_loses_nothing(norm):
    parts = decomposed(WEIGHT, *NORMS[norm])
    assert len(parts.losses) == COLUMNS + 1
    assert (parts.losses.diff() <= 0).all()
    up, down = parts.factors(COLUMNS)
    torch.testing.assert_close((up @ down).double(), WEIGHT, rtol=1e-5, atol=1e-5)


def test_another_judge_counts_the_same_factors_in_its_own_norm():
    inputs, judge = moments(COLUMNS, 2), moments(ROWS, 3)
    parts, judged = decomposed(WEIGHT, inputs), decomposed(WEIGHT, inputs, judge=judge)
    for rank in range(COLUMNS):
        up, down = parts.factors(rank)
        assert float(judged.losses[rank]) == pytest.approx(error(up.double() @ down.double(), inputs, judge), rel=1e-4)


def test_inputs_that_never_vary_cost_no_rank():
    inputs = moments(COLUMNS, 2)
    inputs[2:] = 0
    inputs[:, 2:] = 0
    parts = decomposed(WEIGHT, inputs)
    up, down = parts.factors(2)
    assert float(parts.losses[2]) < 1e-12 * float(parts.losses[0])
    torch.testing.assert_close((up @ down)[:, :2].double(), WEIGHT[:, :2], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def batches(tiny_ranker, tiny_data):
    return calibration_batches(tiny_ranker, tiny_data.texts(tiny_data.sample_pairs(12, 3)))


def test_output_sensitivity_is_that_of_the_blocks(tiny_ranker, batches):
    """Beside what `measure_score_gradients` measures, which has tests of its own."""
    names = list(layer_linears(tiny_ranker.spec))
    found = measure_output_sensitivity(tiny_ranker.module, batches, names)
    blocks = measure_score_gradients(tiny_ranker.module, batches)
    for index in range(2):
        torch.testing.assert_close(found[f"layers.{index}.attention.output"], blocks.attention_outputs[index])
        torch.testing.assert_close(found[f"layers.{index}.ffn.down"], blocks.ffn_outputs[index])
    assert {name: len(found[name]) for name in names} == {
        name: one.outputs for name, one in layer_linears(tiny_ranker.spec).items()
    }


def test_fisher_information_is_of_each_pair_alone(tiny_ranker, batches):
    names = ["layers.0.attention.key", "layers.1.ffn.up"]
    found = measure_fisher(tiny_ranker.module, batches, names)
    module = tiny_ranker.trainable().eval()
    weights = [module.get_submodule(name).weight for name in names]
    squares, n_pairs = [torch.zeros_like(weight) for weight in weights], 0
    for batch in batches:
        for row in range(len(batch.rows)):
            score = module(**{name: tensor[row : row + 1] for name, tensor in batch.inputs.items()})
            for total, gradient in zip(squares, torch.autograd.grad(score.sum(), weights), strict=True):
                total += gradient.square()
            n_pairs += 1
    for name, total in zip(names, squares, strict=True):
        torch.testing.assert_close(found[name].outputs, total.mean(dim=1) / n_pairs, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(found[name].inputs, total.mean(dim=0) / n_pairs, rtol=1e-3, atol=1e-9)
