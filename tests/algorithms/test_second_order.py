"""Curvature in blocks: the inverse, the losses and what makes up are those of brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from compressor.algorithms import weight_gradients
from compressor.algorithms.second_order import BlockCurvature
from compressor.algorithms.sparse_masks import kept_weights
from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.algorithms.weight_gradients import measured_curvatures
from tests import tiny
from tests.ranker.cases import SPECS

ANY, BLOCKS, HALF = SparsityPattern.of("unstructured"), SparsityPattern.of("block_2"), SparsityPattern.of("2:4")


def drawn(shape, n_samples=40, size=6, damping=1e-3, seed=0):
    """Return a matrix, the gradients of samples and the curvature that they make."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(shape[0] * shape[1], shape[0] * shape[1], generator=draw)
    gradients = (torch.randn(n_samples, shape[0] * shape[1], generator=draw) @ mixed).view(n_samples, *shape)
    curvature = BlockCurvature(shape, size, damping)
    for part in gradients.split(7):  # samples come in lists
        curvature.add(part.clone(), torch.full((len(part),), 1 / n_samples))
    return torch.randn(shape, generator=draw), gradients, curvature


def dense_of(gradients, damping):
    flat = gradients.flatten(1).double().numpy()
    fisher = flat.T @ flat / len(flat)
    return fisher + damping * np.trace(fisher) / len(fisher) * np.eye(len(fisher))


def least_loss(fisher, weight, gone):
    """Return the least ½ δᵀFδ over all δ that zero some weights, and the weights behind it: by solving for the rest."""
    rest = [i for i in range(len(weight)) if i not in gone]
    new = weight.copy()
    new[gone] = 0
    new[rest] += np.linalg.solve(fisher[np.ix_(rest, rest)], fisher[np.ix_(rest, gone)] @ weight[gone])
    delta = new - weight
    return 0.5 * delta @ fisher @ delta, new


def test_six_weights_are_pruned_as_by_brute_force():
    """Each weight's loss, and the weights behind each mask, are those of the best surgeon there is."""
    weight, gradients, curvature = drawn((1, 6))
    fisher, flat = dense_of(gradients, 1e-3), weight[0].double().numpy()
    losses = curvature.losses(weight, ANY)[0]
    np.testing.assert_allclose(losses, [least_loss(fisher, flat, [i])[0] for i in range(6)], rtol=1e-4)
    pairs = curvature.losses(weight, BLOCKS)[0]
    np.testing.assert_allclose(pairs, [least_loss(fisher, flat, [i, i + 1])[0] for i in (0, 2, 4)], rtol=1e-4)
    for count in range(1, 6):
        for gone in map(list, combinations(range(6), count)):
            kept = torch.tensor([[i not in gone for i in range(6)]])
            np.testing.assert_allclose(
                curvature.made_up(weight, kept)[0], least_loss(fisher, flat, gone)[1], rtol=1e-3, atol=1e-5
            )


def test_two_of_four_are_the_best_two():
    weight, gradients, _ = drawn((3, 4), size=4)
    curvature = BlockCurvature((3, 4), 4, 1e-3)
    curvature.add(gradients.clone(), torch.full((len(gradients),), 1 / len(gradients)))
    kept = curvature.best_of_groups(weight, HALF)
    mean = np.mean([np.diag(dense_of(gradients[:, row : row + 1], 0)) for row in range(3)])
    for row in range(3):
        fisher = dense_of(gradients[:, row : row + 1], 0) + 1e-3 * mean * np.eye(4)
        flat = weight[row].double().numpy()
        best = min(combinations(range(4), 2), key=lambda gone: least_loss(fisher, flat, list(gone))[0])
        assert kept[row].tolist() == [i not in best for i in range(4)]


