"""Lines of a ranking input, JSONL or TSV, to rows: a query with one or more documents, or what is wrong with the line.

JSONL, one object a line, in two forms:

- ``{"query_id"?, "query", "documents": [TEXT | {"id"?, "text"}, ...]}``: a query with its candidates;
- ``{"query_id"?, "query", "document_id"?, "document"}``: one pair; the pairs of a query stand on neighboring lines.

TSV, one pair a line without quoting, in one of three layouts: ``query document``; ``query_id query document_id
document``; or any order of these four names in a header line (``query`` and ``document`` must be among them). Again the
pairs of a query stand on neighboring lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compressor.errors import suggest

_LIST_KEYS = ("query_id", "query", "documents")
_PAIR_KEYS = ("query_id", "query", "document_id", "document")


class LineFault(Exception):  # noqa: N818 - no failure of the program: the reader collects them over all lines
    """What is wrong in one line."""

    def __init__(self, found: str, allowed: str = "", fix: str = "") -> None:
        super().__init__(found)
        self.found, self.allowed, self.fix = found, allowed, fix


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line: a query and its documents as (id or None, text); ``is_pair`` where the line held a single pair."""

    line: int
    query_id: str | None
    query: str
    documents: list[tuple[str | None, str]]
    is_pair: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BadLine:
    """A line with a fault."""

    line: int
    fault: LineFault


def read_rows(lines: Iterable[bytes], format: Literal["jsonl", "tsv"] | None = None) -> Iterator[Row | BadLine]:
    """Yield a row, or what is wrong, for each line that is not blank; None decides the format by the first character.

    A faulty header ends the input: without it the columns of the other lines have no meaning.
    """
    columns: Sequence[str] = ()
    is_first = True
    for number, raw in enumerate(lines, start=1):
        try:
            text = _decoded(raw, is_first=number == 1)
            if not text.strip():
                continue
            format = format or ("jsonl" if text.lstrip().startswith("{") else "tsv")
            if is_first and format == "tsv":
                columns = _columns(text)
            was_first, is_first = is_first, False
            if was_first and _is_header(text, format):
                continue
            yield _json_row(text, number) if format == "jsonl" else _tsv_row(text, number, columns)
        except LineFault as fault:
            yield BadLine(line=number, fault=fault)
            if format == "tsv" and not columns:
                return


def _decoded(raw: bytes, *, is_first: bool) -> str:
    try:
        text = raw.decode("utf-8-sig" if is_first else "utf-8")
    except UnicodeDecodeError as error:
        raise LineFault(f"bytes that are not UTF-8 (from byte {error.start})", "UTF-8 text") from None
    return text.rstrip("\r\n")


def _json_row(text: str, line: int) -> Row:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise LineFault(f"broken JSON ({error.msg} at column {error.colno})", "one JSON object a line") from None
    if not isinstance(value, dict):
        raise LineFault(f"{_kind(value)} in JSON", "one JSON object a line")
    keys = _LIST_KEYS if "documents" in value else _PAIR_KEYS
    for key in value:
        if key not in keys:
            raise LineFault(f"the key {key!r}", ", ".join(keys), suggest(key, keys))
    query_id, query = _id(value, "query_id"), _text(value, "query")
    if "documents" not in value:
        pair = (_id(value, "document_id"), _text(value, "document"))
        return Row(line=line, query_id=query_id, query=query, documents=[pair], is_pair=True)
    listed = value["documents"]
    if not isinstance(listed, list) or not listed:
        raise LineFault(f"'documents' as {_kind(listed)}", "a list of at least one text or {id, text}")
    documents = [_document(item, place) for place, item in enumerate(listed)]
    return Row(line=line, query_id=query_id, query=query, documents=documents, is_pair=False)


def _document(item: Any, place: int) -> tuple[str | None, str]:
    where = f"documents[{place}]"
    if isinstance(item, str):
        return None, _checked_text(item, where)
    if not isinstance(item, dict):
        raise LineFault(f"'{where}' as {_kind(item)}", "a text or an object {id, text}")
    for key in item:
        if key not in ("id", "text"):
            raise LineFault(f"the key {key!r} in '{where}'", "id, text", suggest(key, ("id", "text")))
    return _id(item, "id", f"{where}.id"), _text(item, "text", f"{where}.text")


def _id(value: dict[str, Any], key: str, where: str = "") -> str | None:
    found = value.get(key)
    if found is None and key not in value:
        return None
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if isinstance(found, str):
        return _checked_text(found, where or key)
    raise LineFault(f"'{where or key}' as {_kind(found)}", "a text or a whole number")


def _text(value: dict[str, Any], key: str, where: str = "") -> str:
    if key not in value:
        raise LineFault(f"no '{where or key}'", "a text")
    if not isinstance(value[key], str):
        raise LineFault(f"'{where or key}' as {_kind(value[key])}", "a text")
    return _checked_text(value[key], where or key)


def _checked_text(text: str, where: str) -> str:
    if not text.strip():
        raise LineFault(f"'{where}' empty", "a text that is not blank")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LineFault(f"half a surrogate pair in '{where}'", "whole characters") from None
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if value == []:
        return "an empty list"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _is_header(text: str, format: str | None) -> bool:
    return format == "tsv" and {"query", "document"} <= {cell.strip() for cell in text.split("\t")}


def _columns(first: str) -> Sequence[str]:
    cells = [cell.strip() for cell in first.split("\t")]
    if not _is_header(first, "tsv"):
        return ("query", "document") if len(cells) == 2 else _PAIR_KEYS
    for cell in cells:
        if cell not in _PAIR_KEYS:
            raise LineFault(f"the column {cell!r} in the header", ", ".join(_PAIR_KEYS), suggest(cell, _PAIR_KEYS))
        if cells.count(cell) > 1:
            raise LineFault(f"the column {cell!r} twice", "each column once")
    return cells


def _tsv_row(text: str, line: int, columns: Sequence[str]) -> Row:
    cells = text.split("\t")
    if len(cells) != len(columns):
        raise LineFault(
            f"{len(cells)} tab-separated column{'s' if len(cells) != 1 else ''}",
            f"{len(columns)}: {', '.join(columns)}",
            "2 columns are query and document; a header line names any other order",
        )
    value = dict(zip(columns, cells, strict=True))
    pair = (_id(value, "document_id"), _text(value, "document"))
    return Row(line=line, query_id=_id(value, "query_id"), query=_text(value, "query"), documents=[pair], is_pair=True)
