"""Teacher scores that something else has made: read from a file, for the pairs that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.fault_list import FaultList
from compressor.data.margins import Margins
from compressor.data.ranking_data import Pair, RankingData
from compressor.data.score_formats import BY_TEXT, ScoreFormat, detect_format, refuse_binary
from compressor.data.score_rows import MarginRow, read_score_rows
from compressor.data.teacher_scores import pair_hash
from compressor.errors import Fault, InputError

# A teacher that scored a pair twice, in other batches or in half precision, does not give the same digits.
_REPEATED = 1e-2
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """What a file says about pairs.

    Attributes:
        values: float32 ``[n]`` in the order of the pairs; NaN where the file has no score.
        format: the file's format.
        offsets_known: False for a file of margins: the scores of each query then have mean 0, and those of two queries
            cannot be compared.
        notes: rows read, rows of other pairs and more (JSON).
    """

    values: np.ndarray
    format: ScoreFormat
    offsets_known: bool
    notes: dict[str, Any]

    @property
    def n_missing(self) -> int:
        """Number of pairs without a score."""
        return int(np.isnan(self.values).sum())


def read_scores(path: Path, data: RankingData, pairs: Sequence[Pair], form: ScoreFormat | None = None) -> FileScores:
    """Read the scores of pairs from a file, line by line; memory is taken for the pairs asked for, not for the file.

    Formats that go by text (FlagEmbedding, InRanker's JSON lines, rows of texts) match the texts of the data, whatever
    their white space; the others match its ids. Of a pair that is scored several times alike, the first score counts.

    Args:
        path: the file.
        data: whose queries and documents the pairs are.
        pairs: (query id, document id).
        form: the format; None takes what the file looks like.

    Raises:
        InputError: every fault of the file, with its line; an unknown format; no score of any of the pairs.
    """
    if form is None:
        form = detect_format(path)
    refuse_binary(path)
    places = dict[Pair, int]()
    inverse = [places.setdefault(pair, len(places)) for pair in pairs]
    wanted: _Wanted = _WantedTexts(data, places) if form in BY_TEXT else _WantedIds(places)
    faults = FaultList()
    values = _Values(len(places))
    margins = Margins()
    others = _Others()
    n_rows = 0
    for row in read_score_rows(path, form, faults):
        n_rows += 1
        if isinstance(row, MarginRow):
            if wanted.has_query(row.query):
                margins.add(row.query, row.positive, row.negative, row.margin)
            else:
                others.add(row.query, row.positive)
            continue
        found = wanted.find(row.query, row.document)
        for place in found:
            values.set(place, row.score, row.line, path, faults)
        if not found:
            others.add(row.query, row.document)
    if not n_rows and not faults.count:
        faults.add(path, "", "no scores", "one line or more")
    faults.raise_if_any()
    notes: dict[str, Any] = {"rows": n_rows, "rows_of_other_pairs": others.count}
    if len(margins):
        solved, more = margins.solve(places)
        values.scores, notes = solved, {**notes, **more}
    if np.isnan(values.scores).all():
        raise _nothing_known(path, form, data, pairs, others)
    return FileScores(
        values=values.scores[inverse].astype(np.float32), format=form, offsets_known=form != "margin_only", notes=notes
    )


class _WantedIds:
    """Places of pairs by ids."""

    def __init__(self, places: dict[Pair, int]) -> None:
        self._places: dict[str, dict[str, tuple[int, ...]]] = {}
        for (query, document), place in places.items():
            self._places.setdefault(query, {})[document] = (place,)

    def has_query(self, query: str) -> bool:
        return query in self._places

    def find(self, query: str, document: str) -> Sequence[int]:
        return self._places.get(query, {}).get(document, ())


class _WantedTexts:
    """Places of pairs by texts; several ids may have the same text."""

    def __init__(self, data: RankingData, places: dict[Pair, int]) -> None:
        self._places: dict[bytes, list[int]] = {}
        queries = {query: _spaced(data.queries[query]) for query in {query for query, _ in places}}
        for (query, document), place in places.items():
            key = pair_hash(queries[query], _spaced(data.documents[document]))
            self._places.setdefault(key, []).append(place)

    def has_query(self, query: str) -> bool:
        raise NotImplementedError("margins go by id")

    def find(self, query: str, document: str) -> Sequence[int]:
        return self._places.get(pair_hash(_spaced(query), _spaced(document)), ())


_Wanted = _WantedIds | _WantedTexts


class _Values:
    """One score a pair, and the line that it came from."""

    def __init__(self, n_pairs: int) -> None:
        self.scores = np.full(n_pairs, np.nan)
        self._lines = np.zeros(n_pairs, dtype=np.int64)

    def set(self, place: int, score: float, line: int, path: Path, faults: FaultList) -> None:
        if not self._lines[place]:
            self.scores[place], self._lines[place] = score, line
            return
        before = self.scores[place]
        if abs(score - before) > _REPEATED * max(1.0, abs(before)):
            first = int(self._lines[place])
            faults.add(path, line, f"the score {score:g} of a pair", fix=f"line {first} says {before:g}")


@dataclass
class _Others:
    """Rows of pairs that nobody asked for: a count, and the first few."""

    count: int = 0
    queries: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)

    def add(self, query: str, document: str) -> None:
        self.count += 1
        for shown, new in ((self.queries, query), (self.documents, document)):
            if len(shown) < _EXAMPLES and new not in shown:
                shown.append(new)


def _nothing_known(
    path: Path, form: ScoreFormat, data: RankingData, pairs: Sequence[Pair], others: _Others
) -> InputError:
    queries = list(dict.fromkeys(query for query, _ in pairs))[:_EXAMPLES]
    documents = list(dict.fromkeys(document for _, document in pairs))[:_EXAMPLES]
    if form in BY_TEXT:
        queries = [data.queries[query] for query in queries]
        documents = [data.documents[document] for document in documents]
    kind = "texts" if form in BY_TEXT else "ids"
    found = f"no score of any of the {len(pairs)} pairs ({others.count} rows of other pairs): "
    found += f"queries {_shown(others.queries)}, documents {_shown(others.documents)}"
    allowed = f"{kind} of {data.name}: queries {_shown(queries)}, documents {_shown(documents)}"
    fix = f"the file belongs to another collection, or its {kind} were changed"
    return InputError(Fault(source=path, found=found, allowed=allowed, fix=fix))


def _shown(texts: Sequence[str]) -> str:
    shown = dict.fromkeys(text if len(text) <= 40 else text[:39] + "…" for text in texts)
    return ", ".join(map(repr, shown)) or "none"


def _spaced(text: str) -> str:
    return " ".join(text.split())
