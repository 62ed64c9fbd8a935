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
