"""The order of tokens that early layers learn from the last one."""

from __future__ import annotations

import pytest
import torch

from compressor.ranker.spec import AttentionScorer
from compressor.training.batches import ListSource
from compressor.training.lists import ListSettings
from compressor.training.mask_settings import TokenOrderSettings
from compressor.training.shares_objective import SharesObjective
from compressor.training.token_order import TokenOrder, early_layers
from tests import tiny
from tests.passes.students import unlabelled
from tests.training.share_masks import four_layers, gates_of, rows_of, with_shares


@pytest.fixture(scope="module")
def ranker():
    return four_layers()


@pytest.fixture(scope="module")
def data(tiny_data):
    return unlabelled(tiny_data)


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
