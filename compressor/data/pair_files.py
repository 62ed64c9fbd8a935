"""TSV and JSONL files of (query, document[, label])."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from compressor.data.fault_list import FaultList
from compressor.data.lines import read_lines, read_records, text_of
from compressor.data.ranking_data import RankingData

_COLUMNS = ("query", "document", "label")
_Row = tuple[int, str, str, str | int | None]  # line, query, document, label as it stands


def read_pairs(path: Path) -> RankingData:
    """Read pairs: TSV (``query document[ label]`` may stand first as a header), or JSONL with these words as keys.

    Labels are whole numbers; either every pair has one or none has. The candidates of a query are its pairs in the
    order of the file. Ids are made from the texts, so that equal texts have equal ids in every file.

    Raises:
        InputError: every fault, with its line.
    """
    faults = FaultList()
    rows = _jsonl_rows(path, faults) if path.suffix in (".jsonl", ".ndjson") else _tsv_rows(path, faults)
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    candidates: dict[str, list[str]] = {}
    qrels: dict[str, dict[str, int]] = {}
    lines: dict[tuple[str, str], int] = {}
    labelled: bool | None = None
    for number, query, document, label in rows:
        labelled = label is not None if labelled is None else labelled
        if not query or not document:
            faults.add(path, number, f"an empty {'document' if query else 'query'}", fix="remove the line")
            continue
        if (label is not None) != labelled:
            found = "no label" if labelled else f"the label {label!r}"
            faults.add(path, number, found, "labels on all pairs or on none", "the pairs above are the other way")
            continue
        grade = _grade(label)
        if labelled and grade is None:
            faults.add(path, number, f"the label {label!r}", "a whole number")
            continue
        key = _id("q", query), _id("d", document)
        if (before := lines.setdefault(key, number)) != number:
            faults.add(path, number, f"a pair again: {query[:60]!r}", fix=f"it stands in line {before} already")
            continue
        queries[key[0]], documents[key[1]] = query, document
        candidates.setdefault(key[0], []).append(key[1])
        if grade is not None:
            qrels.setdefault(key[0], {})[key[1]] = grade
    if not queries and not faults.count:
        faults.add(path, "", "an empty file", "one pair a line")
    faults.raise_if_any()
    return RankingData(
        name=path.name,
        collection=str(path),
        first_stage=f"as in {path.name}",
        queries=queries,
        documents=documents,
        qrels=qrels,
        candidates=candidates,
    )


def _tsv_rows(path: Path, faults: FaultList) -> Iterator[_Row]:
    for number, text in read_lines(path, faults):
        fields = [field.strip() for field in text.split("\t")]
        if number == 1 and tuple(fields) in (_COLUMNS, _COLUMNS[:2]):
            continue
        if len(fields) not in (2, 3):
            faults.add(path, number, f"{len(fields)} columns", "query, document[, label], with tabs between")
            continue
        yield number, fields[0], fields[1], fields[2] if len(fields) == 3 else None


def _jsonl_rows(path: Path, faults: FaultList) -> Iterator[_Row]:
    for number, record in read_records(path, faults):
        query = text_of(record, "query", path, number, faults)
        document = text_of(record, "document", path, number, faults)
        label = record.get("label")
        if isinstance(label, (bool, float, list, dict)):
            faults.add(path, number, f"the label {label!r}", "a whole number")
        elif query is not None and document is not None:
            yield number, query.strip(), document.strip(), label


def _grade(label: str | int | None) -> int | None:
    try:
        return None if label is None else int(label)
    except ValueError:
        return None


def _id(kind: str, text: str) -> str:
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
