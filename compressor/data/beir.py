"""Collections in BEIR's layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compressor.data.collection import Collection
from compressor.data.fault_list import FaultList
from compressor.data.lines import read_records, text_of
from compressor.data.trec import read_qrels
from compressor.data_reference import CORPUS
from compressor.errors import suggest

_QRELS_SUFFIXES = (".tsv", ".txt", ".qrels")


def read_beir(folder: Path, split: str | None, *, skip_empty: bool = False) -> Collection:
    """Read one split of a BEIR folder. A document's text is its title, a space and its text, stripped.

    Without ``qrels`` the folder is an unlabelled collection: ``split`` must be None and all queries are taken. With
    ``qrels`` the queries are those of the split's judgments, in the order of ``queries.jsonl``.

    Raises:
        InputError: every fault of the files, with file and line; a missing split, with those that exist.
    """
    faults = FaultList()
    qrels_path = _qrels_path(folder, split, faults)
    empty: set[str] = set()
    documents = _read_texts(folder / CORPUS, faults, "document", titles={}, skipped=empty if skip_empty else None)
    queries = _read_texts(folder / "queries.jsonl", faults, "query")
    qrels: dict[str, dict[str, int]] = {}
    if qrels_path is not None:
        qrels = _known(qrels_path, queries, documents, empty, faults)
        queries = {query: text for query, text in queries.items() if query in qrels}
        qrels = {query: qrels[query] for query in queries}
    faults.raise_if_any()
    name = f"{folder.name}/{split}" if split else folder.name
    return Collection(
        name=name,
        identity=str(folder),
        queries=queries,
        documents=documents,
        qrels=qrels,
        skipped=frozenset(empty),
    )


def read_documents(folder: Path, *, skip_empty: bool = False) -> Collection:
    """Read the documents of a BEIR folder alone, of all splits, as `read_beir` reads them.

    Raises:
        InputError: every fault of the corpus, with its line.
    """
    faults = FaultList()
    empty: set[str] = set()
    titles: dict[str, str] = {}
    documents = _read_texts(folder / CORPUS, faults, "document", titles=titles, skipped=empty if skip_empty else None)
    faults.raise_if_any()
    return Collection(
        name=folder.name,
        identity=str(folder),
        queries={},
        documents=documents,
        qrels={},
        skipped=frozenset(empty),
        titles=titles,
    )


def check_split(folder: Path, split: str | None) -> None:
    """Check that a BEIR folder has a split.

    Raises:
        InputError: it has not; names those that it has.
    """
    faults = FaultList()
    _qrels_path(folder, split, faults)
    faults.raise_if_any()


def splits_of(folder: Path) -> dict[str, Path]:
    """Return the qrels files of a BEIR folder by the name of their split, sorted."""
    files = sorted((folder / "qrels").glob("*")) if (folder / "qrels").is_dir() else []
    return {path.stem: path for path in files if path.suffix in _QRELS_SUFFIXES}


def _qrels_path(folder: Path, split: str | None, faults: FaultList) -> Path | None:
    splits = splits_of(folder)
    if split in splits:
        return splits[split]
    if not splits and split is not None:
        fix = "leave the split away to use the collection without labels"
        faults.add(folder, "qrels", f"no judgments, so no split '{split}'", fix=fix)
    elif splits:
        found = f"no split '{split}'" if split else "no split in the reference"
        fix = suggest(split, splits) if split else f"write {folder.name}/{next(iter(splits))}"
        faults.add(folder, "qrels", found, ", ".join(splits), fix)
    return None


def _read_texts(
    path: Path, faults: FaultList, kind: str, *, titles: dict[str, str] | None = None, skipped: set[str] | None = None
) -> dict[str, str]:
    """Read texts by id; with ``titles``, a text begins with its title, which is noted there too."""
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    before = faults.count
    for number, record in read_records(path, faults):
        identifier = text_of(record, "_id", path, number, faults)
        text = text_of(record, "text", path, number, faults)
        title = record.get("title") or ""
        if not isinstance(title, str):
            faults.add(path, number, f"'title' is {title!r}", "a string")
            continue
        if identifier is None or text is None:
            continue
        whole = text.strip() if titles is None else f"{title} {text}".strip()
        if not identifier:
            faults.add(path, number, "an empty '_id'", "a string of at least one character")
        elif (first := lines.setdefault(identifier, number)) != number:
            faults.add(
                path, number, f"the {kind} id {identifier!r} again", "unique ids", f"line {first} has it already"
            )
        elif whole:
            texts[identifier] = whole
            if titles is not None and title.strip():
                titles[identifier] = title.strip()
        elif skipped is not None:
            skipped.add(identifier)
        else:
            fix = "remove the line, or set 'skip_empty: true'" if titles is not None else "remove the line"
            faults.add(path, number, f"the {kind} {identifier!r} without text", fix=fix)
            texts[identifier] = ""  # known, so that its judgments are not reported as faults of their own
    if not texts and faults.count == before:
        faults.add(path, "", "an empty file", f"one {kind} a line")
    return texts


def _known(
    path: Path, queries: dict[str, str], documents: dict[str, str], skipped: set[str], faults: FaultList
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    before = faults.count
    judgments = read_qrels(path, faults)
    for number, query, document, grade in judgments:
        if query not in queries:
            faults.add(path, number, f"the query id {query!r}", "ids of queries.jsonl", suggest_id(query, queries))
        elif document in documents:
            qrels.setdefault(query, {})[document] = grade
        elif document not in skipped:
            faults.add(
                path, number, f"the document id {document!r}", f"ids of {CORPUS}", suggest_id(document, documents)
            )
    if not judgments and faults.count == before:
        faults.add(path, "", "no judgments", "query-id, corpus-id, score", "a split needs at least one judged query")
    return qrels


def suggest_id(found: str, known: Mapping[str, str]) -> str:
    """Point out the usual slips: spaces, case, leading zeros. Nearness of spelling means nothing between ids."""
    forms = (found.strip(), found.lower(), found.upper(), found.lstrip("0"))
    near = next((form for form in forms if form != found and form in known), None)
    return f"did you mean {near!r}?" if near else ""
