"""The lines of a file with teacher scores, one after the other, as rows of one shape whatever the format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressor.data.fault_list import FaultList
from compressor.data.lines import read_lines
from compressor.data.score_formats import COLUMNS, KEYS, ScoreFormat, describe, is_header, split_columns


class ScoreRow(NamedTuple):
    """The score of a document for a query; both are ids or both are texts, as the format has it."""

    line: int
    query: str
    document: str
    score: float


class MarginRow(NamedTuple):
    """How much higher one document is scored than another."""

    line: int
    query: str
    positive: str
    negative: str
    margin: float


Row = ScoreRow | MarginRow


class _LineError(Exception):
    """What is wrong with a line: found, and what may stand there."""

    def __init__(self, found: str, allowed: str = "", fix: str = "") -> None:
        super().__init__(found)
        self.found, self.allowed, self.fix = found, allowed, fix


def read_score_rows(path: Path, form: ScoreFormat, faults: FaultList) -> Iterator[Row]:
    """Yield the rows of a file, reading line by line; a line that does not fit becomes a fault."""
    for number, text in read_lines(path, faults):
        try:
            yield from _rows(number, text, form)
        except _LineError as error:
            faults.add(path, number, error.found, error.allowed, error.fix)


def _rows(number: int, text: str, form: ScoreFormat) -> list[Row]:
    if form not in COLUMNS or text.lstrip().startswith("{"):
        return _json_rows(number, _json(text, form), form)
    fields = split_columns(text) if form != "text_rows" else [field.strip() for field in text.split("\t")]
    if number == 1 and is_header(fields):
        return []
    if len(fields) != len(COLUMNS[form]):
        raise _LineError(f"{len(fields)} columns", f"{len(COLUMNS[form])}: {describe(form)}")
    for name, field in zip(COLUMNS[form], fields, strict=True):
        if not field:
            raise _LineError(f"no {name}", f"{len(COLUMNS[form])} columns: {describe(form)}")
    return _COLUMN_READERS[form](number, fields)


def _trec(number: int, fields: Sequence[str]) -> list[Row]:
    return [ScoreRow(number, fields[0], fields[2], _number(fields[4], "score"))]


def _margin_tsv(number: int, fields: Sequence[str]) -> list[Row]:
    high, low = _number(fields[0], "score of the positive"), _number(fields[1], "score of the negative")
    query, positive, negative = fields[2:]
    return [ScoreRow(number, query, positive, high), ScoreRow(number, query, negative, low)]


def _margin_only(number: int, fields: Sequence[Any]) -> list[Row]:
    query, positive, negative = (_id(field) for field in fields[:3])
    if positive == negative:
        raise _LineError(f"a margin between {positive!r} and itself", "two documents")
    return [MarginRow(number, query, positive, negative, _number(fields[3], "margin"))]


def _inranker(number: int, query: Any, document: Any, true: Any, false: Any, read: Callable[[Any], str]) -> list[Row]:
    # A softmax over the two logits has no other state than their difference.
    score = _number(true, "logit of true") - _number(false, "logit of false")
    return [ScoreRow(number, read(query), read(document), score)]


def _scored(number: int, fields: Sequence[Any], read: Callable[[Any], str]) -> list[Row]:
    return [ScoreRow(number, read(fields[0]), read(fields[1]), _number(fields[2], "score"))]


_COLUMN_READERS: Mapping[ScoreFormat, Callable[[int, list[str]], list[Row]]] = {
    "trec": _trec,
    "margin_tsv": _margin_tsv,
    "margin_only": _margin_only,
    "inranker_tsv": lambda number, fields: _inranker(number, fields[2], fields[3], fields[0], fields[1], _id),
    "id_rows": lambda number, fields: _scored(number, fields, _id),
    "text_rows": lambda number, fields: _scored(number, fields, _text),
}


def _json_rows(number: int, record: Any, form: ScoreFormat) -> list[Row]:
    if form == "colbert_json":
        return _colbert(number, record)
    if form not in KEYS or not isinstance(record, dict):
        raise _LineError(f"a JSON {type(record).__name__}", describe(form))
    values = [_value(record, names, form) for names in KEYS[form]]
    if form == "margin_only":
        return _margin_only(number, values)
    if form == "inranker_jsonl":
        query, document, true, false = values
        return _inranker(number, query, document, true, false, _text)
    if form == "pylate":
        return _listed(number, _id(values[0]), values[1], values[2], ("document_ids", "scores"), _id)
    if form == "flag_jsonl":
        query, positives, negatives, positive_scores, negative_scores = values
        rows = _listed(number, _text(query), positives, positive_scores, ("pos", "pos_scores"), _text)
        return rows + _listed(number, _text(query), negatives, negative_scores, ("neg", "neg_scores"), _text)
    return _scored(number, values, _id if form == "lightning_jsonl" else _text)


def _colbert(number: int, record: Any) -> list[Row]:
    allowed = describe("colbert_json")
    if not isinstance(record, list) or len(record) < 2:
        raise _LineError(f"a JSON {type(record).__name__}" if record else "nothing behind the query", allowed)
    query, rows = _id(record[0]), list[Row]()
    for item in record[1:]:
        if not isinstance(item, list) or len(item) != 2:
            raise _LineError(f"{_shown(item)} in the list", allowed)
        rows.append(ScoreRow(number, query, _id(item[0]), _number(item[1], "score")))
    return rows


def _listed(
    number: int, query: str, documents: Any, scores: Any, names: tuple[str, str], read: Callable[[Any], str]
) -> list[Row]:
    documents, scores = _list(documents, names[0]), _list(scores, names[1])
    if len(documents) != len(scores):
        found = f"{len(documents)} {names[0]} and {len(scores)} {names[1]}"
        raise _LineError(found, "as many of the one as of the other")
    return [
        ScoreRow(number, query, read(document), _number(score, names[1]))
        for document, score in zip(documents, scores, strict=True)
    ]


def _list(value: Any, name: str) -> list[Any]:
    """Return a list; one that was written as a string is read as JSON, never evaluated."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            allowed = 'a list, or a list in JSON as a string ("[1, 2]", texts in double quotes)'
            raise _LineError(f"'{name}' is {_shown(value)}", allowed) from None
    if not isinstance(value, list):
        raise _LineError(f"'{name}' is {_shown(value)}", "a list")
    return value


def _json(text: str, form: ScoreFormat) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _LineError(f"broken JSON ({error.msg} at column {error.colno})", describe(form)) from None
    except RecursionError:
        raise _LineError("broken JSON (brackets nested too deep)", describe(form)) from None


def _value(record: dict[str, Any], names: tuple[str, ...], form: ScoreFormat) -> Any:
    for name in names:
        if name in record:
            return record[name]
    found = f"no key {' or '.join(map(repr, names))} among {', '.join(map(repr, record)) or 'no keys'}"
    fix = "FlagEmbedding's scripts/add_reranker_score.py adds the scores" if names[0].endswith("_scores") else ""
    raise _LineError(found, describe(form), fix)


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _LineError(f"the id {_shown(value)}", "text or a whole number")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _LineError(f"the text {_shown(value)}", "text that is not empty")
    return value


def _number(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _LineError(f"the {name} {_shown(value)}", "a finite number")
    return number


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
