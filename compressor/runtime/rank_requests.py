"""Ranking requests from JSONL or TSV, one query at a time.

A line holds a query with its candidates, or one pair; then the pairs of a query stand on neighboring lines
(`request_lines` has the forms). The order of the documents is the first-stage order. Without ids, a query is called
after the number of its (first) line, and a document after its place in the query's list, counted from 0 as in
``OnnxRanker.rank``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from compressor.errors import Fault, InputError
from compressor.runtime.request_lines import BadLine, LineFault, Row, read_rows

MAX_SHOWN_FAULTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRequest:
    """A query and its candidates in first-stage order."""

    query_id: str
    query: str
    document_ids: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)


def read_requests(
    lines: Iterable[bytes],
    source: str,
    *,
    format: Literal["jsonl", "tsv"] | None = None,
    ids_may_have_spaces: bool = True,
) -> Iterator[RankRequest]:
    """Yield each request as soon as it is complete. Blank lines are skipped.

    Args:
        lines: UTF-8 lines.
        source: name of the input, for messages.
        format: None decides by the first character: ``{`` is JSONL, anything else TSV.
        ids_may_have_spaces: False refuses ids that would break a TREC run.

    Raises:
        InputError: at the end of the input, with the first faults of all lines; nothing is yielded after the first.
    """
    faults: list[Fault] = []
    grouping = _Grouping(ids_may_have_spaces)
    for parsed in read_rows(lines, format):
        try:
            if isinstance(parsed, BadLine):
                raise parsed.fault
            complete = grouping.add(parsed)
        except LineFault as fault:
            place = f"line {parsed.line}"
            faults.append(Fault(source=source, where=place, found=fault.found, allowed=fault.allowed, fix=fault.fix))
            continue
        if not faults:
            yield from complete
    if len(faults) > MAX_SHOWN_FAULTS:
        more = Fault(source=source, found=f"{len(faults) - MAX_SHOWN_FAULTS} more faulty lines")
        raise InputError([*faults[:MAX_SHOWN_FAULTS], more])
    if not faults and grouping.is_empty:
        faults.append(Fault(source=source, found="no ranking requests", allowed="JSONL or TSV lines"))
    if faults:
        raise InputError(faults)
    yield from grouping.finish()


class _Grouping:
    """Joins the pairs of neighboring lines to requests, and remembers every query that was there."""

    def __init__(self, ids_may_have_spaces: bool) -> None:
        self._ids_may_have_spaces = ids_may_have_spaces
        self._lines_of_ids: dict[str, int] = {}
        self._lines_of_texts: dict[str, int] = {}  # only of pairs without a query id
        self._current: tuple[Row, RankRequest] | None = None
        self._current_ids: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """No query was there yet."""
        return not self._lines_of_ids

    def add(self, row: Row) -> list[RankRequest]:
        """Take a row; return the requests that are complete with it."""
        if self._current is not None and _is_same_query(self._current[0], row):
            self._append(row, self._current[1])
            return []
        complete = self.finish()
        request = RankRequest(query_id=self._new_query_id(row), query=row.query)
        self._current, self._current_ids = (row, request), set()
        self._append(row, request)
        return complete if row.is_pair else complete + self.finish()  # a list needs no next line to be complete

    def finish(self) -> list[RankRequest]:
        """Return the request that the end of the input completes, if one is open."""
        ended, self._current = self._current, None
        return [] if ended is None else [ended[1]]

    def _new_query_id(self, row: Row) -> str:
        is_known_by_text = row.is_pair and row.query_id is None
        query_id = str(row.line) if row.query_id is None else row.query_id
        seen = self._lines_of_texts.get(row.query) if is_known_by_text else None
        seen = self._lines_of_ids.get(query_id) if seen is None else seen
        if seen is not None:
            shown = f"the query {row.query!r}" if is_known_by_text else f"the query id {query_id!r}"
            fix = "sort the input by query" if row.is_pair else "give each query an id of its own"
            raise LineFault(f"{shown} again, after line {seen}", "each query in one place", fix)
        self._check_id(query_id, "query")
        self._lines_of_ids[query_id] = row.line
        if is_known_by_text:
            self._lines_of_texts[row.query] = row.line
        return query_id

    def _append(self, row: Row, request: RankRequest) -> None:
        for given_id, text in row.documents:
            document_id = str(len(request.documents)) if given_id is None else given_id
            self._check_id(document_id, "document")
            if document_id in self._current_ids:
                found = f"the document id {document_id!r} twice for query {request.query_id!r}"
                raise LineFault(found, "each document once a query")
            self._current_ids.add(document_id)
            request.document_ids.append(document_id)
            request.documents.append(text)

    def _check_id(self, value: str, what: str) -> None:
        if not self._ids_may_have_spaces and any(character.isspace() for character in value):
            raise LineFault(f"the {what} id {value!r}", "ids without white space in a TREC run", "write JSONL instead")


def _is_same_query(first: Row, row: Row) -> bool:
    if not (first.is_pair and row.is_pair) or row.query_id != first.query_id:
        return False
    if row.query_id is not None and row.query != first.query:
        found = f"another text for query {row.query_id!r} than on line {first.line}"
        raise LineFault(found, "one text per query id")
    return row.query == first.query
