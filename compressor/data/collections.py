"""From a reference in a recipe to data that can be ranked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection as Sized
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compressor.data.api_docs import read_api_docs
from compressor.data.beir import check_split, read_beir, read_documents, suggest_id
from compressor.data.bm25 import bm25_candidates
from compressor.data.collection import Collection
from compressor.data.fault_list import FaultList
from compressor.data.generated_queries import check_generator, generated_queries
from compressor.data.ir_dataset import open_ir_dataset, read_ir_dataset, scored_documents
from compressor.data.made_queries import made_queries, with_source
from compressor.data.pair_files import read_pairs
from compressor.data.ranking_data import RankingData, in_turn
from compressor.data.trec import Run, read_run
from compressor.data_reference import BUILT_IN, SCORED, DataReference
from compressor.errors import Fault, InputError
from compressor.query_settings import MadeQueries


def check_reference(reference: DataReference, base: Path) -> None:
    """Check that what a reference names exists, its split included; reads no texts.

    Raises:
        InputError: there is no such collection, split, run or file; names what there is.
    """
    reference = reference.resolved(base)
    is_folder = reference.collection not in (None, BUILT_IN) and reference.ir_datasets_id is None
    if reference.make_queries and reference.make_queries.generator:
        check_generator(reference.make_queries.generator)
    if is_folder and not reference.make_queries:
        check_split(Path(str(reference.collection)), reference.split)


def read_collection(reference: DataReference, base: Path) -> Collection:
    """Read a collection's queries, documents and judgments, without candidates.

    Raises:
        InputError: all faults of its files at once; or the reference names pairs or made queries, which are no part of
            a collection.
    """
    if reference.pairs is not None or reference.make_queries:
        raise InputError(Fault(source=str(reference), found="no collection with queries", allowed="COLLECTION[/SPLIT]"))
    return _opened(reference.resolved(base), {})[0]


def load_data(reference: DataReference, *, depth: int = 100, base: Path | None = None) -> RankingData:
    """Read a collection and its first-stage candidates.

    Args:
        reference: what to read.
        depth: candidates a query, unless the reference says ``bm25:DEPTH``. A list is shorter where the first stage
            found less. Of several first stages each is as deep as that, so their union is deeper.
        base: the folder that relative paths mean; the working directory where it is None.

    Raises:
        InputError: all faults of the collection's files at once, each with file and line.
    """
    reference = reference.resolved(base or Path.cwd())
    if reference.pairs is not None:
        data = read_pairs(Path(reference.pairs))
        return _narrowed(data, _selected(data.queries, reference))
    if reference.make_queries:
        return _with_made_queries(reference, depth)
    depths = {stage.name: stage.depth or depth for stage in reference.first_stages}
    spare = 1 if reference.drop_same_id else 0  # the dropped candidate must not cost a place
    collection, given = _opened(reference, {name: one + spare for name, one in depths.items()})
    queries = _known_to_all(given, collection, reference)
    chosen = {query: queries[query] for query in _selected(queries, reference)}
    qrels = collection.qrels
    if reference.drop_same_id:
        qrels = {query: {key: grade for key, grade in found.items() if key != query} for query, found in qrels.items()}
    runs: dict[str, dict[str, list[str]]] = {}
    for name, most in depths.items():
        run = given.get(name)
        if run is None:
            ranked = bm25_candidates(chosen, collection.documents, most + spare, source=str(reference))
        else:
            ranked = {query: [place.document for place in run.get(query, ())] for query in chosen}
        runs[name] = {
            query: [
                key for key in found if key in collection.documents and not (reference.drop_same_id and key == query)
            ][:most]
            for query, found in ranked.items()
        }
    return RankingData(
        name=collection.name,
        collection=collection.identity,
        first_stage=", in turn with ".join(f"{name}, depth {most}" for name, most in depths.items()),
        queries=chosen,
        documents=collection.documents,
        qrels={query: qrels[query] for query in chosen if query in qrels},
        candidates={query: in_turn([run[query] for run in runs.values()]) for query in chosen},
        runs=runs,
    )


def _with_made_queries(reference: DataReference, depth: int) -> RankingData:
    """Read a collection's documents alone, and make queries of them; only the chosen ones are given candidates."""
    made_how = reference.make_queries
    assert made_how is not None  # noqa: S101  # `load_data` asked
    depth = reference.first_stages[0].depth or depth
    collection = _documents_of(reference)
    if made_how.generator:
        made = generated_queries(
            collection, made_how.generator, made_how.per_document, lambda ids: _selected(ids, reference)
        )
        chosen = list(made)
    else:
        made = _cut_out(collection, made_how, reference)
        chosen = _selected(made, reference)
    queries = {query: made[query][0] for query in chosen}
    ranked = bm25_candidates(queries, collection.documents, depth, source=str(reference))
    candidates = {query: with_source(found, made[query][1], depth) for query, found in ranked.items()}
    return RankingData(
        name=f"{collection.name}, made queries",
        collection=f"{collection.identity}, made queries",
        first_stage=f"bm25, depth {depth}, and the document that the query was made of",
        queries=queries,
        documents=collection.documents,
        qrels={},
        candidates=candidates,
        runs={"bm25": candidates},
    )


