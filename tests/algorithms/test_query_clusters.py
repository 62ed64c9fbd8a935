"""Kinds of queries, and the units that one kind alone needs."""

from __future__ import annotations

import pytest
import torch

from compressor.algorithms.query_clusters import means_by_cluster


def planted(n_queries: int, rare: int) -> torch.Tensor:
    """Return what queries need of four units: all need the first, most the second, the rare kind alone the last."""
    needs = torch.tensor([4.0, 2.0, 1.0, 0.0]).repeat(n_queries, 1)
    needs[:rare] = torch.tensor([4.0, 0.0, 0.5, 2.5])
    noise = torch.rand(needs.shape, generator=torch.Generator().manual_seed(0))
    scale = torch.logspace(-3, 3, n_queries)[:, None]  # some queries' scores answer far more than others'
    return scale * (needs + 0.05 * noise)


def test_what_a_rare_kind_needs_is_seen_in_its_cluster():
    needs = planted(n_queries=64, rare=10)
    worst = means_by_cluster(needs).max(dim=0).values
    assert worst[3] == pytest.approx(2.5 / 7, abs=0.02)
    assert worst[3] > worst[2]
    assert needs.sum(dim=0)[3] < needs.sum(dim=0)[2]


def test_few_queries_are_one_cluster():
    means = means_by_cluster(planted(n_queries=15, rare=5))
    assert means.shape == (1, 4)
    assert means.sum() == pytest.approx(1)


def test_queries_that_need_nothing_do_no_harm():
    needs = planted(n_queries=64, rare=10)
    needs[20:30] = 0
    assert means_by_cluster(needs).isfinite().all()


def test_equal_queries_are_one_cluster():
    assert means_by_cluster(torch.ones(40, 3)).tolist() == [[pytest.approx(1 / 3)] * 3]
