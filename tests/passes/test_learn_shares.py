"""learn_shares: the budget is met, masks close as tokens go, multipliers go both ways, exact resume, and faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.algorithms.budgets import BudgetError
from compressor.algorithms.hard_concrete import mean_gates, sampled_gates
from compressor.algorithms.share_choice import LearnedShare, cost_of_shares, shares_at_budget
from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.learn_shares import LearnShares
from compressor.passes.pool_tokens import PoolTokens
from compressor.ranker.cost import macs, macs_of_lengths
from compressor.ranker.forms import with_token_rules
from compressor.ranker.spec import AttentionScorer, KeepShareRule, PageRankScorer
from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.training.batches import ListSource
from compressor.training.lists import ListSettings
from compressor.training.mask_settings import ShareGateSettings, TokenOrderSettings
from compressor.training.optimizer import build_optimizer
from compressor.training.settings import TrainingSettings
from compressor.training.share_gates import ShareGates, rank_bins
from compressor.training.shares_objective import SharesObjective
from compressor.training.token_order import TokenOrder, early_layers
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, score_rmse, supply_for, unlabelled

SCORES: dict[str, Any] = {"losses": {"mse": 1}, "representations": {}}
SEPARATOR = tiny.vocabulary().index("[SEP]")


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


def step_of(**settings: Any) -> LearnShares:
    gates = {"learning_rate": 0.5, **settings.pop("gates", {})}
    return LearnShares.model_validate({**QUICK, **SCORES, "budget": {"macs": 0.75}, "gates": gates, **settings})


def with_shares(ranker, shares, scorer=None):
    rules = {place: KeepShareRule(share=share, scorer=scorer or AttentionScorer()) for place, share in shares.items()}
    return ranker.changed(spec=with_token_rules(ranker.spec.changed(separator_id=SEPARATOR), rules))


def gates_of(ranker, places=(0, 2), budget=0.6, n_steps=100, **settings):
    ready = with_shares(ranker, dict.fromkeys(places, 0.5))
    gates = ShareGates(ready.spec, budget, ShareGateSettings.model_validate(settings), seed=5)
    gates.n_steps = n_steps
    return gates


@torch.no_grad()
def set_shares(gates, kept_bins, is_open=None):
    """Have the best bins of each place be open and the others closed, for good."""
    for number, kept in enumerate(kept_bins):
        gates.bins[number] = torch.where(torch.arange(gates.settings.bins) < kept, 100.0, -100.0)
        gates.gates[number] = 100.0 if is_open is None or is_open[number] else -100.0
    gates.set_gates(drawn=False)


def rows_of(batch):
    layout = TokenLayout.of(batch["attention_mask"])
    return layout, RowParts.of(layout, batch["input_ids"], SEPARATOR)


def test_the_budget_is_met_on_real_lengths(ranker, data):
    notes: dict[str, Any] = {}
    step = step_of(epochs=4)
    result = applied(step, ranker, data, notes)
    assert set(result.spec.rule_layers) <= {0, 1, 2}
    assert result.spec.rule_layers
    assert {str(place): result.spec.layers[place].token_rule.share for place in result.spec.rule_layers} == notes[
        "kept_shares"
    ]
    assert set(notes["gates"]) == set(notes["learned_shares"]) == {"0", "1", "2"}
    total = whole = 0
    for pair in supply_for(step, data, ranker).pairs(
        "train", step.n_pairs
    ):  # counted one by one, from what layers read
        ids = torch.from_numpy(result.tokenizer.encode_pairs([pair]).input_ids[0])[None]
        layouts = result.module.trace(ids, torch.ones_like(ids)).layouts
        total += macs_of_lengths(result.spec, [len(layout.to_packed) for layout in layouts[1:]])
        whole += macs(ranker.spec, ids.shape[1])
    assert total / whole == pytest.approx(0.75, abs=0.02)
    assert notes["kept_macs"] == pytest.approx(total / whole, abs=0.005)  # which counts what judges, too
    assert notes["kept_macs"] <= 0.75


def test_tokens_go_where_they_do_nothing(ranker, data):
    """Behind layer 1 no attention is paid to any token, so all of them may go there, and none need to before."""
    idle = ranker.changed(
        weights={
            name: torch.zeros_like(tensor) if name in _READS_TOKENS else tensor
            for name, tensor in ranker.weights.items()
        }
    )
    notes: dict[str, Any] = {}
    cheapest = applied(KeepTokens(layers={1: 0.3}), idle, data)
    budget = cost_of_shares(cheapest.spec, np.array([30]), np.array([20]))({1: 0.3})
    assert budget == pytest.approx(macs(cheapest.spec, 30, 7) / macs(idle.spec, 30))
    assert cheapest.spec.rule_layers == (1,)
    result = applied(step_of(budget={"macs": budget}, layers=(0, 1), learning_rate=1e-4, epochs=12), idle, data, notes)
    gone = {place: notes["gates"][place] * (1 - notes["learned_shares"][place]) for place in ("0", "1")}
    assert gone["1"] > 2 * gone["0"]
    assert score_rmse(result, idle, data) < score_rmse(applied(KeepTokens(layers={0: 0.5}), idle, data), idle, data)


_READS_TOKENS = {f"layers.{layer}.attention.value.{kind}" for layer in (2, 3) for kind in ("weight", "bias")}


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


def learned(**places):
    return {int(place[1:]): LearnedShare(*found) for place, found in places.items()}


def test_shares_are_brought_to_the_budget():
    def cost(shares):
        left = [1.0, 1.0, 1.0, 1.0]
        for place, share in shares.items():
            left = [one * (share if index > place else 1) for index, one in enumerate(left)]
        return sum(left) / 4

    found = shares_at_budget(learned(p0=(0.9, 0.9), p1=(0.5, 0.9), p2=(0.1, 0.2)), cost, 0.6)
    assert set(found) == {0, 1}  # a closed mask gives no rule
    assert cost(found) == pytest.approx(0.6, abs=1e-3)
    assert cost(found) <= 0.6
    assert found[1] < found[0]
    assert set(shares_at_budget(learned(p0=(1.0, 0.9), p1=(0.5, 0.9)), cost, 0.8)) == {1}  # nor one that keeps all
    assert set(shares_at_budget(learned(p0=(1.0, 0.0), p2=(0.5, 0.1)), cost, 0.9)) == {2}  # one has to be open
    assert set(shares_at_budget(learned(p0=(0.8, 0.2), p2=(0.5, 0.9)), cost, 0.5)) == {0, 2}  # or more
    with pytest.raises(BudgetError) as refused:
        shares_at_budget(learned(p1=(0.5, 0.9)), cost, 0.4)
    assert refused.value.least == pytest.approx(0.5, abs=0.01)


def batch_of_lists(ranker, data):
    source = ListSource(data=data, tokenizer=ranker.tokenizer, settings=ListSettings(list_size=4), seed=1)
    lists = source.lists(0)[:2]
    encoded = source.encode(lists)
    return source.batch(lists, encoded, torch.arange(len(encoded.input_ids)).numpy())


def test_early_layers_learn_the_order_of_the_last_attention(ranker, data):
    batch = batch_of_lists(ranker, data)
    rows = rows_of(batch.inputs)
    order = TokenOrder(ranker.trainable().requires_grad_(False).eval(), AttentionScorer(), TokenOrderSettings())
    assert order.layers == [1]
    gates = gates_of(ranker)
    module = with_shares(ranker, {0: 0.5, 2: 0.5}).trainable()
    gates.install(module, 1)
    gates.set_gates(drawn=False)

    def loss():
        with order.watched(module) as read:
            module(**batch.inputs)
        return order.loss(module, read, batch, rows)

    first = loss()
    first.backward()
    judging = module.layers[1].attention.key.weight.grad
    assert judging is not None
    assert judging.abs().sum() > 0
    assert module.layers[2].attention.key.weight.grad is None
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.7 * first
    assert not module.layers[1]._forward_pre_hooks


def test_the_order_fades_out_with_the_ramp(ranker, data):
    batch = batch_of_lists(ranker, data)
    ready = with_shares(ranker, {0: 0.5, 2: 0.5})
    order = TokenOrder(
        ranker.trainable().requires_grad_(False).eval(), AttentionScorer(), TokenOrderSettings(weight=2.0)
    )
    gates = gates_of(ranker, ramp=(0.1, 0.6))
    objective = SharesObjective(gates, order)
    module = ready.trainable().eval()
    objective.begin(module, 100)
    found = []
    for step in (0, 35, 60):
        gates.step.fill_(step)
        found.append(objective(module, batch))
    assert set(found[0]) == {"token_order"}
    assert set(found[1]) == {"token_order", "budget"}
    assert set(found[2]) == {"budget"}
    with order.watched(module) as read:
        module(**batch.inputs)
    half = order.loss(module, read, batch, rows_of(batch.inputs)).item()
    gates.step.fill_(35)
    gates.set_gates(drawn=True)
    assert found[1]["token_order"].item() == pytest.approx(half, rel=0.2)  # layer 1 reads behind other masks


def test_early_layers_are_those_of_the_first_third():
    def spec(n_layers):
        return tiny.tiny_spec(layers=(tiny.tiny_layer(),) * n_layers)

    assert [early_layers(spec(n)) for n in (2, 3, 6, 12)] == [[0], [1], [1], [1, 2, 3]]


def test_a_killed_training_goes_on_to_the_same_bits(ranker, data, monkeypatch):
    step = step_of(epochs=2, checkpoint_every_s=1e-9, dropout=True, representations={"hidden": 1}, scorer="pagerank")
    check_exact_resume(step, ranker, ranker, data, monkeypatch, call=5, kind=SharesObjective)


REFUSED: dict[str, Any] = {
    "the last layer": ({"layers": (3,)}, (), "layer 3 of a ranker of 4 layers", "layers"),
    "parameters": ({"budget": {"parameters": 0.5}}, (), "a budget in parameters", "budget"),
    "latency": ({"budget": {"latency": 0.5}}, (), "a budget in latency", "budget"),
    "too small a budget": ({"layers": (2,), "budget": {"macs": 0.3}}, (), "30.000%, which is less", "budget"),
    "no epochs": ({"epochs": 0}, (), "no epochs", "epochs"),
    "dev data": ({"evaluate_every": 2}, (), "evaluate_every with gates", "evaluate_every"),
    "layers left out": ({"layer_drop": 0.2}, (), "layer_drop with gates", "layer_drop"),
    "drawn rules": ({"token_rules": {"shares": (1, 0.5)}}, (), "shares for a ranker that has no", "token_rules.shares"),
    "tokens gone already": ({}, (PoolTokens(layer=0),), "lets tokens go behind layer 0", ""),
    "a share": ({}, (KeepTokens(layers={1: 0.5}),), "lets tokens go behind layer 1", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name, ranker):
    settings, before, found, setting = REFUSED[name]
    for step in before:
        ranker = applied(step, ranker)
    with pytest.raises(PlanError, match=found) as refused:
        step_of(**settings).plan(ranker.spec)
    assert refused.value.setting == setting
    assert refused.value.fix or refused.value.allowed


def test_a_ranker_without_attention_among_the_places_is_refused(ranker):
    blind = ranker.spec.changed(
        layers=(tiny.tiny_layer(attention=None, attention_norm=None),) * 3 + (tiny.tiny_layer(),)
    )
    with pytest.raises(PlanError, match="no layer with attention among 0 to 2"):
        step_of().plan(blind)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": (1, 1)},
        {"layers": ()},
        {"gates": {"bins": 1}},
        {"gates": {"ramp": (0.5, 0.5)}},
        {"token_order": {"top": 1}},
        {"budget": {}},
        {"scorer": "learned"},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"layers|bins|ramp|top|budget|scorer"):
        step_of(**settings)


def test_a_budget_that_the_data_cannot_meet_is_refused_before_training(ranker, data):
    step = step_of(budget={"macs": 0.5})  # planned for longer pairs than these are
    step.plan(ranker.spec)
    with pytest.raises(InputError, match="one document token behind each layer"):
        step.apply(ranker, supply_for(step, data, ranker))


def test_plans_and_needs_follow_from_what_is_done(ranker):
    planned = step_of(layers=(0, 2)).plan(ranker.spec)
    assert planned.rule_layers == (0, 2)
    assert macs(planned, 128) / macs(ranker.spec, 128) == pytest.approx(0.75, abs=0.01)
    assert step_of(budget={"macs": 1}).needs() == set()
    assert step_of(budget={"macs": 1}).plan(ranker.spec) == ranker.spec
    assert step_of().needs() == {"teacher", "train"}
