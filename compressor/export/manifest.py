"""`rankpress.json`: what a folder is, where it came from, and what lies in it."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from compressor import __version__
from compressor.builds import Build
from compressor.cascade_stages import ExportedCascade
from compressor.cpu import class_of, cpu_model, isa_flags
from compressor.ranker.builds import build_spec
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.runtime.folder import (
    BUILDS_KEY,
    CASCADE_KEY,
    HALF_FILES,
    MAIN_FILE_KEY,
    MANIFEST,
    PORTABLE_FILE,
    SHARED_QUERY_KEY,
    SharedQueryFiles,
)
from compressor.storage import sha256_file

MAIN_FILE = "onnx/model.onnx"
COMPANION_FILE = "onnx/model_quantized.onnx"
CASCADE_FILES = "onnx/cascade_{place}.onnx"
SHARED_QUERY = SharedQueryFiles(query="onnx/query.onnx", candidates="onnx/candidates.onnx")
CARD = "README.md"
_ROLES = {
    MAIN_FILE: "main",
    COMPANION_FILE: "companion: the main file in dynamic int8",
    PORTABLE_FILE: "portable: the main file in standard ops",
    **{file: f"{kind}: the ranker in half precision, for GPUs" for kind, file in HALF_FILES.items()},
    SHARED_QUERY.query: "shared query: the ranker on a query, once for a list",
    SHARED_QUERY.candidates: "shared query: the ranker on candidates beside it",
    "model.safetensors": "checkpoint: loads with transformers and sentence-transformers",
    "spec.json": "shape",
    "config.json": "settings",
}
# MatMulNBits took 4 bits alone at first; other CPUs than x86 got 8 bits later still.
_RUNTIMES = {"int8_blocks": "1.22 or later on x86 CPUs: MatMulNBits with 8 bits"}
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")


def make_manifest(
    ranker: Ranker,
    folder: Path,
    parity: list[dict[str, Any]],
    more: Mapping[str, Any],
    cascade: ExportedCascade | None = None,
    shared_query: SharedQueryFiles | None = None,
    builds: Sequence[Build] = (),
) -> dict[str, Any]:
    """Return the manifest of a folder whose files are all written, the card apart.

    Args:
        ranker: what was exported.
        folder: holds the files.
        parity: agreement of each ONNX file with torch.
        more: the caller's entries (recipe, teacher, data); a key of ours is refused.
        cascade: what ranks lists, if there is such a thing.
        shared_query: what scores lists with the query run once, if there is such a thing.
        builds: what runs in the main file's place on the CPUs that each is for.
    """
    roles = {**_ROLES, **{build.file: _role(ranker, build) for build in builds}}
    manifest: dict[str, Any] = {
        "schema": 1,
        "rankpress": __version__,
        MAIN_FILE_KEY: MAIN_FILE,
        "fingerprint": ranker.fingerprint,
        "files": {
            path.relative_to(folder).as_posix(): _entry(folder, path, roles)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in (CARD, MANIFEST)
        },
        "precision": _precision(ranker.spec),
        "parity": parity,
        "history": [record.model_dump(mode="json") for record in ranker.history],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "exported_on": cpu(),
    }
    if cascade:
        manifest[CASCADE_KEY] = cascade.model_dump(mode="json")
    if shared_query:
        manifest[SHARED_QUERY_KEY] = shared_query.model_dump(mode="json")
    if builds:
        manifest[BUILDS_KEY] = [build.model_dump(mode="json") for build in builds]
    clash = manifest.keys() & more.keys()
    if clash:
        raise ValueError(f"the manifest writes these keys itself: {', '.join(sorted(clash))}")
    return {**manifest, **more}


def _precision(spec: RankerSpec) -> dict[str, Any]:
    """Return what linears and tables compute in, and what that asks of a runtime."""
    linears = [linear.precision for _, linear in linears_of(spec)]
    kinds = Counter(precision.kind for precision in linears)
    return {
        "linears": dict(kinds),
        "tables": dict(Counter(table.precision.kind for _, table in tables_of(spec))),
        "is_batch_invariant": all(precision.is_batch_invariant for precision in linears),
        "onnxruntime": next((text for kind, text in _RUNTIMES.items() if kind in kinds), "1.18 or later"),
    }


def cpu() -> dict[str, Any]:
    """Return this machine's CPU model, those of its instruction sets that matter to a ranker, and their class."""
    flags = isa_flags()
    return {"machine": platform.machine(), "cpu": cpu_model(), "cpu_flags": sorted(flags), "cpu_class": class_of(flags)}


def _role(ranker: Ranker, build: Build) -> str:
    kinds = Counter(linear.precision.kind for _, linear in linears_of(build_spec(ranker.spec, build.precision)))
    kind = next(kind for kind, _ in kinds.most_common() if kind.startswith("int8"))
    bits = "weights of 7 bits" if build.precision == "int8_reduced_range" else "weights of 8 bits"
    return f"build for {', '.join(build.cpus)}: the main file in {kind}, {bits}"


def _entry(folder: Path, path: Path, roles: Mapping[str, str]) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    is_of_cascade = name.startswith(CASCADE_FILES.partition("{")[0])
    role = "cascade: a stretch of the ranker between two stages" if is_of_cascade else roles.get(name, "tokenizer")
    return {"role": role, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
