"""Folders that break one rule at a time, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from compressor.doctor import examine
from compressor.doctor.examine import OWN_RUNTIME
from compressor.doctor.findings import Reason

Change = Callable[[Path], object]
TORCH, ST_ONNX = "sentence-transformers (torch)", 'sentence-transformers (backend="onnx")'
TEI, ELAND = "text-embeddings-inference", "eland (Elasticsearch)"
READ_ONNX = {OWN_RUNTIME, ST_ONNX, "optimum-onnx", "fastembed", "FlashRank", TEI, "Vespa", "transformers.js"}
READ_TORCH = {TORCH, "rerankers", ELAND, "infinity"}
ALL = READ_ONNX | READ_TORCH
BEFORE_5 = {ELAND, "infinity", ST_ONNX, "optimum-onnx"}  # versions of transformers


def verdicts(path: Path) -> dict[str, str]:
    return {one.consumer: one.verdict for one in examine(path).findings}


def refused(path: Path) -> set[str]:
    return {name for name, verdict in verdicts(path).items() if verdict == "does_not_load"}


def reasons(path: Path, consumer: str, kind: str = "obstacle") -> list[Reason]:
    return [reason for reason in examine(path).of(consumer).reasons if reason.kind == kind]


def edit(name: str, **keys: Any) -> Change:
    """Set keys of a JSON file; None takes them out."""

    def change(path: Path) -> None:
        value = json.loads((path / name).read_text()) if (path / name).exists() else {}
        value = {key: one for key, one in {**value, **keys}.items() if one is not None}
        (path / name).write_text(json.dumps(value))

    return change


def remove(*names: str) -> Change:
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def write(name: str, content: bytes) -> Change:
    return lambda path: (path / name).write_bytes(content)


def change_graph(change: Callable[[onnx.ModelProto], object]) -> Change:
    """Change ``onnx/model.onnx`` alone."""

    def changed(path: Path) -> None:
        model = onnx.load(path / "onnx/model.onnx")
        change(model)
        onnx.save(model, path / "onnx/model.onnx")

    return changed
