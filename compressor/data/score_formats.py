"""Formats of files with teacher scores: their names, what their lines hold, and which one a file looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from compressor.data.fault_list import FaultList
from compressor.data.lines import read_lines
from compressor.errors import Fault, InputError
from compressor.storage import unreadable

ScoreFormat = Literal[
    "trec", "margin_tsv", "margin_only", "colbert_json", "flag_jsonl", "pylate", "lightning_jsonl", "id_rows",
    "text_rows", "inranker_tsv", "inranker_jsonl",
]  # fmt: skip
SCORE_FORMATS: tuple[ScoreFormat, ...] = get_args(ScoreFormat)

# What a line holds: columns, or keys of a JSON object with their other names. A format may have both forms.
COLUMNS: Mapping[ScoreFormat, tuple[str, ...]] = MappingProxyType({
    "trec": ("query id", "Q0", "document id", "rank", "score", "tag"),
    "margin_tsv": ("score of the positive", "score of the negative", "query id", "positive id", "negative id"),
    "margin_only": ("query id", "positive id", "negative id", "margin"),
    "inranker_tsv": ("logit of true", "logit of false", "query id", "document id"),
    "id_rows": ("query id", "document id", "score"),
    "text_rows": ("query", "document", "score"),
})  # fmt: skip
_QUERY_ID, _DOCUMENT_ID = ("query_id", "qid"), ("doc_id", "document_id", "passage_id", "docid", "pid")
KEYS: Mapping[ScoreFormat, tuple[tuple[str, ...], ...]] = MappingProxyType({
    "margin_only": (_QUERY_ID, ("positive_id",), ("negative_id",), ("score", "margin")),
    "pylate": (_QUERY_ID, ("document_ids",), ("scores",)),
    "lightning_jsonl": (_QUERY_ID, _DOCUMENT_ID, ("score",)),
    "flag_jsonl": (("query",), ("pos",), ("neg",), ("pos_scores",), ("neg_scores",)),
    "inranker_jsonl": (("query",), ("contents",), ("true_logit",), ("false_logit",)),
    "text_rows": (("query",), ("document", "passage"), ("score", "teacher_score", "label")),
})  # fmt: skip
BY_TEXT: frozenset[ScoreFormat] = frozenset({"flag_jsonl", "inranker_jsonl", "text_rows"})  # the others go by id

_SAMPLE = 50
_TO_ROWS = (
    "where you trust the file, write its scores as lines 'query id, tab, document id, tab, score' "
    "(format id_rows) and name that file"
)
_FOREIGN = {  # first bytes of files that are no text
    b"\x80": ("a pickle, which can run code when it is read", _TO_ROWS),
    b"\x1f\x8b": ("a gzip archive", "unpack it first: gunzip"),
    b"\xfd7zXZ": ("an xz archive", "unpack it first: unxz"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it first: unzstd"),
    b"BZh": ("a bzip2 archive", "unpack it first: bunzip2"),
    b"PK\x03\x04": ("a zip archive (or a torch file)", "unpack it first; a torch file holds a pickle: " + _TO_ROWS),
    b"PAR1": ("a Parquet file", "write it as JSON lines: datasets.Dataset.from_parquet(FILE).to_json(NEW)"),
}


def describe(form: ScoreFormat) -> str:
    """Return what a line of a format holds, in a few words."""
    if form == "colbert_json":
        return "[query id, [document id, score], ...]"
    forms = [", ".join(COLUMNS[form])] if form in COLUMNS else []
    forms += ["{" + ", ".join("|".join(names) for names in KEYS[form]) + "}"] if form in KEYS else []
    return " or ".join(forms)


def refuse_binary(path: Path) -> None:
    """Refuse what is no text: pickles above all, which are never opened, archives, Parquet.

    Raises:
        InputError: says how to convert it.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise unreadable(path, error) from None
    by_name = b"\x80" if path.suffix.lower() in (".pkl", ".pickle") else b""
    for magic, (found, fix) in _FOREIGN.items():
        if start.startswith(magic) or (by_name and magic == by_name):
            raise InputError(Fault(source=path, found=found, allowed="text: " + ", ".join(SCORE_FORMATS), fix=fix))


