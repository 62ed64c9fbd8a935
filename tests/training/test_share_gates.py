"""Masks on ranks of tokens: closed ones are tokens that are gone, and what they cost goes both ways."""

from __future__ import annotations

import pytest
import torch

from compressor.algorithms.hard_concrete import mean_gates, sampled_gates
from compressor.ranker.cost import macs
from compressor.ranker.spec import AttentionScorer, PageRankScorer
from compressor.training.optimizer import build_optimizer
from compressor.training.settings import TrainingSettings
from compressor.training.share_gates import rank_bins
from tests import tiny
from tests.training.share_masks import four_layers, gates_of, rows_of, with_shares


@pytest.fixture(scope="module")
def ranker():
    return four_layers()


@torch.no_grad()
def set_shares(gates, kept_bins, is_open=None):
    """Have the best bins of each place be open and the others closed, for good."""
    for number, kept in enumerate(kept_bins):
        gates.bins[number] = torch.where(torch.arange(gates.settings.bins) < kept, 100.0, -100.0)
        gates.gates[number] = 100.0 if is_open is None or is_open[number] else -100.0
    gates.set_gates(drawn=False)


@pytest.mark.parametrize("scorer", [AttentionScorer(), PageRankScorer()])
def test_masks_at_0_and_1_are_the_rules(ranker, scorer):
    """Tokens that masks close are gone in all layers behind: train equals test."""
    gates = gates_of(ranker)
    set_shares(gates, (13, 9))
    hard = with_shares(ranker, {0: 0.65, 2: 0.45}, scorer)
    batch = tiny.batch_of(hard.spec, [30, 12, 40, 6, 5])
    module = hard.trainable().eval()
    with torch.no_grad():
        expected = module.trace(**batch)
        gates.install(module, 1)
        found = module.trace(**batch)
    assert min(one.margins.min() for one in expected.reductions.values()) > 1e-5
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert len(found.layouts[-1].to_packed) > len(expected.layouts[-1].to_packed)
    kept = [layout.log_gates.exp().round().sum(dim=1) for layout in (found.layouts[1 + 0 + 1], found.layouts[4])]
    left = [layout.mask.sum(dim=1) for layout in (expected.layouts[2], expected.layouts[4])]
    for one, other in zip(kept, left, strict=True):
        padding = one.new_tensor([40 - length for length in (30, 12, 40, 6, 5)])
        assert torch.equal((one - padding).long(), other)


def test_a_row_keeps_its_best_token_and_its_mates_change_nothing(ranker):
    gates = gates_of(ranker)
    set_shares(gates, (0, 0))
    module = with_shares(ranker, {0: 0.5, 2: 0.5}).trainable().eval()
    gates.install(module, 1)
    batch = tiny.batch_of(module.spec, [30, 9])
    with torch.no_grad():
        layout = module.trace(**batch).layouts[-1]
        torch.testing.assert_close(layout.n_tokens, torch.full((2,), 6.0))  # five that always stay, and the best
        gates._stays = torch.linspace(1, 0.1, 20).expand(2, 20)
        both = module(**batch)
        alone = module(**{name: one[1:, :9] for name, one in batch.items()})
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


def test_bins_are_of_ranks_among_those_left():
    scores = torch.tensor([[9.0, 0.1, 0.5, 0.5, 0.4, 0.2]])
    document = torch.tensor([[False, True, True, True, True, True]])
    order, bins = rank_bins(scores, document, torch.zeros(1, 6), 5)
    assert order[0, :5].tolist() == [2, 3, 4, 5, 1]
    assert bins[0, 1:].tolist() == [4, 0, 1, 2, 3]
    gone = torch.tensor([[0.0, 0.0, -20.0, 0.0, 0.0, -20.0]])
    _, bins = rank_bins(scores, document, gone, 3)
    assert bins[0, [3, 4, 1]].tolist() == [0, 1, 2]


def test_the_cost_of_masks_is_that_of_the_rules(ranker):
    gates = gates_of(ranker, bins=4)
    batch = tiny.batch_of(with_shares(ranker, {0: 0.5}).spec, [13, 21])  # 8 and 16 tokens of documents
    rows = rows_of(batch)
    for kept, is_open, shares in (
        ((3, 2), None, {0: 0.75, 2: 0.5}),
        ((3, 2), (False, True), {2: 0.5}),
        ((4, 4), None, {}),
    ):
        set_shares(gates, kept, is_open)
        cut = with_shares(ranker, shares).spec
        expected = sum(macs(cut, n, 2) for n in (13, 21)) / sum(macs(ranker.spec, n) for n in (13, 21))
        assert gates.expected_cost(*rows).item() == pytest.approx(expected, abs=6e-3)  # what judges counts in full


def test_means_are_those_of_what_is_drawn():
    logits = torch.tensor([-4.6, -2.0, -0.3, 0.0, 1.0, 2.4, 4.6], requires_grad=True)
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(1)).expand(-1, len(logits))
    drawn = sampled_gates(logits, uniform).mean(dim=0)
    torch.testing.assert_close(mean_gates(logits), drawn, atol=0.02, rtol=0)
    mean_gates(logits).sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 1e-3).all()


@pytest.mark.parametrize("side", ["above", "below"])
def test_the_lagrangian_moves_costs_both_ways(ranker, side):
    gates = gates_of(ranker, n_steps=200, ramp=(0.0, 0.01))
    if side == "below":
        with torch.no_grad():
            gates.bins.fill_(-3.0)
            gates.gates.fill_(3.0)
    rows = rows_of(tiny.batch_of(with_shares(ranker, {0: 0.5}).spec, [40, 31, 25]))
    named = dict(gates.named_parameters())
    rates = {name: rate for start, rate in gates.rates.items() for name in named if name.startswith(start)}
    optimizer = build_optimizer(named, TrainingSettings(), rates)
    assert gates.penalty(*rows) is None  # before the ramp
    gates.after_step()
    gates.after_step()
    start = gates.expected_cost(*rows).item()
    assert (start > 0.7) if side == "above" else (start < 0.5)
    extreme = 0.0
    for _ in range(200):
        optimizer.zero_grad()
        penalty = gates.penalty(*rows)
        assert penalty is not None
        penalty.backward()
        optimizer.step()
        gates.after_step()
        now = gates.lagrangian.linear.item()
        extreme = max(extreme, now) if side == "above" else min(extreme, now)
    assert (extreme > 0) if side == "above" else (extreme < 0)
    assert gates.expected_cost(*rows).item() == pytest.approx(0.6, abs=0.03)


def test_equal_steps_draw_equal_masks_and_others_do_not(ranker):
    gates = gates_of(ranker)
    torch.nn.init.zeros_(gates.bins)
    torch.nn.init.zeros_(gates.gates)
    drawn = []
    for step in (0, 0, 1):
        gates.step.fill_(step)
        gates.set_gates(drawn=True)
        drawn.append(gates._stays)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_gradients_of_scores_reach_masks(ranker):
    gates = gates_of(ranker)
    module = with_shares(ranker, {0: 0.5, 2: 0.5}).trainable()
    gates.install(module, 1)
    torch.nn.init.zeros_(gates.bins)
    torch.nn.init.zeros_(gates.gates)
    gates.set_gates(drawn=False)
    module(**tiny.batch_of(module.spec, [40, 36])).sum().backward()
    for learned in (gates.bins, gates.gates):
        assert learned.grad is not None
        assert (learned.grad != 0).float().mean() > 0.8
