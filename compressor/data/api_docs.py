"""The built-in collection ``api-docs``: which docstring does this summary line belong to?

Every machine that can run rankpress has the Python standard library and rankpress' own dependencies, so it has this
collection, in the versions that are installed. Source files are read and parsed; nothing is imported or run.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from compressor.data import docstrings as docstrings_module
from compressor.data.beir import read_beir
from compressor.data.cache import cache_folder
from compressor.data.collection import Collection
from compressor.data.docstrings import Docstring, Passage, docstrings, passages
from compressor.data.normalization import normalized
from compressor.data_reference import BUILT_IN, BUILT_IN_SPLITS, CORPUS
from compressor.progress import progress
from compressor.storage import sha256_file, sha256_json, whole_folder, write_json

# The order decides which of two equal texts stays. All belong to rankpress' own extras, or come along with them.
PACKAGES = (
    "numpy", "scipy", "networkx", "sympy", "torch", "transformers", "huggingface-hub", "onnx",
    "onnxruntime", "onnxscript", "onnx-ir", "tokenizers", "safetensors", "pydantic", "rich", "typer", "click", "jinja2",
    "fsspec", "packaging", "pygments", "psutil", "tqdm", "pyyaml", "bm25s", "ir-measures",
)  # fmt: skip
PAIRS_PER_PACKAGE = 1300  # of a larger package a part, chosen by hash: no library is to be most of the collection
TRAIN_SHARE, DEV_SHARE = 0.7, 0.1
_STANDARD_LIBRARY = "stdlib"
_NO_API = {
    "test", "tests", "testing", "_vendor", "vendor", "extern", "site-packages", "dist-packages", "idlelib", "lib2to3",
    "turtledemo", "ensurepip", "__pycache__",
}  # fmt: skip


def read_api_docs(split: str) -> Collection:
    """Read one split, building the collection first where the cache does not have it (some seconds).

    A query is a docstring's summary and its one relevant document the rest of that docstring. The hash of the summary's
    words puts a pair into train (70 %), dev (10 %) or test (20 %). The documents of a split are those of its own pairs,
    so no text of the training split is ever seen while testing, not even as a distractor. Kept in the cache folder
    under a hash of the versions and of the rules that made it.
    """
    versions = installed_versions()
    sources = [sha256_file(Path(module)) for module in (__file__, str(docstrings_module.__file__))]
    key = sha256_json({"versions": versions, "rules": sources})[:16]
    folder = cache_folder(BUILT_IN) / key
    if not folder.is_dir():
        built = build(versions)
        if not folder.is_dir():  # another process may have been faster, and may be reading it by now
            _write(folder, built, versions)
    found = read_beir(folder / split, split)
    return Collection(
        name=f"{BUILT_IN}/{split}",
        identity=BUILT_IN,
        queries=found.queries,
        documents=found.documents,
        qrels=found.qrels,
    )


def installed_versions() -> dict[str, str]:
    """Return the version of Python and of each package that the collection is made from and that is installed."""
    versions = {_STANDARD_LIBRARY: f"{platform.python_implementation()} {platform.python_version()}"}
    for package in PACKAGES:
        found = _distribution(package)
        if found is not None:
            versions[package] = found.version
    return versions


def build(versions: dict[str, str]) -> list[Passage]:
    """Return all pairs of the given packages, in an order that depends on versions alone."""
    found: list[Docstring] = []
    home: dict[str, str] = {}
    files = [(package, *place) for package in versions for place in _source_files(package)]
    with progress("Building api-docs from installed sources", len(files)) as advance, _without_collector():
        for package, path, relative in files:
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            for item in docstrings(path.read_text(encoding="utf-8", errors="replace"), module):
                if item.name not in home:  # else an overload, or the other branch of an if
                    home[item.name] = package
                    found.append(item)
            advance()
    by_package: dict[str, list[Passage]] = {package: [] for package in versions}
    for passage in passages(found):
        by_package[home[passage.name]].append(passage)
    return [passage for kept in by_package.values() for passage in sorted(kept, key=_hash)[:PAIRS_PER_PACKAGE]]


def split_of(summary: str) -> str:
    """Return the split of a pair: the hash of the summary's words decides."""
    place = int(hashlib.sha256(normalized(summary).encode()).hexdigest()[:8], 16) / 16**8
    return "train" if place < TRAIN_SHARE else "dev" if place < TRAIN_SHARE + DEV_SHARE else "test"


@contextmanager
def _without_collector() -> Iterator[None]:
    """Parse trees are millions of small objects that reference counts alone can free: a third of the time is saved."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _hash(passage: Passage) -> str:
    return hashlib.sha256(f"{passage.name} {normalized(passage.summary)}".encode()).hexdigest()


def _distribution(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        return None


def _source_files(package: str) -> Iterator[tuple[Path, PurePosixPath]]:
    """(path on disk, path from the import root) of a package's API, sorted by the latter."""
    if package == _STANDARD_LIBRARY:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [(path, PurePosixPath(path.relative_to(root).as_posix())) for path in root.rglob("*.py")]
    else:
        found = _distribution(package)
        listed = (found.files or []) if found else []
        files = [(Path(str(entry.locate())), PurePosixPath(entry)) for entry in listed if entry.suffix == ".py"]
    for path, relative in sorted(files, key=lambda item: str(item[1])):
        if not _NO_API.intersection(relative.parts) and ".." not in relative.parts and path.is_file():
            yield path, relative


def _write(folder: Path, built: list[Passage], versions: dict[str, str]) -> None:
    with whole_folder(folder) as partial:
        for split in BUILT_IN_SPLITS:
            _write_beir(partial / split, split, [pair for pair in built if split_of(pair.summary) == split])
        write_json(partial / "versions.json", versions)


def _write_beir(folder: Path, split: str, pairs: list[Passage]) -> None:
    # Queries carry a mark before the name, since an id that is both a query's and a document's means something in BEIR.
    (folder / "qrels").mkdir(parents=True)
    documents = [json.dumps({"_id": pair.name, "title": "", "text": pair.text}) for pair in pairs]
    queries = [json.dumps({"_id": f"q:{pair.name}", "text": pair.summary}) for pair in pairs]
    judgments = ["query-id\tcorpus-id\tscore"] + [f"q:{pair.name}\t{pair.name}\t1" for pair in pairs]
    (folder / CORPUS).write_text("\n".join(documents) + "\n", encoding="utf-8")
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n", encoding="utf-8")
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judgments) + "\n", encoding="utf-8")
