"""Queries, documents, judgments and first-stage candidates of one split: what every ranker is fed and judged with."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

Pair = tuple[str, str]


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
        candidates: document ids by query id, best first by the first stage.
    """

    name: str
    collection: str
    first_stage: str
    queries: dict[str, str]
    documents: Mapping[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over queries, documents, judgments and candidates, in their order; names and paths do not count."""
        digest = hashlib.sha256()
        for part in (self.queries, self.documents, self.qrels, self.candidates):
            digest.update(json.dumps(list(part.items()), separators=(",", ":")).encode())
        return digest.hexdigest()

    def pairs(self) -> list[Pair]:
        """Return (query id, document id) of every candidate, query by query, best first."""
        return [(query, document) for query, found in self.candidates.items() for document in found]

    def texts(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Return (query text, document text) for pairs of ids."""
        return [(self.queries[query], self.documents[document]) for query, document in pairs]

    def sample_pairs(self, n_pairs: int, seed: int = 0) -> list[Pair]:
        """Return ``n_pairs`` candidate pairs spread over queries and ranks, for calibration; all where there are fewer.

        Queries take turns in a shuffled order. Each query's list is cut into as many stretches as it will be asked for,
        and gives one candidate from each, so that top and tail come in equal parts however few pairs are wanted.
        """
        draw = random.Random(seed)
        queries = [query for query, found in self.candidates.items() if found]
        draw.shuffle(queries)
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

    numbered = list(enumerate(parts))
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
        candidates={
            marked(n, query): [marked(n, key) for key in found]
            for n, part in numbered
            for query, found in part.candidates.items()
        },
    )


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