def _cut_out(collection: Collection, made_how: MadeQueries, reference: DataReference) -> dict[str, tuple[str, str]]:
    made = made_queries(collection, made_how.kinds or (), made_how.per_document)
    if not made:
        fault = Fault(
            source=str(reference),
            where="make_queries",
            found=f"no {', '.join(made_how.kinds or ())} in {len(collection.documents):,} documents",
            fix="name other kinds: sentences and keywords are found in most texts",
        )
        raise InputError(fault)
    return made


def _documents_of(reference: DataReference) -> Collection:
    if reference.collection == BUILT_IN or reference.ir_datasets_id is not None:
        return _opened(reference, {})[0]
    return read_documents(Path(str(reference.collection)), skip_empty=reference.skip_empty)


def _opened(reference: DataReference, depths: Mapping[str, int]) -> tuple[Collection, dict[str, Run]]:
    """The collection, and by name its first stages that BM25 is not to make, each checked and cut to its depth."""
    runs = _runs_of(reference, depths)
    if reference.ir_datasets_id is not None:
        dataset = open_ir_dataset(reference.ir_datasets_id)
        if SCORED in depths:
            runs[SCORED] = _cut(scored_documents(reference.ir_datasets_id, dataset), depths[SCORED])
        found = {place.document for run in runs.values() for places in run.values() for place in places}
        needed = sorted(found) if depths and len(runs) == len(depths) else None
        collection = read_ir_dataset(reference.ir_datasets_id, dataset, needed)
    elif reference.collection == BUILT_IN:
        collection = read_api_docs(str(reference.split))
    else:
        collection = read_beir(Path(str(reference.collection)), reference.split, skip_empty=reference.skip_empty)
    files = {stage.name: stage.run_file for stage in reference.first_stages}
    for name, run in runs.items():
        _check_run(files[name] or str(reference), run, collection)
    return collection, runs


def _runs_of(reference: DataReference, depths: Mapping[str, int]) -> dict[str, Run]:
    faults, runs = FaultList(), dict[str, Run]()
    for stage in reference.first_stages:
        if stage.run_file is not None and stage.name in depths:
            runs[stage.name] = _cut(read_run(Path(stage.run_file), faults), depths[stage.name])
    faults.raise_if_any()
    return runs


def _cut(run: Run, depth: int) -> Run:
    return {query: found[:depth] for query, found in run.items()}


def _known_to_all(runs: Mapping[str, Run], collection: Collection, reference: DataReference) -> dict[str, str]:
    """The queries of a collection; without judgments, those that every run knows: no list would hold the others'."""
    if collection.qrels:
        return collection.queries
    queries = {query: text for query, text in collection.queries.items() if all(query in run for run in runs.values())}
    if not queries:
        found = f"no query that all of {', '.join(runs)} know"
        raise InputError(Fault(source=str(reference), where="candidates", found=found, fix="take one of them away"))
    return queries


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
