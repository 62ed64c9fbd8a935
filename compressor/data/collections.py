"""From a reference in a recipe to data that can be ranked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection as Sized
from dataclasses import replace
from pathlib import Path

from compressor.data.api_docs import read_api_docs
from compressor.data.beir import check_split, read_beir, read_documents, suggest_id
from compressor.data.bm25 import bm25_candidates
from compressor.data.collection import Collection
from compressor.data.fault_list import FaultList
from compressor.data.ir_dataset import open_ir_dataset, read_ir_dataset, scored_documents
from compressor.data.made_queries import made_queries, with_source
from compressor.data.pair_files import read_pairs
from compressor.data.ranking_data import RankingData
from compressor.data.trec import Run, read_run
from compressor.data_reference import BUILT_IN, DataReference
from compressor.errors import Fault, InputError


def check_reference(reference: DataReference, base: Path) -> None:
    """Check that what a reference names exists, its split included; reads no texts.

    Raises:
        InputError: there is no such collection, split, run or file; names what there is.
    """
    reference = reference.resolved(base)
    is_folder = reference.collection not in (None, BUILT_IN) and reference.ir_datasets_id is None
    if is_folder and not reference.make_queries:
        check_split(Path(str(reference.collection)), reference.split)


def load_data(reference: DataReference, *, depth: int = 100, base: Path | None = None) -> RankingData:
    """Read a collection and its first-stage candidates.

    Args:
        reference: what to read.
        depth: candidates a query, unless the reference says ``bm25:DEPTH``. A list is shorter where the first stage
            found less.
        base: the folder that relative paths mean; the working directory where it is None.

    Raises:
        InputError: all faults of the collection's files at once, each with file and line.
    """
    reference = reference.resolved(base or Path.cwd())
    depth = reference.bm25_depth or depth
    if reference.pairs is not None:
        data = read_pairs(Path(reference.pairs))
        return _narrowed(data, _selected(data.queries, reference))
    if reference.make_queries:
        return _with_made_queries(reference, depth)
    spare = 1 if reference.drop_same_id else 0  # the dropped candidate must not cost a place
    collection, run = _opened(reference, depth + spare)
    queries = collection.queries
    if run is not None:
        _check_run(str(reference.run_file or reference), run, collection)
        queries = queries if collection.qrels else {query: queries[query] for query in queries if query in run}
    chosen = _selected(queries, reference)
    if run is None:
        wanted = {query: queries[query] for query in chosen}
        ranked = bm25_candidates(wanted, collection.documents, depth + spare, source=str(reference))
    else:
        ranked = {query: [place.document for place in run[query]] for query in chosen}
        ranked = {
            query: [document for document in ranked[query] if document in collection.documents] for query in chosen
        }
    qrels = collection.qrels
    if reference.drop_same_id:
        ranked = {query: [document for document in found if document != query] for query, found in ranked.items()}
        qrels = {query: {key: grade for key, grade in found.items() if key != query} for query, found in qrels.items()}
    first_stage = Path(reference.run_file).name if reference.run_file else reference.candidates.split(":")[0]
    return RankingData(
        name=collection.name,
        collection=collection.identity,
        first_stage=f"{first_stage}, depth {depth}",
        queries={query: queries[query] for query in chosen},
        documents=collection.documents,
        qrels={query: qrels[query] for query in chosen if query in qrels},
        candidates={query: found[:depth] for query, found in ranked.items()},
    )


def _with_made_queries(reference: DataReference, depth: int) -> RankingData:
    """Read a collection's documents alone, and make queries of them; only the chosen ones are given candidates."""
    made_how = reference.make_queries
    assert made_how is not None  # noqa: S101  # `load_data` asked
    collection = _documents_of(reference)
    made = made_queries(collection, made_how.kinds, made_how.per_document)
    if not made:
        fault = Fault(
            source=str(reference),
            where="make_queries",
            found=f"no {', '.join(made_how.kinds)} in {len(collection.documents):,} documents",
            fix="name other kinds: sentences and keywords are found in most texts",
        )
        raise InputError(fault)
    chosen = _selected(made, reference)
    queries = {query: made[query][0] for query in chosen}
    ranked = bm25_candidates(queries, collection.documents, depth, source=str(reference))
    return RankingData(
        name=f"{collection.name}, made queries",
        collection=f"{collection.identity}, made queries",
        first_stage=f"bm25, depth {depth}, and the document that the query was made of",
        queries=queries,
        documents=collection.documents,
        qrels={},
        candidates={query: with_source(found, made[query][1]) for query, found in ranked.items()},
    )


