"""Writing and reading reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.bench.schema import Report
from compressor.errors import Fault, InputError
from compressor.storage import read_json, write_whole

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_SCALAR_LIST = re.compile(r"\[\s+([^\[\]{}\"]+?)\s+\]")


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into a folder."""
    from compressor.bench.report_html import render_html

    write_whole(folder / REPORT_JSON, report_text(report))
    write_whole(folder / REPORT_HTML, render_html(report))


def report_text(report: Report) -> str:
    """Return the report as JSON, arrays of numbers on one line each."""
    text = json.dumps(report.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False, allow_nan=False)
    return _SCALAR_LIST.sub(lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


def read_report(path: Path) -> Report:
    """Read a ``report.json``, or the one inside a folder.

    Raises:
        InputError: no such file, no JSON, another version, or fields that are missing or wrong; names them all.
    """
    path = path / REPORT_JSON if path.is_dir() else path
    value = read_json(path)
    version = value.get("schema") if isinstance(value, dict) else None
    if version != 1:
        fix = "write it anew with this rankpress" if version is not None else "is it a rankpress report at all?"
        raise InputError(Fault(source=path, where="schema", found=repr(version), allowed="1", fix=fix))
    try:
        return Report.model_validate(value)
    except ValidationError as error:
        raise InputError([_fault(path, one) for one in error.errors()]) from None


def schema_text() -> str:
    """Return the JSON Schema of ``report.json``."""
    return json.dumps(Report.model_json_schema(mode="serialization"), indent=2, ensure_ascii=False) + "\n"


def _fault(path: Path, error: Any) -> Fault:
    where = ".".join(map(str, error["loc"]))
    return Fault(
        source=path, where=where, found=repr(error["input"])[:80], allowed=error["msg"].removeprefix("Value error, ")
    )


if __name__ == "__main__":
    write_whole(SCHEMA_PATH, schema_text())