def detect_format(path: Path) -> ScoreFormat:
    """Return the format that the first lines of a file have.

    Raises:
        InputError: no such file, no text, or lines that fit no format or several; says what was looked for.
    """
    refuse_binary(path)
    faults = FaultList()
    lines = [text.strip() for _, text in islice(read_lines(path, faults), _SAMPLE)]
    faults.raise_if_any()
    if not lines:
        raise InputError(Fault(source=path, found="an empty file", allowed="lines with scores"))
    if lines[0][0] in "[{":
        return _json_format(path, lines[0])
    return _column_format(path, [split_columns(line) for line in lines])


def split_columns(text: str) -> list[str]:
    """Split a line at its tabs, or at its spaces where it has no tabs."""
    return [field.strip() for field in text.split("\t")] if "\t" in text else text.split()


def is_header(fields: list[str]) -> bool:
    """Whether the fields of a first line are names of columns."""
    return any(field.lower() in _HEADER_WORDS for field in fields)


_HEADER_WORDS = {
    "score", "teacher_score", "margin", "pos_score", "neg_score", "pos_logit", "neg_logit", "true_logit",
    "false_logit", "qid", "query_id", "query-id",
}  # fmt: skip


def _json_format(path: Path, line: str) -> ScoreFormat:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _unknown(path, f"broken JSON in the first line ({error})") from None
    if isinstance(record, list):
        if len(record) > 1 and all(isinstance(item, list) and len(item) == 2 for item in record[1:]):
            return "colbert_json"
        raise _unknown(path, "a JSON list that is not [query id, [document id, score], ...]")
    for form, keys in KEYS.items():
        if all(any(name in record for name in names) for names in keys):
            return form
    raise _unknown(path, f"JSON objects with the keys {', '.join(map(repr, record)) or '(none)'}")


def _column_format(path: Path, rows: list[list[str]]) -> ScoreFormat:
    header = [field.lower() for field in rows[0]] if is_header(rows[0]) else []
    rows = rows[1:] if header else rows
    n_columns = len(rows[0]) if rows else 0
    if n_columns == 6:
        return "trec"
    if n_columns == 5:
        return "margin_tsv"
    if n_columns == 4:
        return _four_columns(path, rows, header)
    if n_columns == 3:
        return _three_columns(path, rows, header)
    raise _unknown(path, f"lines of {n_columns} columns")


def _four_columns(path: Path, rows: list[list[str]], header: list[str]) -> ScoreFormat:
    """Two logits in front, or a margin behind: told apart by the header, or by which columns can be no ids."""
    rows = [row for row in rows if len(row) == 4]
    margin_behind = all(map(is_number, (row[3] for row in rows)))
    logits_in_front = all(is_number(row[0]) and is_number(row[1]) for row in rows)
    if header:
        margin_behind, logits_in_front = "positive_id" in header, "pos_logit" in header
    elif margin_behind and logits_in_front:
        margin_behind = any(not _is_whole(row[3]) for row in rows)
        logits_in_front = any(not _is_whole(field) for row in rows for field in row[:2])
    if margin_behind != logits_in_front:
        return "margin_only" if margin_behind else "inranker_tsv"
    raise _unknown(path, "four columns that may be margins behind or two logits in front")


def _three_columns(path: Path, rows: list[list[str]], header: list[str]) -> ScoreFormat:
    """Texts have spaces in them, ids do not; ranks count up from 1."""
    rows = [row for row in rows if len(row) == 3]
    if header[:1] == ["query"] or any(" " in field for row in rows for field in row[:2]):
        return "text_rows"
    if not header and _are_ranks(rows):
        raise _unknown(path, "three columns that end with ranks, not scores (a run as MS MARCO has it)")
    return "id_rows"


def _are_ranks(rows: list[list[str]]) -> bool:
    if rows[0][2] != "1" or not all(row[2].isdecimal() for row in rows):
        return False
    return all(
        int(after[2]) == (int(before[2]) + 1 if before[0] == after[0] else 1) for before, after in pairwise(rows)
    )


def _unknown(path: Path, found: str) -> InputError:
    looked_for = "; ".join(f"{form}: {describe(form)}" for form in SCORE_FORMATS)
    fix = "where it is one of them all the same, say which with 'format:'"
    return InputError(Fault(source=path, found=f"no known format of scores: {found}", allowed=looked_for, fix=fix))


def is_number(text: Any) -> bool:
    """Whether a text is a number, ``nan`` and ``inf`` included: that they are not finite is another fault."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", text) is not None
