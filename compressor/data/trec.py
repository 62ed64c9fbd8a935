"""Judgments and runs in TREC's formats, and judgments in BEIR's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compressor.data.fault_list import FaultList
from compressor.data.lines import read_lines
from compressor.storage import write_whole

_HEADERS = {"score", "relevance", "label", "grade"}  # the last word of a BEIR header; any other is a bad grade
Judgment = tuple[int, str, str, int]  # line, query id, document id, grade


class Place(NamedTuple):
    """A document in the list of a query."""

    document: str
    line: int  # of the run file; 0 where the run comes from no file


Run = dict[str, list[Place]]  # by query id, best first


def read_qrels(path: Path, faults: FaultList) -> list[Judgment]:
    """Read judgments: TREC (``query 0 document grade``) or BEIR TSV (``query-id corpus-id score``, header or not).

    Grades are whole numbers; negative ones (TREC's mark for junk) stay. A pair judged twice alike counts once.
    """
    judgments: list[Judgment] = []
    grades: dict[tuple[str, str], tuple[int, int]] = {}
    for number, text in read_lines(path, faults):
        fields = _fields(text)
        if number == 1 and len(fields) == 3 and fields[2] in _HEADERS:
            continue
        if len(fields) not in (3, 4):
            faults.add(path, number, f"{len(fields)} columns", "query, document, grade; or query, 0, document, grade")
            continue
        query, document, grade = fields[0], fields[-2], fields[-1]
        if not _is_whole(grade):
            faults.add(path, number, f"the grade {grade!r}", "a whole number")
            continue
        before = grades.setdefault((query, document), (number, int(grade)))
        if before[0] == number:
            judgments.append((number, query, document, int(grade)))
        elif before[1] != int(grade):
            found = f"grade {grade} for the query {query!r} and the document {document!r}"
            faults.add(path, number, found, f"one grade a pair; line {before[0]} says {before[1]}")
    return judgments


def read_run(path: Path, faults: FaultList) -> Run:
    """Read a first-stage run.

    Formats, by the number of columns: 6 (``query Q0 document rank score tag``), where the score decides, ties go to the
    smaller rank and then to the smaller document id; 3 (``query document rank``, as MS MARCO has it), where the rank
    decides; 2 (``query document``), where the order of the lines does.
    """
    rows: dict[str, list[tuple[float, int, str, int]]] = {}
    seen: dict[tuple[str, str], int] = {}
    n_columns = 0
    for number, text in read_lines(path, faults):
        fields = _fields(text)
        n_columns = n_columns or len(fields)
        if len(fields) not in (2, 3, 6) or len(fields) != n_columns:
            allowed = f"{n_columns} as above" if n_columns in (2, 3, 6) else "6, 3 or 2 (a TREC or MS MARCO run)"
            faults.add(path, number, f"{len(fields)} columns", allowed)
            continue
        query, document, rank, score = _parts(fields, number)
        if not _is_whole(rank):
            faults.add(path, number, f"the rank {rank!r}", "a whole number")
        elif not _is_finite(score):
            faults.add(path, number, f"the score {score!r}", "a finite number")
        elif (before := seen.setdefault((query, document), number)) != number:
            found = f"the document {document!r} again for the query {query!r}"
            faults.add(path, number, found, fix=f"it stands in line {before} already")
        else:
            rows.setdefault(query, []).append((-float(score), int(rank), document, number))
    if not rows and not faults.count:
        faults.add(path, "", "an empty run")
    return {query: [Place(document, line) for _, _, document, line in sorted(found)] for query, found in rows.items()}


def write_run(path: Path, run: Mapping[str, Sequence[tuple[str, float]]], tag: str) -> None:
    """Write a run in TREC's format, whole or not at all.

    Evaluators sort by score, and each breaks ties in its own way: equal scores are lowered by one float32 step each.

    Args:
        path: the file.
        run: (document id, score) by query id, best first.
        tag: the run's name, in its last column.

    Raises:
        InputError: an id has white space, or nothing can be written there.
    """
    faults = FaultList()
    lines = []
    for query, found in run.items():
        lowest = np.float32(np.inf)
        for rank, (document, score) in enumerate(found, start=1):
            lowest = min(np.float32(score), np.nextafter(lowest, np.float32(-np.inf)))
            lines.append(f"{query} Q0 {document} {rank} {lowest!s} {tag}\n")
    for kind, ids in (("query", run), ("document", {document for found in run.values() for document, _ in found})):
        for key in ids:
            if len(key.split()) != 1:
                faults.add(path, "", f"the {kind} id {key!r}", "ids without white space: a run has it between columns")
    faults.raise_if_any()
    write_whole(path, "".join(lines))


def _parts(fields: list[str], number: int) -> tuple[str, str, str, str]:
    if len(fields) == 6:
        return fields[0], fields[2], fields[3], fields[4]
    return fields[0], fields[1], fields[2] if len(fields) == 3 else str(number), "0"


def _fields(text: str) -> list[str]:
    return [field.strip() for field in text.split("\t")] if "\t" in text else text.split()


def _is_whole(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
