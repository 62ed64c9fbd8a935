"""Numbered lines and JSON records of a text file, with progress for the long ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.data.fault_list import FaultList
from compressor.progress import progress

_STEP = 1000


def read_lines(path: Path, faults: FaultList) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without the line end) of a UTF-8 file, without its blank lines."""
    if not path.is_file():
        faults.add(path, "", "no such file")
        return
    with path.open("rb") as stream, progress(f"Reading {path.name}", path.stat().st_size) as advance:
        pending = 0
        for number, raw in enumerate(stream, start=1):
            pending += len(raw)
            if number % _STEP == 0:
                advance(pending)
                pending = 0
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                faults.add(path, number, f"bytes that are not UTF-8 ({error.reason})", fix="save the file as UTF-8")
                continue
            if text.strip():
                yield number, text
        advance(pending)


def read_records(path: Path, faults: FaultList) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of a JSONL file; lines that are no JSON objects become faults."""
    for number, text in read_lines(path, faults):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            faults.add(path, number, f"broken JSON ({error.msg} at column {error.colno})", "one JSON object a line")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            faults.add(path, number, f"a JSON {type(record).__name__}", "one JSON object a line")


def text_of(record: dict[str, Any], key: str, path: Path, number: int, faults: FaultList) -> str | None:
    """Return the string under ``key``, or None after noting that it is missing or no string."""
    if key not in record:
        faults.add(path, number, f"no key '{key}' among {', '.join(map(repr, record)) or 'no keys'}")
        return None
    value = record[key]
    if not isinstance(value, str):
        faults.add(path, number, f"'{key}' is {json.dumps(value)[:60]}", "a string", "put it in quotes")
        return None
    return value
