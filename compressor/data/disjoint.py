"""Training and test data must not share queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compressor.data.fault_list import FaultList
from compressor.data.normalization import normalized
from compressor.data.ranking_data import RankingData
from compressor.errors import Fault, InputError

_Places = dict[tuple[str, str], tuple[str, str]]  # what two equal queries share, to (data, query id)


def check_disjoint(train: Sequence[RankingData], test: Sequence[RankingData]) -> None:
    """Refuse queries that stand in both training and test data.

    Two queries are the same when they have the same id in splits of one collection, or the same words in any two
    collections (case, spacing and punctuation aside; see `normalized`).

    Raises:
        InputError: names each query, both places, and how to leave it out.
    """
    places = _places(test)
    faults = FaultList()
    for data in train:
        for query, text in data.queries.items():
            if (place := _shared(data, query, text, places)) is not None:
                fix = f"add 'exclude_queries: [{query!r}]' to the training data"
                found = f"a query that also stands in the test data {place[0]} as {place[1]!r}: {text[:80]!r}"
                faults.add(data.name, f"query {query!r}", found, "each query in training or in test data", fix)
    faults.raise_if_any()


def apart_from(data: RankingData, test: Sequence[RankingData]) -> RankingData:
    """Return the data without the queries that also stand in test data, in the sense of `check_disjoint`.

    For queries that were made: whoever has them made can neither know nor change what they read like.

    Raises:
        InputError: none is left.
    """
    places = _places(test)
    kept = [query for query, text in data.queries.items() if _shared(data, query, text, places) is None]
    if not kept:
        fix = "make others: name other kinds, or another collection"
        raise InputError(Fault(source=data.name, found="no query that does not also stand in the test data", fix=fix))
    return data if len(kept) == len(data.queries) else data.only(kept)


def _places(test: Sequence[RankingData]) -> _Places:
    places: _Places = {}
    for data in test:
        for query, text in data.queries.items():
            for key in _keys(data, query, text):
                places.setdefault(key, (data.name, query))
    return places


def _shared(data: RankingData, query: str, text: str, places: _Places) -> tuple[str, str] | None:
    return next((places[key] for key in _keys(data, query, text) if key in places), None)


def _keys(data: RankingData, query: str, text: str) -> Iterator[tuple[str, str]]:
    yield data.collection, query
    yield "", normalized(text)  # no collection is called "", so texts and ids cannot meet
