"""The rows of a report: what is measured, in which runtime, and when two rows are the same thing."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor import __version__
from compressor.bench.machine import gpu_models
from compressor.cpu import cpu_model, isa_flags
from compressor.errors import Fault, InputError, suggest
from compressor.records import Record
from compressor.runtime.folder import (
    cascade_of,
    choose_gpu_file,
    choose_graph,
    choose_onnx_file,
    choose_portable_file,
    list_graphs,
)
from compressor.storage import sha256_file, sha256_json

Engine = Literal[
    "onnx", "onnx_cuda", "onnx_tensorrt", "openvino", "openvino_bf16", "torch_fp32_padded", "sentence_transformers",
    "sentence_transformers_bf16",
]  # fmt: skip

_TEXT_FILES = {".json", ".txt", ".model"}
_CHECKPOINT_FILES = {".safetensors", ".bin"}

_OWN_RECORDS = {"rankpress.json", "report.json", "spec.json"}
_OF_CHECKPOINTS: tuple[Engine, ...] = ("torch_fp32_padded", "sentence_transformers", "sentence_transformers_bf16")
_ON_GPUS: tuple[Engine, ...] = ("onnx_cuda", "onnx_tensorrt")
_ENGINE_PACKAGES: dict[Engine, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "tokenizers"),
    "onnx_cuda": ("onnxruntime", "tokenizers"),
    "onnx_tensorrt": ("onnxruntime", "tensorrt", "tokenizers"),
    "openvino": ("openvino", "tokenizers"),
    "openvino_bf16": ("openvino", "tokenizers"),
    "torch_fp32_padded": ("torch", "transformers", "tokenizers"),
    "sentence_transformers": ("sentence-transformers", "torch", "transformers", "tokenizers"),
    "sentence_transformers_bf16": ("sentence-transformers", "torch", "transformers", "tokenizers"),
}


class RowSpec(Record):
    """One row of the table, measured in a process of its own.

    Attributes:
        name: unique in a report; the baselines are called ``stock_onnx_fp32`` and ``torch_fp32_padded``.
        folder: an ONNX folder, own or foreign; where a checkpoint is run, a stock Hugging Face one.
        file: the ONNX file inside the folder, where the folder's main file is not meant. OpenVINO takes the portable
            one by default, and knows files of its own besides (``openvino/openvino_model.xml``).
        engine: ``onnx``: ONNX Runtime, pairs sorted by length under a token budget, batches trimmed;
            ``onnx_cuda``, ``onnx_tensorrt``: the same in its providers for GPUs, TensorRT on the portable graph;
            ``openvino``, ``openvino_bf16``: OpenVINO with the same batches, computing in fp32, or in bf16;
            ``torch_fp32_padded``: the stock transformers model in fp32, batches of pairs in the order in which they
            come, padded to the longest of the batch, as most users run it;
            ``sentence_transformers``, ``sentence_transformers_bf16``: a stock checkpoint in `CrossEncoder.predict`.
        scores_of: another row that is the same model in another runtime. Its quality figures are taken over once the
            scores of all timed queries agree within 1e-3; where they do not, this row is scored on its own.
    """

    name: str = Field(min_length=1)
    kind: Literal["ranker", "baseline"] = "ranker"
    folder: Path
    file: str | None = None
    engine: Engine = "onnx"
    scores_of: str | None = None

    @property
    def is_graph(self) -> bool:
        """Whether a graph is run, and not a checkpoint."""
        return self.engine not in _OF_CHECKPOINTS

    @property
    def graph_path(self) -> Path:
        """The graph's file.

        Raises:
            InputError: the folder holds none that could be meant.
        """
        choose = {"onnx": choose_onnx_file, "onnx_cuda": choose_gpu_file}.get(self.engine, choose_portable_file)
        return choose(self.folder, self.file)


def build_note(row: RowSpec) -> str | None:
    """Say which of a folder's builds this CPU takes; None where every CPU gets the same graph."""
    if row.engine != "onnx":
        return None
    chosen = choose_graph(row.folder, row.file)
    if not chosen.by_cpu:
        return None
    file = chosen.path.relative_to(row.folder).as_posix()
    return f"{row.name} ran {file}, {chosen.reason}. Other CPUs take other files of this folder, not measured here."


def external_data(graph: Path) -> list[Path]:
    """Return the files beside a graph that hold its weights, where they are not in it."""
    beside = [graph.with_name(graph.name + suffix) for suffix in (".data", "_data")]
    beside += [graph.with_suffix(".bin")] if graph.suffix == ".xml" else []
    return [path for path in beside if path.is_file()]


def check_rows(rows: Sequence[RowSpec], teacher: str) -> None:
    """Refuse rows that cannot make a table.

    Raises:
        InputError: no rows, a name twice, a folder that is missing, an unknown teacher or ``scores_of``.
    """
    names = [row.name for row in rows]
    faults = []
    if not rows:
        faults.append(Fault(source="bench", found="no folders to measure"))
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(Fault(source="bench", where=name, found="two rows of this name", fix="give each its own name"))
    if rows and teacher not in names:
        fix = suggest(teacher, names)
        faults.append(Fault(source="bench", where="teacher", found=repr(teacher), allowed=", ".join(names), fix=fix))
    for row in rows:
        if not row.folder.is_dir():
            faults.append(Fault(source=row.folder, found="no such folder", fix=f"row {row.name!r} needs it"))
        others = {other.name for other in rows if other.scores_of is None} - {row.name}
        if row.scores_of is not None and row.scores_of not in others:
            allowed = ", ".join(sorted(others))
            faults.append(Fault(source="bench", where=f"{row.name}: scores_of", found=row.scores_of, allowed=allowed))
    if faults:
        raise InputError(faults)


def row_fingerprint(row: RowSpec) -> str:
    """Return a hash over everything that a row's scores can depend on: files, runtime versions, instruction set.

    Raises:
        InputError: the folder holds no ONNX file that could be meant.
    """
    content = {path.relative_to(row.folder).as_posix(): sha256_file(path) for path in _content(row)}
    runtime = {package: _version(package) for package in _ENGINE_PACKAGES[row.engine]}
    machine = [platform.machine(), cpu_model(), isa_flags(), *(gpu_models() if row.engine in _ON_GPUS else ())]
    staged = cascade_of(row.folder, row.graph_path) if row.is_graph else None
    cascade = [staged[0].model_dump(mode="json")] if staged else []
    return sha256_json([__version__, row.engine, content, runtime, machine, *cascade])


def _content(row: RowSpec) -> list[Path]:
    beside = [path for path in sorted(row.folder.iterdir()) if path.is_file() and path.suffix in _TEXT_FILES]
    files = [path for path in beside if path.name not in _OWN_RECORDS]
    if not row.is_graph:
        return files + [path for path in sorted(row.folder.iterdir()) if path.suffix in _CHECKPOINT_FILES]
    graph = row.graph_path
    return [*files, graph, *list_graphs(row.folder, graph), *external_data(graph)]


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):  # ONNX Runtime for GPUs is a package of its own
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
