"""Kinds of queries, told apart by what of a ranker they need."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

QUERIES_OF_A_CLUSTER = 8  # with fewer, a mean says more about single queries than about their kind
MOST_CLUSTERS = 8
_SEED = 0


def means_by_cluster(needs: Tensor) -> Tensor:
    """Cluster queries by k-means and return what each cluster needs on average, ``[clusters, units]``.

    Clusters number one for every 8 queries, at most 8; one that comes out empty is left out.

    Args:
        needs: ``[queries, units]``, not negative: how much each query needs each unit. Each query counts alike, as its
            row is divided by its sum.
    """
    shares = needs.double() / needs.double().sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    distinct = len(shares.round(decimals=9).unique(dim=0))
    n_clusters = max(1, min(MOST_CLUSTERS, len(shares) // QUERIES_OF_A_CLUSTER, distinct))
    # The distance between roots of shares is Hellinger's: one unit that all need does not drown the others.
    labels = _labels(shares.sqrt().numpy(), n_clusters)
    return torch.stack([shares[labels == label].mean(dim=0) for label in labels.unique()]).float()


def _labels(points: np.ndarray, n_clusters: int) -> Tensor:
    from scipy.cluster.vq import kmeans2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of clusters that come out empty
        _, labels = kmeans2(points, n_clusters, minit="++", seed=np.random.default_rng(_SEED))
    return torch.from_numpy(labels)
