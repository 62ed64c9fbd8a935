"""Exact search: the same as sorting all dot products, however vectors are cut into chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.data import dense
from compressor.data.dense import nearest


def by_sorting(queries, vectors, depth):
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return order, np.take_along_axis(scores, order, axis=1)


SIZES = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 50))


@given(SIZES, st.lists(st.integers(1, 39), max_size=4), st.integers(0, 9))
def test_it_is_what_sorting_gives(sizes, cuts, seed):
    n_queries, n_vectors, depth = sizes
    draw = np.random.default_rng(seed)
    # Few small whole numbers: products are exact, and many are equal.
    queries = draw.integers(-2, 3, (n_queries, 3)).astype(np.float32)
    vectors = draw.integers(-1, 2, (n_vectors, 3)).astype(np.float32)
    chunks = np.split(vectors, sorted({cut for cut in cuts if cut < n_vectors}))
    rows, scores = nearest(queries, chunks, depth)
    expected = by_sorting(queries, vectors, depth)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    assert rows.shape == (n_queries, min(depth, n_vectors))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_blocks_of_queries_change_nothing(monkeypatch, at_once):
    draw = np.random.default_rng(1)
    queries, vectors = (draw.standard_normal((n, 8)).astype(np.float32) for n in (7, 50))
    monkeypatch.setattr(dense, "_QUERIES_AT_ONCE", at_once)
    rows, _ = nearest(queries, [vectors[:20], vectors[20:]], 5)
    np.testing.assert_array_equal(rows, by_sorting(queries, vectors, 5)[0])