def _documents_of(reference: DataReference) -> Collection:
    if reference.collection == BUILT_IN or reference.ir_datasets_id is not None:
        return _opened(reference, depth=1)[0]
    return read_documents(Path(str(reference.collection)), skip_empty=reference.skip_empty)


def _opened(reference: DataReference, depth: int) -> tuple[Collection, Run | None]:
    """The collection, and its first-stage run cut to ``depth``, or None where BM25 is to make one."""
    if reference.ir_datasets_id is not None:
        dataset = open_ir_dataset(reference.ir_datasets_id)
        if reference.candidates == "scoreddocs":
            run: Run | None = _cut(scored_documents(reference.ir_datasets_id, dataset), depth)
        else:
            run = _run_of(reference, depth)
        needed = None if run is None else sorted({place.document for found in run.values() for place in found})
        return read_ir_dataset(reference.ir_datasets_id, dataset, needed), run
    if reference.collection == BUILT_IN:
        return read_api_docs(str(reference.split)), _run_of(reference, depth)
    folder = Path(str(reference.collection))
    return read_beir(folder, reference.split, skip_empty=reference.skip_empty), _run_of(reference, depth)


def _run_of(reference: DataReference, depth: int) -> Run | None:
    if reference.run_file is None:
        return None
    faults = FaultList()
    run = read_run(Path(reference.run_file), faults)
    faults.raise_if_any()
    return _cut(run, depth)


def _cut(run: Run, depth: int) -> Run:
    return {query: found[:depth] for query, found in run.items()}


def _check_run(source: str, run: Run, collection: Collection) -> None:
    faults = FaultList()
    for found in run.values():
        for place in found:
            if place.document not in collection.documents and place.document not in collection.skipped:
                near = suggest_id(place.document, collection.documents)
                faults.add(source, place.line or "", f"the document id {place.document!r}", "ids of the corpus", near)
    for query in collection.qrels:
        if query not in run:
            faults.add(
                source, f"query {query!r}", "no candidates", "every query of the split", "take another run, or bm25"
            )
    if not any(query in run for query in collection.queries):
        known = ", ".join(map(repr, list(collection.queries)[:3]))
        faults.add(source, "", f"no query of {collection.name}", f"query ids like {known}")
    faults.raise_if_any()


def _selected(queries: Sized[str], reference: DataReference) -> list[str]:
    """Ids of the queries to take, in the order of the collection."""
    faults = FaultList()
    for query in reference.exclude_queries:
        if query not in queries:
            faults.add(str(reference), "exclude_queries", f"{query!r}", "ids of queries of this split")
    excluded = set(reference.exclude_queries)
    left = [query for query in queries if query not in excluded]
    if not left:
        faults.add(str(reference), "exclude_queries", "every query of the split", "at least one query has to stay")
    faults.raise_if_any()
    by_hash = sorted(left, key=lambda query: hashlib.sha256(query.encode()).hexdigest())
    chosen = set(by_hash[: reference.queries])
    return [query for query in left if query in chosen]


def _narrowed(data: RankingData, chosen: list[str]) -> RankingData:
    candidates = {query: data.candidates[query] for query in chosen}
    used = {document for found in candidates.values() for document in found}
    return replace(
        data,
        queries={query: data.queries[query] for query in chosen},
        documents={document: text for document, text in data.documents.items() if document in used},
        qrels={query: data.qrels[query] for query in chosen if query in data.qrels},
        candidates=candidates,
    )
