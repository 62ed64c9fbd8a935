"""Training and test data must not share queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compressor.data.fault_list import FaultList
from compressor.data.normalization import normalized
from compressor.data.ranking_data import RankingData


def check_disjoint(train: Sequence[RankingData], test: Sequence[RankingData]) -> None:
    """Refuse queries that stand in both training and test data.

    Two queries are the same when they have the same id in splits of one collection, or the same words in any two
    collections (case, spacing and punctuation aside; see `normalized`).

    Raises:
        InputError: names each query, both places, and how to leave it out.
    """
    places: dict[tuple[str, str], tuple[str, str]] = {}
    for data in test:
        for query, text in data.queries.items():
            for key in _keys(data, query, text):
                places.setdefault(key, (data.name, query))
    faults = FaultList()
    for data in train:
        for query, text in data.queries.items():
            place = next((places[key] for key in _keys(data, query, text) if key in places), None)
            if place is not None:
                fix = f"add 'exclude_queries: [{query!r}]' to the training data"
                found = f"a query that also stands in the test data {place[0]} as {place[1]!r}: {text[:80]!r}"
                faults.add(data.name, f"query {query!r}", found, "each query in training or in test data", fix)
    faults.raise_if_any()


def _keys(data: RankingData, query: str, text: str) -> Iterator[tuple[str, str]]:
    yield data.collection, query
    yield "", normalized(text)  # no collection is called "", so texts and ids cannot meet
