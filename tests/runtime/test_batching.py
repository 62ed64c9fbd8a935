from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import InputError
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.tokenizer import Encoded


@given(st.lists(st.integers(0, 512), max_size=200), st.integers(1, 2048))
def test_every_row_once_in_batches_of_like_length_under_the_budget(lengths: list[int], budget_tokens: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = token_budget_batches(array, budget_tokens)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    in_order = [int(array[row]) for rows in batches for row in rows]
    assert in_order == sorted(lengths, reverse=True)
    for rows in batches:
        assert len(rows) == 1 or len(rows) * array[rows].max() <= budget_tokens


def test_batches_are_as_full_as_the_budget_allows() -> None:
    batches = token_budget_batches(np.array([2, 5, 5, 2, 1, 2]), 10)
    assert [rows.tolist() for rows in batches] == [[1, 2], [0, 3, 5, 4]]
    assert [len(rows) for rows in token_budget_batches(np.full(10_000, 128), 1024)] == [8] * 1250


def test_no_rows_no_batches() -> None:
    assert token_budget_batches(np.array([], dtype=np.int64), 10) == []


@pytest.mark.parametrize("budget_tokens", [0, -5])
def test_a_budget_below_one_is_refused(budget_tokens: int) -> None:
    with pytest.raises(InputError) as caught:
        token_budget_batches(np.array([3]), budget_tokens)
    assert str(caught.value) == f"batch_tokens: found {budget_tokens}; allowed: a number of tokens from 1"


def test_padded_holds_the_chosen_rows_and_nothing_longer() -> None:
    ids = [np.array([7, 8]), np.array([9]), np.array([5, 5, 5, 5])]
    types = [np.array([0, 1]), np.array([1]), np.array([1, 1, 1, 1])]
    arrays = padded(Encoded(input_ids=ids, type_ids=types), np.array([1, 0]), pad_id=3)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": [[9, 3], [7, 8]],
        "attention_mask": [[1, 0], [1, 1]],
        "token_type_ids": [[1, 0], [0, 1]],
    }
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}
