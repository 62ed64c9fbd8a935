"""Batches of rows of like length under a token budget, and their padded arrays."""

from __future__ import annotations

import numpy as np

from compressor.errors import Fault, InputError
from compressor.runtime.tokenizer import Encoded


def token_budget_batches(lengths: np.ndarray, budget_tokens: int) -> list[np.ndarray]:
    """Cut rows, sorted by length, into batches of at most ``budget_tokens`` tokens, padding included.

    The longest rows come first: the runtime's memory then grows once. Rows of equal length keep their order. A row
    that is longer than the budget is a batch of its own.

    Args:
        lengths: tokens per row, int64 ``[n]``.
        budget_tokens: most rows × longest row of a batch.

    Returns:
        Row indices per batch, int64 ``[B]`` each; every row is in exactly one batch.

    Raises:
        InputError: the budget is below 1.
    """
    if budget_tokens < 1:
        raise InputError(Fault(source="batch_tokens", found=str(budget_tokens), allowed="a number of tokens from 1"))
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, budget_tokens // longest)
        batches.append(order[start:end])
        start = end
    return batches


def padded(encoded: Encoded, rows: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
    """Return ``input_ids``, ``attention_mask`` and ``token_type_ids`` of some rows, padded on the right.

    Returns:
        int64 ``[B, S]`` each, B = ``len(rows)``, S = tokens of the longest of them.
    """
    longest = max((len(encoded.input_ids[row]) for row in rows), default=0)
    shape = (len(rows), max(1, longest))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for place, row in enumerate(rows):
        n_tokens = len(encoded.input_ids[row])
        input_ids[place, :n_tokens] = encoded.input_ids[row]
        attention_mask[place, :n_tokens] = 1
        token_type_ids[place, :n_tokens] = encoded.type_ids[row]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
