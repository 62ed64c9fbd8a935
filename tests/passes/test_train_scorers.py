"""Training with token_scorers: learned scorers learn through heads, and nothing else of the ranker does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compressor.algorithms.loss_options import PointwiseMSE
from compressor.passes import PlanError
from compressor.passes.distill import Distill
from compressor.passes.finetune import Finetune
from compressor.passes.keep_tokens import KeepTokens
from compressor.ranker.spec import KeepShareRule, LearnedScorer
from compressor.ranker.sub_network import SubNetwork, running
from compressor.ranker.token_rules import KeepShare
from compressor.ranker.token_scores import Reached
from compressor.ranker.tokens import RowParts, TokenLayout
from compressor.training.mask_settings import TokenScorerSettings
from compressor.training.objective import Objective
from compressor.training.scorer_heads import ScorerHeads
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, supply_for, unlabelled
from tests.training.test_token_order import batch_of_lists

QUICKER: dict[str, Any] = {**QUICK, "epochs": 2, "token_scorers": {"learning_rate": 0.02}}
VECTORS = {f"layers.{layer}.token_rule.scorer.{name}" for layer in (0, 2) for name in ("direction", "match")}


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def learned(ranker, tiny_data):
    return applied(KeepTokens(layers={0: 0.7, 2: 0.5}, scorer="learned", n_pairs=24), ranker, tiny_data)


def heads_of(ranker, *, begun=True, **settings):
    heads = ScorerHeads(ranker.spec, TokenScorerSettings.model_validate(settings), seed=1)
    for head in heads.heads.values() if begun else ():
        torch.nn.init.normal_(head.get_parameter("2.weight"))
    return heads


def test_gradients_of_heads_reach_scorers_and_nothing_else_of_the_ranker(learned, tiny_data):
    batch = batch_of_lists(learned, tiny_data)
    heads, module = heads_of(learned), learned.trainable()
    losses = Objective(heads=heads)(module, batch)
    assert set(losses) == {"token_scorers"}
    losses["token_scorers"].backward()
    moved = {name for name, one in module.named_parameters() if one.grad is not None and one.grad.any()}
    assert moved == VECTORS
    assert all(one.grad is not None and one.grad.any() for one in heads.parameters())
    assert not module.layers[0].token_rule._forward_pre_hooks


def test_heads_begin_without_moving_scorers(learned, tiny_data):
    module = learned.trainable()
    Objective(heads=heads_of(learned, begun=False))(module, batch_of_lists(learned, tiny_data))[
        "token_scorers"
    ].backward()
    assert not any(one.grad is not None and one.grad.any() for one in module.parameters())


def test_where_no_rule_acts_nothing_is_learned_of_it(learned, tiny_data):
    batch = batch_of_lists(learned, tiny_data)
    module = learned.trainable()
    with running(module, SubNetwork(token_rules={0: None, 2: None})):
        assert Objective(heads=heads_of(learned))(module, batch) == {}
    with running(module, SubNetwork(token_rules={0: None})):
        Objective(heads=heads_of(learned))(module, batch)["token_scorers"].backward()
    assert module.layers[0].token_rule.scorer.match.grad is None
    assert module.layers[2].token_rule.scorer.match.grad is not None


def test_what_heads_tell_does_not_depend_on_batch_mates(learned):
    heads, module = heads_of(learned), learned.module
    batch = tiny.batch_of(learned.spec, [31, 9, 5])  # the last has no document
    told = []
    for rows, columns in ((slice(None), 31), (slice(1, 2), 9), (slice(2, 3), 5)):
        with torch.no_grad(), heads.watched(module) as reached:
            module(**{name: one[rows, :columns] for name, one in batch.items()})
            told.append(torch.stack([heads(layer, each) for layer, each in reached.items()]))
    assert told[0].shape == (2, 3, 1)
    torch.testing.assert_close(told[0][:, 1:2], told[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(told[0][:, 2:], told[2], atol=1e-5, rtol=0)
    assert torch.isfinite(told[0]).all()


def test_a_scorer_finds_the_tokens_that_tell_the_score():
    """One token of each row says what the score is, and is marked; scores of marked tokens end highest."""
    width, n_rows, length = tiny.WIDTH, 256, 12
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(n_rows, length, width, generator=generator)
    targets = 2 * torch.randn(n_rows, generator=generator)
    marked = torch.randint(4, length - 1, (n_rows,), generator=generator)
    states[:, :, 0] = -1.0
    states[torch.arange(n_rows), marked, 0] = 4.0
    states[torch.arange(n_rows), marked, 1] = targets
    ids = torch.full((n_rows, length), 9)
    ids[:, 3] = ids[:, -1] = 1
    layout = TokenLayout.of(torch.ones_like(ids))
    rule = KeepShare(KeepShareRule(share=0.5, scorer=LearnedScorer()), width)
    for vector in rule.parameters():
        torch.nn.init.zeros_(vector)
    layer: Any = SimpleNamespace(token_rule=rule)
    packed = states.flatten(0, 1)
    reached = Reached(layer=layer, read=packed, given=packed, layout=layout, parts=RowParts.of(layout, ids, 1))
    keeping = tiny.tiny_layer(token_rule=KeepShareRule(share=0.5, scorer=LearnedScorer()))
    spec = tiny.tiny_spec(layers=(keeping, tiny.tiny_layer()), separator_id=1)
    heads = ScorerHeads(spec, TokenScorerSettings(hidden=8), seed=1)
    optimizer = torch.optim.Adam([*heads.parameters(), *rule.parameters()], lr=0.03)
    first = last = 0.0
    for step in range(100):
        loss = (heads(0, reached)[:, 0] - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if not step else first), loss.item()
    assert last < 0.3 * first
    scores = rule.scorer(reached)[:, 4:-1]
    assert (scores.argmax(dim=1) + 4 == marked).float().mean() > 0.9


@pytest.mark.parametrize("kind", [Distill, Finetune])
def test_scorers_learn_and_heads_are_dropped(kind, ranker, learned, tiny_data):
    settings = dict(QUICKER) if kind is Finetune else {**QUICKER, "token_rules": {"shares": [1, 0.7, 0.5]}}
    step = kind.model_validate(settings)
    supply = supply_for(step, tiny_data if kind is Finetune else unlabelled(tiny_data), ranker)
    assert step.plan(learned.spec) == learned.spec
    result = step.apply(learned, supply)
    assert result.spec == learned.spec
    assert set(result.weights) == set(learned.weights)
    assert all(not torch.equal(result.weights[name], learned.weights[name]) for name in VECTORS)
    losses = [loss for _, loss in supply.curves["loss/token_scorers"]]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    pairs = tiny_data.texts(tiny_data.pairs())[:12]
    alone = np.concatenate([result.score([pair]) for pair in pairs])
    np.testing.assert_allclose(alone, result.score(pairs, batch_tokens=100_000), atol=1e-5, rtol=0)


def test_the_gradients_of_all_else_are_those_without_heads(learned, tiny_data):
    batch = batch_of_lists(learned, tiny_data)
    batch = replace(batch, targets=torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(2)))
    found: list[dict[str, torch.Tensor]] = []
    for heads in (None, heads_of(learned, weight=5.0)):
        module = learned.trainable().eval()
        losses = Objective(scores=[("mse", PointwiseMSE())], heads=heads)(module, batch)
        torch.stack(list(losses.values())).sum().backward()
        found.append({name: one.grad for name, one in module.named_parameters() if one.grad is not None})
    assert set(found[1]) == set(found[0]) | VECTORS
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, atol=1e-7, rtol=1e-5)


def test_a_killed_training_goes_on_to_the_same_bits(ranker, learned, tiny_data, monkeypatch):
    step = Distill.model_validate({**QUICKER, "checkpoint_every_s": 1e-9})
    check_exact_resume(step, learned, ranker, unlabelled(tiny_data), monkeypatch, call=5)


def test_a_ranker_without_learned_scorers_is_refused(ranker):
    by_attention = applied(KeepTokens(layers={1: 0.5}), ranker)
    for one in (ranker, by_attention):
        with pytest.raises(PlanError, match="no learned scorer") as refused:
            Distill.model_validate({"token_scorers": {}}).plan(one.spec)
        assert refused.value.setting == "token_scorers"
    for bad in ({"weight": 0}, {"hidden": 0}, {"learning_rate": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Distill.model_validate({"token_scorers": bad})
