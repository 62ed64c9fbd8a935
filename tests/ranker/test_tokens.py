"""What is left of a packed layout when tokens and rows go."""

from __future__ import annotations

import torch

from compressor.ranker.tokens import TokenLayout


def test_rows_that_stay_hold_what_they_held():
    layout = TokenLayout.of(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]))
    rows, index = layout.keep_rows(torch.tensor([2, 0]))
    assert index.tolist() == [6, 7, 8, 0, 1]
    assert rows.positions.tolist() == [0, 1, 2, 0, 1]
    assert rows.mask.tolist() == [[True] * 3, [True, True, False]]
    assert rows.first.tolist() == [0, 3]
    tokens, index = rows.keep_tokens(torch.tensor([True, False, True, True, False]))
    assert index.tolist() == [0, 2, 3]
    assert tokens.positions.tolist() == [0, 2, 0]
    assert tokens.mask.tolist() == [[True, True], [True, False]]


def test_a_long_row_stands_in_a_group_of_its_own():
    lengths = torch.tensor([5, 40, 8, 6, 33, 7])
    layout = TokenLayout.of(torch.arange(40) < lengths[:, None])
    groups = layout.length_groups
    assert [group.n_tokens.tolist() for group, _ in groups] == [[40, 33], [8, 7, 6], [5]]
    index = torch.cat([index for _, index in groups])
    assert index.sort().values.tolist() == list(range(int(lengths.sum())))
    positions = torch.cat([group.positions for group, _ in groups])
    assert torch.equal(positions, layout.positions[index])


def test_rows_of_like_length_are_one_group():
    layout = TokenLayout.of(torch.arange(10) < torch.tensor([[10], [8], [9], [6]]))
    ((whole, index),) = layout.length_groups
    assert whole is layout
    assert index.tolist() == list(range(33))
