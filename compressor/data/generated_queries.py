"""Queries that a language model writes for documents, kept line by line: a kill costs the batch at hand."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.data.cache import cache_folder
from compressor.data.collection import Collection
from compressor.data.made_queries import fit
from compressor.data.normalization import normalized
from compressor.errors import Fault, InputError, RunError
from compressor.progress import progress
from compressor.query_settings import QueryGenerator
from compressor.storage import HeldError, sha256_json, sole_writer

if TYPE_CHECKING:
    from types import ModuleType

_FILE = "queries.jsonl"
_RULES = 1  # raise it when the same model and settings come to give other texts
_SPEED = {"batch_tokens"}  # settings that change no text
_POLL_S = 0.5

_Key = tuple[str, int]  # hash of a document, number of its query


def generated_queries(
    collection: Collection,
    settings: QueryGenerator,
    per_document: int,
    choose: Callable[[Mapping[str, str]], Iterable[str]],
) -> dict[str, tuple[str, str]]:
    """Return (text, id of the document it was written for) by query id, in the order of the documents.

    A model is asked once for each chosen query: what it wrote is kept in the cache, by the hashes of its files and
    settings and of the document, so that a killed run goes on, and a larger sample asks only for what is new. Empty and
    unfinished outputs, those too long to be asked and, of those that read alike, all but the first are left out; copies
    of a document are asked for once.

    Args:
        collection: its documents' texts.
        settings: the model and how it is asked.
        per_document: queries to ask for, each sampled anew.
        choose: returns the ids of the queries to make, out of those that can be made.

    Raises:
        InputError: the model cannot be used, a package is missing, or no query was left.
    """
    sources = _sources(collection, per_document)
    chosen = list(choose({query: document for query, (document, _) in sources.items()}))
    wanted = [(collection.documents[sources[query][0]], sources[query][1]) for query in chosen]
    written = _written(wanted, settings)
    made: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for query, text in zip(chosen, written, strict=True):
        query_text = fit(text, "questions")
        key = normalized(query_text)
        if query_text and key not in seen:
            seen.add(key)
            made[query] = (query_text, sources[query][0])
    if not made:
        found = f"no query to use among {len(chosen):,} that {settings.model} wrote: empty, unfinished or too long"
        fix = "take another model or prompt, or raise max_new_tokens"
        raise InputError(Fault(source=collection.name, where="make_queries.generator", found=found, fix=fix))
    if n_left_out := len(chosen) - len(made):
        why = "empty, unfinished, too long, or like others"
        said = f"{collection.name}: {n_left_out:,} of {len(chosen):,} written queries left out: {why}"
        print(said, file=sys.stderr, flush=True)
    return made


def check_generator(settings: QueryGenerator) -> None:
    """Check that a model's folder holds one, or that its name may be a hub id; downloads nothing.

    Raises:
        InputError: it does not, or a package is missing.
    """
    _family().generator_folder(settings.model, with_weights=False)


def _sources(collection: Collection, per_document: int) -> dict[str, tuple[str, int]]:
    """Return (document id, number) by the id of each query that can be made."""
    seen: set[str] = set()
    sources: dict[str, tuple[str, int]] = {}
    for document, text in collection.documents.items():
        copy = hashlib.sha256(normalized(text).encode()).hexdigest()
        if copy not in seen:
            seen.add(copy)
            for number in range(per_document):
                sources[f"{document}~written" + (f"-{number + 1}" if number else "")] = (document, number)
    return sources


def _written(wanted: Sequence[tuple[str, int]], settings: QueryGenerator) -> list[str]:
    """Return what the model wrote for each document and number, out of the cache or now."""
    family = _family()
    folder = family.generator_folder(settings.model)
    how = settings.model_dump(mode="json", exclude={"model", *_SPEED})
    place = cache_folder("generated-queries", sha256_json([_RULES, family.generator_fingerprint(folder), how]))
    keys = [(_hash(document), number) for document, number in wanted]
    while True:
        known = _read(place / _FILE)
        if all(key in known for key in keys):
            return [known[key] for key in keys]
        try:
            with sole_writer(place):
                known = _read(place / _FILE)
                missing = {key: want for key, want in zip(keys, wanted, strict=True) if key not in known}
                if missing:
                    _write(place / _FILE, missing, family.QueryWriter(folder, settings), family, settings)
        except HeldError:
            time.sleep(_POLL_S)  # another run is asking the same model


def _write(
    path: Path, missing: Mapping[_Key, tuple[str, int]], writer: Any, family: Any, settings: QueryGenerator
) -> None:
    keys = list(missing)
    orders = [family.Order(document=document, seed=_seed(settings.seed, key)) for key, (document, _) in missing.items()]
    with (
        path.open("ab") as stream,
        progress(f"Writing queries with {Path(settings.model).name}", len(orders)) as advance,
    ):
        stream.truncate(_whole_bytes(path))
        for batch in writer.write(orders, advance):
            lines = [
                json.dumps({"document": keys[row][0], "number": keys[row][1], "query": text}, ensure_ascii=False)
                for row, text in batch
            ]
            try:
                stream.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
                stream.flush()
                os.fsync(stream.fileno())
            except OSError as error:
                raise RunError(f"{path}: queries cannot be written ({error.strerror}); what is there stays") from None


def _read(path: Path) -> dict[_Key, str]:
    """Read what was written; a line that a kill or a power cut left broken counts as missing."""
    found: dict[_Key, str] = {}
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            record = json.loads(line)
            found[str(record["document"]), int(record["number"])] = str(record["query"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _whole_bytes(path: Path) -> int:
    """How many bytes of a file are whole lines."""
    return path.read_bytes().rfind(b"\n") + 1


def _hash(document: str) -> str:
    return hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _seed(seed: int, key: _Key) -> int:
    digest = hashlib.sha256(f"{seed} {key[1]} {key[0]}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _family() -> ModuleType:
    try:
        from compressor.families import query_generator
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "compressor":
            raise
        found = f"a language model, and the package {package}, which runs it, is not installed"
        fix = "pip install 'rankpress[compress]' (with torch==2.13.0 named first for the CPU build)"
        raise InputError(Fault(source="make_queries.generator", found=found, fix=fix)) from None
    return query_generator
