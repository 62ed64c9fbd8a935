"""From margins, differences between two documents' scores, back to scores: up to one offset a query."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressor.data.ranking_data import Pair


class Margins:
    """Margins of queries, gathered row by row; 24 bytes a row."""

    def __init__(self) -> None:
        self._queries: dict[str, int] = {}
        self._documents: list[dict[str, int]] = []  # of each query: its own numbers of its documents
        self._query, self._positive, self._negative = array("i"), array("i"), array("i")
        self._margin = array("d")

    def __len__(self) -> int:
        return len(self._margin)

    def add(self, query: str, positive: str, negative: str, margin: float) -> None:
        """Note that ``positive`` is scored higher than ``negative`` by ``margin``."""
        number = self._queries.setdefault(query, len(self._queries))
        if number == len(self._documents):
            self._documents.append({})
        numbers = self._documents[number]
        self._query.append(number)
        self._positive.append(numbers.setdefault(positive, len(numbers)))
        self._negative.append(numbers.setdefault(negative, len(numbers)))
        self._margin.append(margin)

    def solve(self, places: Mapping[Pair, int]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the scores whose differences fit the margins best in the mean of squares.

        Documents that no chain of margins links cannot be compared: of each query, those of the chain with most wanted
        documents get scores, with mean 0; the others stay without.

        Args:
            places: index of each wanted pair; every index from 0 occurs once.

        Returns:
            float64 ``[n]``, NaN where there is no score; and how many pairs stayed without for want of a link, and by
            how much a margin differs from the difference of the scores at most.
        """
        scores = np.full(len(places), np.nan)
        wanted: dict[str, list[tuple[str, int]]] = {}
        for (query, document), place in places.items():
            wanted.setdefault(query, []).append((document, place))
        numbers = np.frombuffer(self._query, dtype=np.int32)
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(len(self._queries) + 1))
        unlinked, worst = 0, 0.0
        for query, number in self._queries.items():
            rows = order[ends[number] : ends[number + 1]]
            own = self._documents[number]
            known = [(own[document], place) for document, place in wanted.get(query, ()) if document in own]
            if not known:
                continue
            nodes, at = np.array([node for node, _ in known]), np.array([place for _, place in known])
            potentials, gap = self._potentials(rows, len(own), nodes)
            found = potentials[nodes]
            scores[at] = found - np.nanmean(found)
            unlinked += int(np.isnan(found).sum())
            worst = max(worst, gap)
        return scores, {"unlinked": unlinked, "largest_disagreement_of_margins": round(worst, 6)}

    def _potentials(self, rows: np.ndarray, n_nodes: int, wanted: np.ndarray) -> tuple[np.ndarray, float]:
        """Return a score for each document of the chain that holds most of ``wanted``, NaN for others; and the gap."""
        positive = np.frombuffer(self._positive, dtype=np.int32)[rows]
        negative = np.frombuffer(self._negative, dtype=np.int32)[rows]
        margin = np.frombuffer(self._margin, dtype=np.float64)[rows]
        roots = _roots(positive, negative, n_nodes)
        chosen = roots == np.bincount(roots[wanted]).argmax()
        inside = chosen[positive]
        positive, negative, margin = positive[inside], negative[inside], margin[inside]
        # The normal equations: the graph's Laplacian, with the first document of the chain held at 0.
        laplacian, sums = np.zeros((n_nodes, n_nodes)), np.zeros(n_nodes)
        for one, other, sign in ((positive, negative, 1.0), (negative, positive, -1.0)):
            np.add.at(laplacian, (one, one), 1.0)
            np.add.at(laplacian, (one, other), -1.0)
            np.add.at(sums, one, sign * margin)
        free = np.flatnonzero(chosen)[1:]
        potentials = np.where(chosen, 0.0, np.nan)
        potentials[free] = np.linalg.solve(laplacian[np.ix_(free, free)], sums[free])
        return potentials, float(np.abs(potentials[positive] - potentials[negative] - margin).max())


def _roots(positive: np.ndarray, negative: np.ndarray, n_nodes: int) -> np.ndarray:
    """Return for each document one document that stands for all that are linked to it."""
    roots = list(range(n_nodes))

    def root(node: int) -> int:
        while roots[node] != node:
            roots[node] = node = roots[roots[node]]
        return node

    for one, other in zip(positive.tolist(), negative.tolist(), strict=True):
        roots[root(one)] = root(other)
    return np.array([root(node) for node in range(n_nodes)])
