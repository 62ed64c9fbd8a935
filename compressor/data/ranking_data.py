"""Queries, documents, judgments and first-stage candidates of one split: what every ranker is fed and judged with."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise, zip_longest
from typing import TypeVar

import numpy as np

Pair = tuple[str, str]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RankingData:
    """One split, ready to be ranked.

    Args:
        name: ``collection/split``, for reports.
        collection: equal for the splits of one collection, different for others: a resolved path, or a name.
        first_stage: where the candidates come from and how deep, for reports: a figure means nothing without it.
        queries: text by id; only queries of this split, in a fixed order.
        documents: text by id: title, space, text, stripped.
        qrels: grade by query id and document id; empty for unlabelled data.
        candidates: document ids by query id, best first by the first stage; of several first stages the union, as
            `in_turn` makes it.
        runs: what each first stage gives, by its name and then like ``candidates``; a query of a collection without
            that first stage is missing. Empty where first stages have no names.
    """

    name: str
    collection: str
    first_stage: str
    queries: dict[str, str]
    documents: Mapping[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]]
    runs: Mapping[str, dict[str, list[str]]] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over queries, documents, judgments and candidates, in their order; names and paths do not count.

        Of several first stages each counts by itself, with its name, by which training lists ask for it.
        """
        digest = hashlib.sha256()
        several = [{name: list(run.items())} for name, run in self.runs.items()] if len(self.runs) > 1 else []
        for part in (self.queries, self.documents, self.qrels, self.candidates, *several):
            digest.update(json.dumps(list(part.items()), separators=(",", ":")).encode())
        return digest.hexdigest()

    def pairs(self) -> list[Pair]:
        """Return (query id, document id) of every candidate, query by query, best first."""
        return [(query, document) for query, found in self.candidates.items() for document in found]

    def texts(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Return (query text, document text) for pairs of ids."""
        return [(self.queries[query], self.documents[document]) for query, document in pairs]

    def only(self, queries: Iterable[str]) -> RankingData:
        """Return the data of some queries, in the order given, with all documents."""
        kept = list(queries)
        return replace(
            self,
            queries={query: self.queries[query] for query in kept},
            qrels=_of(kept, self.qrels),
            candidates=_of(kept, self.candidates),
            runs={name: _of(kept, run) for name, run in self.runs.items()},
        )

    def sample_pairs(self, n_pairs: int, seed: int = 0, per_query: int = 1) -> list[Pair]:
        """Return ``n_pairs`` candidate pairs spread over queries and ranks, for calibration; all where there are fewer.

        Queries take turns in a shuffled order. Each query's list is cut into as many stretches as it will be asked for,
        and gives one candidate from each, so that top and tail come in equal parts however few pairs are wanted.

        Args:
            n_pairs: how many.
            seed: for the order of queries and the choice within stretches.
            per_query: so many of a query at least, where it has them and others are not all used up: an order within
                lists can be measured only where lists are longer than one.
        """
        draw = random.Random(seed)
        queries = [query for query, found in self.candidates.items() if found]
        draw.shuffle(queries)
        if per_query > 1:
            lengths = np.array([len(self.candidates[query]) for query in queries])
            n_queries = max(1, int(np.searchsorted(np.minimum(lengths, per_query).cumsum(), n_pairs, side="right")))
            n_queries += int(lengths[:n_queries].sum() < n_pairs)  # lists too short to fill the sample: one more
            queries = queries[:n_queries]
        shares = _shares([len(self.candidates[query]) for query in queries], n_pairs)
        return [
            (query, self.candidates[query][rank])
            for query, share in zip(queries, shares, strict=True)
            for rank in _spread(len(self.candidates[query]), share, draw)
        ]


def together(parts: Sequence[RankingData]) -> RankingData:
    """Return several data sets as one; one alone is returned as it is.

    Ids are marked with the number of their part, ``0:q7``, since collections count from 1 alike.

    Args:
        parts: one or more.
    """
    if len(parts) == 1:
        return parts[0]

    def marked(number: int, key: str) -> str:
        return f"{number}:{key}"

    def ranked(number: int, run: Mapping[str, list[str]]) -> dict[str, list[str]]:
        return {marked(number, query): [marked(number, key) for key in found] for query, found in run.items()}

    numbered = list(enumerate(parts))
    names = dict.fromkeys(name for part in parts for name in part.runs)
    return RankingData(
        name=" + ".join(part.name for part in parts),
        collection=" + ".join(part.collection for part in parts),
        first_stage=" + ".join(dict.fromkeys(part.first_stage for part in parts)),
        queries={marked(n, query): text for n, part in numbered for query, text in part.queries.items()},
        documents={marked(n, key): text for n, part in numbered for key, text in part.documents.items()},
        qrels={
            marked(n, query): {marked(n, key): grade for key, grade in grades.items()}
            for n, part in numbered
            for query, grades in part.qrels.items()
        },
        candidates={query: found for n, part in numbered for query, found in ranked(n, part.candidates).items()},
        runs={
            name: {query: found for n, part in numbered for query, found in ranked(n, part.runs.get(name, {})).items()}
            for name in names
        },
    )


def in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the union of ranked lists: the best of each, then the second of each, and so on, without repeats."""
    return list(dict.fromkeys(one for rank in zip_longest(*lists) for one in rank if one is not None))


def _of(queries: Iterable[str], values: Mapping[str, T]) -> dict[str, T]:
    return {query: values[query] for query in queries if query in values}


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Deal ``total`` out one by one, in turns, to places that hold ``sizes``."""
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left > 0:
        open_places = [place for place, size in enumerate(sizes) if shares[place] < size][:left]
        for place in open_places:
            shares[place] += 1
        left -= len(open_places)
    return shares


def _spread(size: int, share: int, draw: random.Random) -> list[int]:
    """Draw one of ``range(size)`` from each of ``share`` equal stretches."""
    edges = [size * step // share for step in range(share + 1)] if share else [0]
    return [draw.randrange(low, high) for low, high in pairwise(edges)]
