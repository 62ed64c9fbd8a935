"""Which ONNX file of a ranker folder is the ranker."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from compressor.cascade_stages import ExportedCascade
from compressor.errors import Fault, InputError, suggest
from compressor.recipe_faults import faults_of
from compressor.records import Record
from compressor.storage import inside, read_json

MANIFEST = "rankpress.json"
MAIN_FILE_KEY = "main_file"
CASCADE_KEY = "cascade"
SHARED_QUERY_KEY = "shared_query"
PORTABLE_FILE = "onnx/model_portable.onnx"
_USUAL_FILES = ("onnx/model.onnx", "model.onnx")


Kind = TypeVar("Kind", bound=Record)


class SharedQueryFiles(Record):
    """Graphs of a folder by which a query is run once for a list: its own, and that of its candidates."""

    query: str
    candidates: str


def choose_onnx_file(folder: Path, file: str | None = None) -> Path:
    """Return the path of the graph to load.

    The first of these that is there: the ``file`` asked for; the ``main_file`` of ``rankpress.json``;
    ``onnx/model.onnx``; ``model.onnx``. A file that was asked for, by the caller or by the manifest, must exist.

    Raises:
        InputError: no such folder, no such file (names those that are there), or a name that leaves the folder.
    """
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "no such folder"
        fix = "name the folder, and the file in it with file=" if folder.is_file() else "download hub models first"
        raise InputError(Fault(source=folder, found=found, allowed="the folder of an exported ranker", fix=fix))
    if file is not None:
        return _existing(folder, file, source=folder, where="file")
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST)
        named = manifest.get(MAIN_FILE_KEY) if isinstance(manifest, dict) else None
        if not isinstance(manifest, dict) or not isinstance(named, str | None):
            raise InputError(
                Fault(
                    source=folder / MANIFEST,
                    where=MAIN_FILE_KEY if isinstance(manifest, dict) else "",
                    found=repr(named) if isinstance(manifest, dict) else f"a JSON {type(manifest).__name__}",
                    allowed="a file name" if isinstance(manifest, dict) else "a JSON object",
                )
            )
        if named is not None:
            return _existing(folder, named, source=folder / MANIFEST, where=MAIN_FILE_KEY)
    for name in _USUAL_FILES:
        if (folder / name).is_file():
            return folder / name
    others = _onnx_files(folder)
    fix = f"choose one with file=: {', '.join(others)}" if others else ""
    if not others and any(folder.glob("*.safetensors")):
        fix = "this is a torch checkpoint: 'rankpress compress' with an empty 'passes:' exports it as it is"
    raise InputError(Fault(source=folder, found="no ONNX file", allowed=" or ".join(_USUAL_FILES), fix=fix))


def choose_portable_file(folder: Path, file: str | None = None) -> Path:
    """Return the path of the graph to load in a runtime without ONNX Runtime's own ops, OpenVINO for one.

    The ``file`` asked for, else ``onnx/model_portable.onnx``, else, in folders that other tools exported, what
    `choose_onnx_file` chooses. Our main file has fused ops: such a runtime refuses them or rounds otherwise.

    Raises:
        InputError: as `choose_onnx_file`, and where a folder of ours was exported without a portable graph.
    """
    if file is not None or not (folder / PORTABLE_FILE).is_file():
        chosen = choose_onnx_file(folder, file)
        if file is None and (folder / MANIFEST).is_file():
            fix = (
                "set export: {portable: true} in its recipe, or compress again with --set export.portable=true: "
                "finished stages are kept, so that little more than the export is done"
            )
            raise InputError(
                Fault(source=folder, found="no graph in standard ops alone", allowed=PORTABLE_FILE, fix=fix)
            )
        return chosen
    return folder / PORTABLE_FILE


def cascade_of(folder: Path, onnx_path: Path) -> tuple[ExportedCascade, list[Path]] | None:
    """Return the cascade that ranks lists in the place of a folder's main file, and its graphs.

    None where the manifest names no cascade, or where the graph in use is another than the main file.

    Raises:
        InputError: the manifest's entry is broken, or a graph is missing or outside the folder.
    """
    settings = _entry(folder, onnx_path, CASCADE_KEY, ExportedCascade)
    if settings is None:
        return None
    return settings, [_existing(folder, name, source=folder / MANIFEST, where=CASCADE_KEY) for name in settings.files]


def shared_query_of(folder: Path, onnx_path: Path) -> list[Path] | None:
    """Return the graphs that score lists in the place of a folder's main file: the query's, and its candidates'.

    None where the manifest names none, or where the graph in use is another than the main file.

    Raises:
        InputError: as `cascade_of`.
    """
    files = _entry(folder, onnx_path, SHARED_QUERY_KEY, SharedQueryFiles)
    if files is None:
        return None
    names = (files.query, files.candidates)
    return [_existing(folder, name, source=folder / MANIFEST, where=SHARED_QUERY_KEY) for name in names]


def list_graphs(folder: Path, onnx_path: Path) -> list[Path]:
    """Return all graphs that score lists in the place of a folder's main file, if there are any."""
    staged = cascade_of(folder, onnx_path)
    return staged[1] if staged else shared_query_of(folder, onnx_path) or []


def _entry(folder: Path, onnx_path: Path, key: str, kind: type[Kind]) -> Kind | None:
    """Return what the manifest says of a folder's main file under a key."""
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else None
    if not isinstance(manifest, dict) or manifest.get(key) is None:
        return None
    if onnx_path.resolve() != choose_onnx_file(folder).resolve():
        return None
    try:
        return kind.model_validate(manifest[key])
    except ValidationError as error:
        raise InputError(faults_of(error, manifest[key], kind, path, (key,))) from None


def _existing(folder: Path, name: str, *, source: Path, where: str) -> Path:
    path = inside(folder, name)
    if path.is_file():
        return path
    others = _onnx_files(folder)
    raise InputError(
        Fault(
            source=source,
            where=where,
            found=f"{name!r}, which is not in the folder",
            allowed=", ".join(others) or "a folder with ONNX files",
            fix=suggest(name, others),
        )
    )


def _onnx_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx"))
