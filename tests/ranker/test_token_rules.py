"""Which tokens go: none that is protected, whatever the scores, and as many as the row itself says."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressor.errors import RunError
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import KeepShareRule, KeepThresholdRule, PoolRule
from compressor.ranker.sub_network import SubNetwork, running
from compressor.ranker.token_rules import KeepShare, KeepThreshold, Pool
from compressor.ranker.token_scores import Reached
from compressor.ranker.tokens import RowParts, TokenLayout
from tests.ranker.cases import SPECS
from tests.strategies import LAW
from tests.tiny import batch_of, build_ranker, module_of, tiny_layer, tiny_spec

SEP = 9
EXTREMES = st.one_of(st.floats(-(2.0**127), 2.0**127, width=32), st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf]))


class Given(nn.Module):
    """A scorer that gives made-up scores."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, reached):
        return self.scores


def reached_by(rows):
    """Return what reaches a rule of rows of ids; states say where tokens stand."""
    columns = max(map(len, rows))
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (columns - len(row)) for row in rows])
    layout = TokenLayout.of(mask)
    states = layout.positions[:, None].float()
    parts = RowParts.of(layout, ids, SEP)
    layers: Any = module_of(tiny_spec()).layers
    return Reached(layer=layers[0], read=states, given=states, layout=layout, parts=parts)


def in_rows(layout, packed):
    return [packed[start : start + n].tolist() for start, n in zip(layout.first, layout.mask.sum(1), strict=True)]


def documents(rows):
    return [[i for i, id_ in enumerate(row) if id_ != SEP and SEP in row[:i]] for row in rows]


@LAW
@given(
    rows=st.lists(st.lists(st.sampled_from([1, 2, 3, SEP]), min_size=1, max_size=14), min_size=1, max_size=4),
    share=st.sampled_from([0.001, 0.1, 1 / 3, 0.5, 0.7, 0.999]),
    data=st.data(),
)
def test_whatever_the_scores_protected_tokens_stay_and_counts_are_exact(rows, share, data):
    reached = reached_by(rows)
    shape = reached.layout.mask.shape
    scores = torch.tensor(data.draw(st.lists(EXTREMES, min_size=shape.numel(), max_size=shape.numel()))).view(shape)
    spec = KeepShareRule(share=share)
    rule = KeepShare(spec, 1)
    rule.scorer = Given(scores)
    reduction = rule(reached, spec)
    left = in_rows(reduction.layout, reduction.layout.positions)
    for b, (kept, document) in enumerate(zip(left, documents(rows), strict=True)):
        assert kept == sorted(kept)
        assert set(range(len(rows[b]))) - set(document) <= set(kept)
        stays = [column for column in kept if column in document]
        part = Fraction(str(share)).limit_denominator(10_000)
        assert len(stays) == math.ceil(part * len(document)) == spec.n_left(len(document))
        best = sorted(document, key=lambda column: (-scores[b, column].item(), column))  # of equal ones the first
        assert stays == sorted(best[: len(stays)])
    assert torch.equal(reduction.states(reached.given)[:, 0].long(), reduction.layout.positions)


@LAW
@given(
    rows=st.lists(st.lists(st.sampled_from([1, 2, 3, SEP]), min_size=1, max_size=14), min_size=1, max_size=4),
    threshold=st.sampled_from([0.0, 0.5, 1.0, 1e30]),
    data=st.data(),
)
def test_whatever_the_scores_a_threshold_takes_no_protected_token_and_leaves_the_best(rows, threshold, data):
    reached = reached_by(rows)
    shape = reached.layout.mask.shape
    scores = torch.tensor(data.draw(st.lists(EXTREMES, min_size=shape.numel(), max_size=shape.numel()))).view(shape)
    spec = KeepThresholdRule(threshold=threshold, share=0.5)
    rule = KeepThreshold(spec, 1)
    rule.scorer = Given(scores)
    reduction = rule(reached, spec)
    for b, (kept, document) in enumerate(
        zip(in_rows(reduction.layout, reduction.layout.positions), documents(rows), strict=True)
    ):
        assert set(range(len(rows[b]))) - set(document) <= set(kept)
        relative = (scores[b] * len(rows[b])).tolist()
        best = max((relative[column] for column in document), default=math.inf)
        least = min(torch.tensor(threshold).item(), best)
        assert [column for column in kept if column in document] == [c for c in document if relative[c] >= least]
        assert not document or set(kept) & set(document)
        alone = reached_by([rows[b]])
        rule.scorer = Given(scores[b : b + 1, : len(rows[b])])
        assert rule(alone, spec).layout.positions.tolist() == kept  # batch mates change nothing
        rule.scorer = Given(scores)


