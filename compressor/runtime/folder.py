"""Which ONNX file of a ranker folder is the ranker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from compressor.builds import Builds
from compressor.cascade_stages import ExportedCascade
from compressor.cpu import cpu_class
from compressor.errors import Fault, InputError, suggest
from compressor.recipe_faults import faults_of
from compressor.records import Record
from compressor.storage import inside, read_json

MANIFEST = "rankpress.json"
MAIN_FILE_KEY = "main_file"
CASCADE_KEY = "cascade"
BUILDS_KEY = "builds"
SHARED_QUERY_KEY = "shared_query"
PORTABLE_FILE = "onnx/model_portable.onnx"
HALF_FILES = {"fp16": "onnx/model_fp16.onnx", "bf16": "onnx/model_bf16.onnx"}
_USUAL_FILES = ("onnx/model.onnx", "model.onnx")


Kind = TypeVar("Kind", bound=Record)


class SharedQueryFiles(Record):
    """Graphs of a folder by which a query is run once for a list: its own, and that of its candidates."""

    query: str
    candidates: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenGraph:
    """A graph to load.

    Attributes:
        path: its file.
        reason: why this one, in words.
        by_cpu: whether the folder has files for several CPUs, so that another CPU may get another one.
    """

    path: Path
    reason: str
    by_cpu: bool = False


def choose_onnx_file(folder: Path, file: str | None = None) -> Path:
    """Return the path of the graph to load on this CPU; see `choose_graph`.

    Raises:
        InputError: as `choose_graph`.
    """
    return choose_graph(folder, file).path


def choose_graph(folder: Path, file: str | None = None, *, on_cpu: bool = True) -> ChosenGraph:
    """Choose the graph to load.

    The first of these that is there: the ``file`` asked for; of the ``builds`` of ``rankpress.json`` the one for CPUs
    of this machine's class; what `main_file` finds. A build that is missing gives way to the main file.

    Args:
        folder: a folder that rankpress or another tool exported.
        file: the graph, relative to the folder.
        on_cpu: whether it will run on the CPU: builds are for nothing else.

    Raises:
        InputError: as `main_file`; the ``file`` asked for is not in the folder; or the manifest's builds are broken.
    """
    manifest = _manifest(folder)
    if file is not None:
        return ChosenGraph(path=_existing(folder, file, source=folder, where="file"), reason="asked for")
    builds = _builds(manifest, folder)
    if not builds.builds or not on_cpu:
        return ChosenGraph(path=main_file(folder), reason="the main file")
    cpu = cpu_class()
    build = builds.for_cpu(cpu)
    if build is None:
        reason = f"the main file: no build is for CPUs of the class {cpu}"
        return ChosenGraph(path=main_file(folder), reason=reason, by_cpu=True)
    path, described = inside(folder, build.file), f"build for CPUs of the class {cpu} ({build.precision})"
    if path.is_file():
        return ChosenGraph(path=path, reason=f"the {described}", by_cpu=True)
    reason = f"the main file: {build.file}, the {described}, is not in the folder"
    return ChosenGraph(path=main_file(folder), reason=reason, by_cpu=True)


def main_file(folder: Path) -> Path:
    """Return the path of the folder's main graph, whatever the CPU.

    The first of these that is there: the ``main_file`` of ``rankpress.json``, which must exist; ``onnx/model.onnx``;
    ``model.onnx``.

    Raises:
        InputError: no such folder, no such file (names those that are there), or a name that leaves the folder.
    """
    manifest = _manifest(folder)
    named = manifest.get(MAIN_FILE_KEY)
    if not isinstance(named, str | None):
        fault = Fault(source=folder / MANIFEST, where=MAIN_FILE_KEY, found=repr(named), allowed="a file name")
        raise InputError(fault)
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


def choose_gpu_file(folder: Path, file: str | None = None) -> Path:
    """Return the path of the graph to load on a GPU through ONNX Runtime.

    The ``file`` asked for; in folders of ours the one in half precision, which is there where the ranker is in half
    precision; else what `main_file` finds.

    Raises:
        InputError: as `choose_onnx_file`.
    """
    if file is None and MAIN_FILE_KEY in _manifest(folder):
        for name in HALF_FILES.values():
            if (folder / name).is_file():
                return folder / name
    return choose_graph(folder, file, on_cpu=False).path


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
    path, manifest = folder / MANIFEST, _manifest(folder)
    if manifest.get(key) is None:
        return None
    if onnx_path.resolve() != main_file(folder).resolve():
        return None
    try:
        return kind.model_validate(manifest[key])
    except ValidationError as error:
        raise InputError(faults_of(error, manifest[key], kind, path, (key,))) from None


def _manifest(folder: Path) -> dict[str, Any]:
    """Return what ``rankpress.json`` says; nothing, where a folder has none."""
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "no such folder"
        fix = "name the folder, and the file in it with file=" if folder.is_file() else "download hub models first"
        raise InputError(Fault(source=folder, found=found, allowed="the folder of an exported ranker", fix=fix))
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        found = f"a JSON {type(manifest).__name__}"
        raise InputError(Fault(source=folder / MANIFEST, found=found, allowed="a JSON object"))
    return manifest


def _builds(manifest: dict[str, Any], folder: Path) -> Builds:
    given = {BUILDS_KEY: manifest.get(BUILDS_KEY, [])}
    try:
        return Builds.model_validate(given)
    except ValidationError as error:
        raise InputError(faults_of(error, given, Builds, folder / MANIFEST)) from None


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
