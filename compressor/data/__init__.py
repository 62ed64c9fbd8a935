"""Ranking data: collections, first-stage candidates, and the checks that keep training and test apart. Torch-free."""

from compressor.data.collections import check_reference, load_data, read_collection
from compressor.data.disjoint import apart_from, check_disjoint
from compressor.data.ranking_data import RankingData

__all__ = ["RankingData", "apart_from", "check_disjoint", "check_reference", "load_data", "read_collection"]