def test_a_clear_threshold_is_told_from_a_near_miss():
    reached, spec = reached_by([[1, SEP, 2, 2, SEP]] * 4), KeepThresholdRule(threshold=5.0, share=0.5)
    rule = KeepThreshold(spec, 1)
    rule.scorer = Given(torch.tensor([[1.0, 1, 2, 0.5, 1], [1, 1, 2, 1, 1], [1, 1, 0.4, 0.2, 1], [1, 1, 0.4, 0.4, 1]]))
    assert rule(reached, spec).margins.tolist() == [0.5, 0, 0.5, 0]


def test_a_share_is_meant_as_it_is_written():
    assert math.ceil(0.07 * 100) == 8  # as floats go
    assert KeepShareRule(share=0.07).n_left(100) == 7
    for n in range(1, 2000):
        assert KeepShareRule(share=0.7).n_left(n) == -(-7 * n // 10)
        assert KeepShareRule(share=1 / 3).n_left(3 * n) == n


def test_a_clear_choice_is_told_from_a_near_tie():
    reached, spec = reached_by([[1, SEP, 2, 2, SEP], [1, SEP, 2, 2, SEP], [1, SEP, SEP]]), KeepShareRule(share=0.5)
    rule = KeepShare(spec, 1)
    rule.scorer = Given(torch.tensor([[9.0, 9, 2, 1, 9], [9, 9, 2, 2, 9], [9, 9, 9, 0, 0]]))
    assert rule(reached, spec).margins.tolist() == [0.5, 0, math.inf]


def test_windows_start_with_the_document_and_separators_end_them():
    rows = [
        [1, 2, SEP, 3, 3, 3, SEP],  # BERT
        [1, SEP, SEP, 3, 3, 3, 3, SEP],  # RoBERTa
        [1, SEP, 3, SEP, 3, 3, SEP],  # a separator that a document spells out
        [1, 2, 2],  # no separator: all is query
        [SEP, 3, 3, 3],
    ]
    reached = reached_by(rows)
    reduction = Pool()(reached, PoolRule(stride=2))
    assert in_rows(reduction.layout, reduction.layout.positions) == [
        [0, 1, 2, 3, 5, 6], [0, 1, 2, 3, 5, 7], [0, 1, 2, 3, 4, 6], [0, 1, 2], [0, 1, 3],
    ]  # fmt: skip
    means = in_rows(reduction.layout, reduction.states(reached.given)[:, 0])
    assert means[0] == [0, 1, 2, 3.5, 5, 6]
    assert means[1] == [0, 1, 2, 3.5, 5.5, 7]
    assert means[2] == [0, 1, 2, 3, 4.5, 6]
    assert means[4] == [0, 1.5, 3]
    alone = [reached_by([row]) for row in rows]
    for found, one in zip(in_rows(reduction.layout, reduction.layout.positions), alone, strict=True):
        assert Pool()(one, PoolRule(stride=2)).layout.positions.tolist() == found
    assert reached.parts.n_asking.tolist() == [2, 1, 1, 3, 1]


def test_states_before_a_rule_are_whole_and_those_behind_follow_it():
    spec = SPECS["token_rules_and_exits"]
    trace = module_of(spec).trace(**batch_of(spec, [30, 12]), relations=[1])
    n_tokens = [len(layout.to_packed) for layout in trace.layouts]
    assert n_tokens[0] == n_tokens[1] == 42 > n_tokens[2] > n_tokens[3]
    positions = trace.layouts[0].positions[:, None].float()
    assert len(trace.left_of(positions, 1)) == 42
    assert len(trace.left_of(positions, 2)) == n_tokens[2] == len(trace.relations[1][0])
    pooled = trace.left_of(positions, 2)[:, 0]
    assert (pooled - trace.layouts[2].positions).unique().tolist() == [0, 0.5]  # windows of two, or what stays alone
    assert len(trace.left_of(positions, 3)) == n_tokens[3]


def test_where_windows_see_tokens_relations_are_of_windows_all_the_same():
    """Linears make of the mean of a window's states the mean of its keys, and of its values."""
    pooled = tiny_layer(token_rule=PoolRule(stride=2, queries_only=True))
    spec = tiny_spec(layers=(pooled, tiny_layer(), tiny_layer()), separator_id=3)
    module = build_ranker(spec).module
    trace = module.trace(**batch_of(spec, [30, 12]), relations=[1])
    windows = trace.reductions[0].states(trace.states[1])
    attention: Any = module.layers[1].attention
    for found, linear in zip(trace.relations[1], (attention.query, attention.key, attention.value), strict=True):
        torch.testing.assert_close(found, linear(windows))


def test_the_next_layer_that_is_run_sees_tokens():
    rules = (PoolRule(stride=2, queries_only=True), None, None)
    spec = tiny_spec(layers=tuple(tiny_layer(token_rule=rule) for rule in rules), separator_id=3)
    whole = build_ranker(spec)
    cut = whole.changed(
        spec=spec.changed(layers=(spec.layers[0], spec.layers[2])),
        weights={
            name.replace("layers.2.", "layers.1."): tensor
            for name, tensor in whole.weights.items()
            if not name.startswith("layers.1.")
        },
    )
    batch = batch_of(spec, [30, 12])
    with torch.inference_mode(), running(whole.module, SubNetwork(skipped=frozenset({1}))):
        assert torch.equal(whole.module(**batch), cut.module(**batch))


def test_training_may_run_other_rules_or_none():
    spec = tiny_spec(layers=(tiny_layer(token_rule=PoolRule(stride=2)), tiny_layer()), separator_id=3)
    module, batch = build_ranker(spec).module, batch_of(spec, [30, 12])
    plain = build_ranker(spec.changed(layers=(tiny_layer(), tiny_layer()))).module
    wide = build_ranker(spec.changed(layers=(tiny_layer(token_rule=PoolRule(stride=4)), tiny_layer()))).module
    with torch.inference_mode():
        with running(module, SubNetwork(token_rules={0: None})):
            assert torch.equal(module(**batch), plain(**batch))
        with running(module, SubNetwork(token_rules={0: PoolRule(stride=4)})):
            assert torch.equal(module(**batch), wide(**batch))
        assert not torch.allclose(module(**batch), wide(**batch))


def test_gradients_reach_all_members_of_a_window_and_kept_tokens_alone():
    for rule, reaches_all in ((PoolRule(stride=2), True), (KeepShareRule(share=0.5), False)):
        spec = tiny_spec(layers=(tiny_layer(attention=None, ffn=None), tiny_layer()), separator_id=3)
        if not reaches_all:
            spec = spec.changed(layers=(tiny_layer(), tiny_layer()))
        spec = spec.changed(layers=(spec.layers[0].changed(token_rule=rule), spec.layers[1]))
        module = build_ranker(spec).trainable().eval()
        trace = module.trace(**batch_of(spec, [20]))
        (gradient,) = torch.autograd.grad(trace.logits.sum(), trace.states[1])
        touched = gradient.abs().sum(dim=1) > 0
        kept = torch.zeros(20, dtype=torch.bool).index_fill(0, trace.reductions[0].kept, True)
        assert torch.equal(touched, torch.ones_like(kept) if reaches_all else kept)


def test_rules_without_a_separator_are_refused():
    spec = tiny_spec(layers=(tiny_layer(token_rule=PoolRule(stride=2)), tiny_layer()))
    with pytest.raises(RunError, match="separator_id"):
        Encoder(spec)


def test_specs_without_rules_are_written_as_before():
    assert "separator_id" not in tiny_spec().model_dump_json()
    assert PoolRule(stride=2).model_dump() == {"kind": "pool", "stride": 2}
    assert PoolRule(stride=2, queries_only=True).model_dump()["queries_only"]
    assert tiny_spec(separator_id=3).model_dump(mode="json")["separator_id"] == 3
