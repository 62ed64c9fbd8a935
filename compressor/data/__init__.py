"""Ranking data: collections, first-stage candidates, and the checks that keep training and test apart. Torch-free."""

from compressor.data.collections import check_reference, load_data
from compressor.data.disjoint import check_disjoint
from compressor.data.ranking_data import RankingData

__all__ = ["RankingData", "check_disjoint", "check_reference", "load_data"]
