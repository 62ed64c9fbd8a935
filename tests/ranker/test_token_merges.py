"""Which document tokens merge, and into which: none that is protected, as many as the row says, the most alike."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from compressor.ranker.spec import MergeRule
from compressor.ranker.token_merges import GRID, Merge, energies, matches, merges_of
from compressor.ranker.token_scores import Reached
from compressor.ranker.tokens import RowParts, TokenLayout
from tests.ranker.cases import SPECS
from tests.ranker.test_token_rules import SEP, documents, in_rows
from tests.strategies import LAW
from tests.tiny import batch_of, build_ranker, module_of

ANY = MergeRule(share=0.5, margin=0.5, keep_query_terms=False)
GRADES = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])  # few, so that there are ties


def reached_by(rows, keys=None):
    """Return what reaches a rule of rows of ids, whose states say where tokens stand, with made-up keys ``[T, d]``."""
    columns = max(map(len, rows))
    ids = torch.tensor([row + [0] * (columns - len(row)) for row in rows])
    layout = TokenLayout.of(torch.tensor([[1] * len(row) + [0] * (columns - len(row)) for row in rows]))
    states = layout.positions[:, None].float()
    found = torch.randn(len(states), 4, generator=torch.Generator().manual_seed(0)) if keys is None else keys
    attention = SimpleNamespace(keys=lambda values: found[:, None])
    layer: Any = SimpleNamespace(spec=SimpleNamespace(norm_placement="post"), attention=attention)
    parts = RowParts.of(layout, ids, SEP, marks_query_terms=True)
    return Reached(layer=layer, read=states, given=states, layout=layout, parts=parts)


def directions(*degrees):
    turned = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([turned.cos(), turned.sin()], dim=1)


@LAW
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=3),
    share=st.sampled_from([0.5, 0.6, 2 / 3, 0.9]),
    data=st.data(),
)
def test_the_most_alike_of_the_next_best_takes_each_of_the_best(rows, share, data):
    n_columns = max(map(len, rows))
    may_merge = torch.tensor([row + [False] * (n_columns - len(row)) for row in rows])
    drawn = data.draw(st.lists(GRADES, min_size=n_columns * (n_columns + 1), max_size=n_columns * (n_columns + 1)))
    similarity = torch.tensor(drawn[n_columns:]).view(n_columns, n_columns).expand(len(rows), -1, -1)
    energy = torch.tensor(drawn[:n_columns]).expand(len(rows), -1)
    rule = MergeRule(share=share, margin=0.5)
    n_gone = merges_of(may_merge, may_merge, rule)
    into, _ = matches(similarity, energy, may_merge, n_gone)
    for b, row in enumerate(rows):
        able = [column for column, is_able in enumerate(row) if is_able]
        n = len(able) - rule.n_left(len(able))
        assert n == n_gone[b] <= len(able) / 2
        ranked = sorted(able, key=lambda column: (-energy[b, column].item(), column))
        wanted = list(range(n_columns))
        for column in ranked[:n]:
            takers = sorted(ranked[n : 2 * n])
            wanted[column] = takers[int(similarity[b, column, takers].argmax())]
        assert into[b].tolist() == wanted


@LAW
@given(
    rows=st.lists(st.lists(st.sampled_from([1, 2, 3, SEP]), min_size=1, max_size=14), min_size=1, max_size=4),
    share=st.sampled_from([0.5, 0.7, 0.999]),
    keeps=st.booleans(),
    data=st.data(),
)
def test_protected_tokens_stay_as_they_are_whatever_the_keys(rows, share, keeps, data):
    n_tokens = sum(map(len, rows))
    extremes = st.sampled_from([-1e20, -1.0, 0.0, 1e-20, 2.0])
    drawn = data.draw(st.lists(extremes, min_size=2 * n_tokens, max_size=2 * n_tokens))
    keys = torch.tensor(drawn).view(n_tokens, 2)
    spec = MergeRule(share=share, margin=0.8, keep_query_terms=keeps)
    reached = reached_by(rows, keys)
    reduction = Merge()(reached, spec)
    states = in_rows(reduction.layout, reduction.states(reached.given)[:, 0])
    starts = reached.layout.first.tolist()
    for b, (left, document) in enumerate(
        zip(in_rows(reduction.layout, reduction.layout.positions), documents(rows), strict=True)
    ):
        row = rows[b]
        asking = row[: row.index(SEP)] if SEP in row else row
        asked = set(asking or row[:1]) if keeps else set()
        fixed = [column for column in range(len(row)) if column not in document or row[column] in asked]
        assert left == sorted(left)
        assert [states[b][left.index(column)] for column in fixed] == fixed
        n_gone = min(len(document) - spec.n_left(len(document)), (len(document) - len(set(document) & set(fixed))) // 2)
        assert len(left) == len(row) - n_gone
        assert reduction.owner is not None
        owners, first = reduction.owner[starts[b] : starts[b] + len(row)], int(reduction.layout.first[b])
        assert owners.unique().tolist() == list(range(first, first + len(left)))
        alone = reached_by([row], keys[starts[b] : starts[b] + len(row)])
        assert Merge()(alone, spec).layout.positions.tolist() == left  # batch mates change nothing


def test_near_copies_merge_where_the_most_alike_one_stood():
    row = [1, 2, SEP, 3, 4, 5, 6, 7, 8, SEP]
    keys = directions(0, 0, 0, 10, 200, 0, 300, 14, 100, 0)
    reached = reached_by([row], keys)
    reduction = Merge()(reached, ANY.changed(share=2 / 3))
    # By energy come 0, 10, 14 and 300 degrees: of the last two, 14 is the more like both of the first two.
    assert reduction.layout.positions.tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    assert reduction.states(reached.given)[:, 0].tolist() == [0, 1, 2, 4, 6, (3 + 5 + 7) / 3, 8, 9]


def test_query_terms_do_not_merge_but_count():
    row = [1, 4, 5, SEP, 4, 4, 6, 6, 5, 7, SEP]
    keys = directions(0, 0, 0, 0, 0, 0, 0, 359, 90, 180, 0)
    kept = Merge()(reached_by([row], keys), ANY.changed(share=0.5, keep_query_terms=True))
    assert kept.layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]  # of 3 of 6 that should go one could
    free = Merge()(reached_by([row], keys), ANY.changed(share=0.5))
    assert len(free.kept) == len(row) - 3


def test_energies_count_other_document_tokens_alone():
    similarity = torch.tensor([[[1.0, 0.5, 0.0], [0.5, 1.0, -1.0], [0.0, -1.0, 1.0]]])
    document = torch.tensor([[True, True, False]])
    found = energies(similarity, document, margin=0.5)
    assert found[0, :2].tolist() == pytest.approx([math.exp(-0.5)] * 2, abs=2**-15)
    far = energies(torch.full((1, 2, 2), -1.0), torch.ones(1, 2, dtype=torch.bool), margin=0.99)
    assert far.eq(0).all()


def test_copies_of_a_token_are_equally_near_in_every_order():
    torch.manual_seed(0)
    keys = F.normalize(torch.randn(40, 24), dim=-1).repeat(5, 1)
    similarity = torch.round(keys @ keys.T * GRID) / GRID
    order = torch.randperm(200)
    document = torch.ones(1, 200, dtype=torch.bool)
    plain = energies(similarity[None], document, margin=0.8)[0]
    assert torch.equal(energies(similarity[order][:, order][None], document, margin=0.8)[0], plain[order])
    assert torch.equal(plain[:40], plain[160:])


def test_a_clear_merge_is_told_from_a_near_tie():
    may_merge, n_gone = torch.ones(1, 4, dtype=torch.bool), torch.tensor([2])
    similarity = torch.eye(4)[None].clone()
    similarity[0, 0, 2:], similarity[0, 1, 2:] = torch.tensor([0.5, 0.2]), torch.tensor([0.1, 0.9])

    def margin(*energy):
        return matches(similarity, torch.tensor([energy]), may_merge, n_gone)[1].item()

    assert margin(1.0, 0.9, 0.1, 0.1) == pytest.approx(0.3)  # the similarities of the first
    assert margin(1.0, 0.8, 0.72, 0.1) == pytest.approx(0.1)  # the energies of those on both sides
    assert matches(similarity, torch.ones(1, 4), may_merge, torch.tensor([0]))[1].item() == math.inf
    tied = similarity.clone()
    tied[0, 1, 2:] = 0.9
    into, found = matches(tied, torch.tensor([[1.0, 0.9, 0.1, 0.1]]), may_merge, n_gone)
    assert into.tolist() == [[2, 2, 2, 3]]  # of equal ones the first
    assert found.item() == 0


def test_gradients_reach_all_that_has_merged_and_keys_get_none():
    spec = SPECS["merged"]
    module = build_ranker(spec).trainable().eval()
    trace = module.trace(**batch_of(spec, [20]))
    (gradient,) = torch.autograd.grad(trace.logits.sum(), trace.states[1])
    assert (gradient.abs().sum(dim=1) > 0).all()
    reduction = trace.reductions[0]
    assert reduction.owner is not None
    sizes = torch.bincount(reduction.owner)
    assert sizes.max() > 1
    means = reduction.states(trace.states[1])
    for new in range(len(sizes)):
        torch.testing.assert_close(means[new], trace.states[1][reduction.owner == new].mean(dim=0))


def test_rows_merge_the_same_alone_and_with_longer_ones():
    spec = SPECS["merged_twice"]
    batch = batch_of(spec, [14, 30, 9])
    with torch.inference_mode():
        together = module_of(spec).trace(**batch).layouts[-1]
        for b, n in enumerate([14, 30, 9]):
            alone = module_of(spec).trace(**{name: one[b : b + 1, :n] for name, one in batch.items()}).layouts[-1]
            assert in_rows(together, together.positions)[b] == alone.positions.tolist()


@pytest.mark.parametrize("wrong", [{"share": 0.4}, {"share": 1}, {"margin": 1.0}, {"margin": -0.1}])
def test_senseless_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ANY.changed(**wrong)


def test_a_window_goes_by_the_id_where_it_stands():
    reached = reached_by([[1, 4, SEP, 4, 5, 6, 4, SEP]])
    assert reached.parts.query_terms is not None
    kept = reached.parts.of_kept(torch.tensor([0, 1, 2, 3, 5, 7]))
    assert kept.query_terms is not None
    assert kept.query_terms.tolist() == [False, False, False, True, False, False]
    unmarked = replace(reached.parts, query_terms=None)
    assert unmarked.of_kept(torch.tensor([0, 1])).query_terms is None
