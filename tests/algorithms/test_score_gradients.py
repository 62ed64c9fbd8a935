"""Gradients of scores: those of each candidate alone, equal to finite differences, centered within queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.algorithms.calibration import calibration_batches
from compressor.algorithms.score_gradients import measure_score_gradients, rank_centered
from tests import tiny
from tests.ranker.cases import SPECS

PAIRS = [
    (query, document) for query in list(tiny.QUERIES.values())[:3] for document in list(tiny.DOCUMENTS.values())[:4]
]


@pytest.mark.parametrize("name", ["bert", "modernbert", "pre_norm", "gated_silu"])
def test_mask_gradients_are_differences(name):
    ranker = tiny.build_ranker(SPECS[name], seed=2)
    found = measure_score_gradients(ranker.module, calibration_batches(ranker, PAIRS))
    scores = ranker.score(PAIRS)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    step = 1e-2
    for index, layer in enumerate(ranker.spec.layers):
        width = layer.head_width
        for part, columns, gradients in (
            ("attention.output", slice(0, width), found.heads[index][:, 0]),
            ("ffn.down", slice(3, 4), found.neurons[index][:, 3]),
        ):
            name_ = f"layers.{index}.{part}.weight"
            sides = []
            for factor in (1 + step, 1 - step):
                weight = ranker.weights[name_].clone()
                weight[:, columns] *= factor
                sides.append(ranker.changed(weights={**ranker.weights, name_: weight}).score(PAIRS))
            expected = (sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(gradients, expected, atol=2e-3 * max(1.0, float(np.abs(expected).max())))


def test_batches_do_not_matter():
    ranker = tiny.build_ranker(seed=2)
    together = measure_score_gradients(ranker.module, calibration_batches(ranker, PAIRS))
    alone = [measure_score_gradients(ranker.module, calibration_batches(ranker, [pair])) for pair in PAIRS]
    for index in range(len(ranker.spec.layers)):
        torch.testing.assert_close(together.heads[index], torch.cat([one.heads[index] for one in alone]))
        mean = torch.stack([one.ffn_outputs[index] for one in alone]).mean(dim=0)
        torch.testing.assert_close(together.ffn_outputs[index], mean)


def test_a_shift_of_a_whole_list_counts_nothing():
    values = torch.arange(6.0)[:, None].repeat(1, 2)
    values[3:] = 7.0
    centered, weights = rank_centered(values, torch.zeros(6), ["a", "a", "a", "b", "b", "b"])
    assert centered[:, 0].tolist() == pytest.approx([-1, 0, 1, 0, 0, 0], abs=1e-5)
    assert weights.sum().item() == pytest.approx(1)


def test_a_temperature_looks_at_the_top():
    values = torch.tensor([[1.0], [0.0], [5.0]])
    scores = torch.tensor([20.0, 20.0, -20.0])
    centered, weights = rank_centered(values, scores, ["a"] * 3, temperature=1.0)
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert centered[:2, 0].tolist() == pytest.approx([0.5, -0.5])
