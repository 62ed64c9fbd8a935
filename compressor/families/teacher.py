"""From a recipe's ``teacher:`` to a ranker: a packaged one, a folder, an ONNX file, or a hub id."""

from __future__ import annotations

import time
from pathlib import Path

from compressor.errors import Fault, InputError, suggest
from compressor.families.checkpoint import INDEX, SINGLE
from compressor.families.hub import fetch, is_hub_id
from compressor.families.packaged import (
    CARRIED,
    PACKAGED,
    TEACHER,
    TEACHER_CONFIG,
    is_packaged,
    packaged_folder,
    packaged_name,
    teacher_tokenizer,
)
from compressor.families.sources import CheckpointSource, OnnxFile, Source, StoredSource
from compressor.ranker.history import StageRecord
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import RankerSpec
from compressor.storage import sha256_file, sha256_json

_ONNX_NAMES = ("model.onnx", "onnx/model.onnx")
_IMPORT_VERSION = 1  # part of every fingerprint: raise it when the same files come to give another ranker


def load_teacher(reference: str, base: Path) -> Ranker:
    """Read the ranker that a recipe names.

    Args:
        reference: ``packaged``, ``packaged:NAME``, a folder, an ONNX file, or a hub id
            (``organization/model[@revision]``).
        base: the folder that relative paths start from.

    Returns:
        The ranker in fp32, its history ending with an ``import`` record.

    Raises:
        InputError: there is no such teacher, or one that rankpress cannot read exactly.
    """
    start = time.monotonic()
    ranker, notes = open_source(reference, base, with_weights=True).read()
    check_finite(ranker, reference)
    record = StageRecord(
        verb="import",
        settings={"teacher": reference},
        notes={"family": ranker.spec.family, **notes},
        seconds=round(time.monotonic() - start, 3),
    )
    return ranker.changed(history=(*ranker.history, record))


def peek_teacher(reference: str, base: Path) -> RankerSpec:
    """Return the spec of the ranker that a recipe names, without loading or downloading its weights.

    Raises:
        InputError: as `load_teacher`, as far as it shows without weights.
    """
    return open_source(reference, base, with_weights=False).spec()


def token_fingerprint(reference: str, base: Path) -> str:
    """Return a SHA-256 of how the ranker that a recipe names reads text, see `PairTokenizer.fingerprint`.

    Raises:
        InputError: as `load_teacher`, as far as it shows without weights.
    """
    return open_source(reference, base, with_weights=False).tokenizer().fingerprint


def teacher_fingerprint(reference: str, base: Path) -> str:
    """Return a SHA-256 over the files of the ranker that a recipe names; nothing is converted.

    Raises:
        InputError: there is no such teacher.
    """
    files = open_source(reference, base, with_weights=True).files()
    return sha256_json([_IMPORT_VERSION, sorted([path.name, sha256_file(path)] for path in files)])


def check_finite(ranker: Ranker, reference: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        InputError: names them.
    """
    faults = [
        Fault(
            source="teacher",
            where=name,
            found=f"{int(n_broken)} NaN or infinite weights in {reference}",
            allowed="finite numbers",
            fix="take a checkpoint from before its training diverged",
        )
        for name, tensor in ranker.weights.items()
        if (n_broken := (~tensor.isfinite()).sum())
    ]
    if faults:
        raise InputError(faults)


def open_source(reference: str, base: Path, *, with_weights: bool) -> Source:
    """Find the files that a reference means.

    Raises:
        InputError: there are none, or they are of no kind that holds a ranker.
    """
    if is_packaged(reference):
        return _packaged(packaged_name(reference))
    path = base / Path(reference).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path)
    if is_hub_id(reference):
        return CheckpointSource(folder=fetch(reference, with_weights=with_weights))
    found = f"{reference!r}: no such file or folder"
    raise InputError(Fault(source="teacher", found=found, allowed=_ALLOWED, fix=suggest(reference, [PACKAGED])))


def _packaged(name: str) -> Source:
    folder = packaged_folder(name)
    graph = folder / "model.onnx"
    if name == TEACHER:
        files = teacher_tokenizer(folder)
        return OnnxFile(path=graph, folder=folder, tokenizer_files=files, config=TEACHER_CONFIG)
    if graph.name in CARRIED[name].hashes:
        return OnnxFile(path=graph, folder=folder, pool=CARRIED[name].pool)
    return CheckpointSource(folder=folder)


_ALLOWED = "packaged[:NAME], a checkpoint's folder, an ONNX file, or a hub id (organization/model)"


def _file(path: Path) -> Source:
    if path.suffix == ".onnx":
        # Exports keep the graph in onnx/ and the tokenizer one folder up.
        has_tokenizer = (path.parent / "tokenizer.json").is_file()
        return OnnxFile(path=path, folder=path.parent if has_tokenizer else path.parent.parent)
    fix = "give its folder" if path.suffix == ".safetensors" else ""
    raise InputError(Fault(source="teacher", found=f"the file {path.name}", allowed=_ALLOWED, fix=fix))


def _folder(path: Path) -> Source:
    if (path / "spec.json").is_file() and (path / "history.json").is_file():
        return StoredSource(folder=path)
    has_weights = any((path / name).is_file() for name in (SINGLE, INDEX))
    graphs = [path / name for name in _ONNX_NAMES if (path / name).is_file()]
    if (path / "rankpress.json").is_file() and not has_weights:
        fix = "give the last folder under stages/ of its run: that is the same ranker with its float weights"
        raise InputError(Fault(source=path, found="an exported folder without model.safetensors", fix=fix))
    if not graphs and not any((path / name).is_file() for name in ("config.json", "modules.json")):
        raise InputError(Fault(source=path, found="a folder without config.json", allowed=_ALLOWED))
    if graphs and not has_weights:
        return OnnxFile(path=graphs[0], folder=path)
    return CheckpointSource(folder=path)