def test_the_inverse_is_that_of_sherman_and_morrison():
    """Blocks that cross rows, with a last one that is not full, against the recursion of the paper in numpy."""
    weight, gradients, curvature = drawn((5, 7), size=8)
    level = 1e-3 * float(gradients.flatten(1).square().mean())
    flat = torch.nn.functional.pad(gradients.flatten(1), (0, 5)).double().numpy()
    expected = []
    for block in flat.reshape(len(flat), -1, 8).transpose(1, 0, 2):
        inverse = np.eye(8) / level
        for gradient in block:
            moved = inverse @ gradient
            inverse -= np.outer(moved, moved) / (len(flat) + gradient @ moved)
        expected.append(np.diag(inverse))
    values = weight.flatten().double().numpy()
    losses = values**2 / (2 * np.concatenate(expected)[:35])
    np.testing.assert_allclose(curvature.losses(weight, ANY).flatten(), losses, rtol=1e-3)


def test_what_is_zero_is_no_part_of_it():
    weight, gradients, curvature = drawn((1, 6))
    weight[0, 2] = 0
    rest = [0, 1, 3, 4, 5]
    fisher = dense_of(gradients, 0)
    fisher = fisher[np.ix_(rest, rest)]
    fisher += 1e-3 * np.trace(fisher) / 5 * np.eye(5)
    flat = weight[0, rest].double().numpy()
    losses = curvature.losses(weight, ANY)[0]
    assert losses[2] < 0, "it goes before all others"
    np.testing.assert_allclose(losses[rest], [least_loss(fisher, flat, [i])[0] for i in range(5)], rtol=1e-4)
    made = curvature.made_up(weight, torch.tensor([[True, True, True, False, True, True]]))
    np.testing.assert_allclose(made[0, rest], least_loss(fisher, flat, [2])[1], rtol=1e-3, atol=1e-5)
    assert made[0, 2] == 0


def test_more_recomputations_lose_less_on_quadratics():
    """The true loss of half of the weights taken in one step, in two, and one by one."""
    losses = []
    for seed in range(12):
        weight, gradients, curvature = drawn((1, 24), n_samples=60, size=24, seed=seed)
        fisher, row = dense_of(gradients, 1e-3), []
        for steps in (1, 3, 12):
            now = weight
            for step in range(1, steps + 1):
                kept = kept_weights({"": curvature.losses(now, ANY)}, 0.5 * step / steps, ANY, "per_matrix")[""]
                now = curvature.made_up(now, kept)
            assert int((now == 0).sum()) == 12
            delta = (now - weight)[0].double().numpy()
            row.append(0.5 * delta @ fisher @ delta)
        losses.append(row)
    one, three, twelve = np.array(losses).T
    assert (twelve <= one * 1.001).all()
    assert three.mean() < one.mean()
    assert twelve.mean() < three.mean()


@pytest.mark.parametrize(("name", "memory"), [("bert", 2**34), ("bert", 0), ("modernbert", 2**34)])
def test_gradients_are_those_of_each_candidate_less_its_list(name, memory, monkeypatch):
    monkeypatch.setattr(weight_gradients, "memory_bytes", lambda: memory)
    ranker = tiny.build_ranker(SPECS[name], seed=2)
    queries, documents = list(tiny.QUERIES.values())[:2], list(tiny.DOCUMENTS.values())[:3]
    pairs = [(query, document) for document in documents for query in queries]

    class Squares:
        def __init__(self, shape):
            self.shape, self.total = shape, torch.zeros(shape)

        def add(self, gradients, shares):
            self.total += (gradients.square() * shares[:, None, None]).sum(dim=0)

    parts = ["layers.0.attention.value", "layers.0.ffn.up", "layers.1.attention.output"]
    groups = list(measured_curvatures(ranker, pairs, parts, Squares))
    assert len(groups) == (1 if memory else 2), "layer after layer where memory is short"
    found = {key: one.total for group in groups for key, one in group.items()}
    assert list(found) == parts
    from compressor.algorithms.calibration import calibration_batches

    module = ranker.trainable().eval()
    for part in parts:
        weight, expected = module.get_parameter(f"{part}.weight"), torch.zeros_like(found[part])
        for query in queries:
            each = []
            for document in documents:
                [batch] = calibration_batches(ranker, [(query, document)])
                score = module(**batch.inputs)[0, 0]
                each.append(torch.autograd.grad(score, weight)[0])
            gradients = torch.stack(each)
            expected += (gradients - gradients.mean(dim=0)).square().sum(dim=0) / len(documents) / len(queries)
        torch.testing.assert_close(found[part], expected, rtol=1e-3, atol=1e-6)
