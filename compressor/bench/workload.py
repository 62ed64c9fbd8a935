"""Which queries are timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compressor.errors import Fault, InputError

if TYPE_CHECKING:
    from compressor.data.ranking_data import RankingData


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedQuery:
    """One query with its candidates, texts and all."""

    data: str
    query_id: str
    pairs: tuple[tuple[str, str], ...]


def choose_workload(data: Sequence[RankingData], *, n_queries: int, candidates: int, seed: int) -> list[TimedQuery]:
    """Draw queries evenly from all data sets, so that the mix of lengths is the real one.

    Queries that have all ``candidates`` come first; those with fewer fill up where too few have.

    Raises:
        InputError: no query has a candidate.
    """
    rng = np.random.default_rng(seed)
    shuffled = []
    for one in data:
        queries = [query for query in one.queries if one.candidates.get(query)]
        order = [queries[i] for i in rng.permutation(len(queries))]
        order.sort(key=lambda query, one=one: len(one.candidates[query]) < candidates)  # type: ignore[misc]
        shuffled.append([(one, query) for query in order])
    turns = [pair for rank in range(max(map(len, shuffled), default=0)) for pair in _rank(shuffled, rank)]
    if not turns:
        names = ", ".join(one.name for one in data) or "no data"
        raise InputError(Fault(source=names, found="no query with candidates", fix="give a run file or use bm25:100"))
    return [
        TimedQuery(data=one.name, query_id=query, pairs=query_pairs(one, query, candidates))
        for one, query in turns[:n_queries]
    ]


def query_pairs(data: RankingData, query: str, candidates: int) -> tuple[tuple[str, str], ...]:
    """Return (query text, document text) of a query's first candidates."""
    ids = [(query, document) for document in data.candidates[query][:candidates]]
    return tuple(data.texts(ids))


def _rank(columns: Sequence[list[tuple[RankingData, str]]], rank: int) -> list[tuple[RankingData, str]]:
    return [column[rank] for column in columns if rank < len(column)]
