"""Collections of the ir_datasets package, by id. The package is imported only when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compressor.data.collection import Collection
from compressor.data.trec import Place, Run
from compressor.data_reference import IR_DATASETS
from compressor.errors import Fault, InputError, suggest


def open_ir_dataset(identifier: str) -> Any:
    """Return the ``ir_datasets`` dataset of an id.

    Raises:
        InputError: the package is missing, the id is unknown, or it has no queries.
    """
    source = f"{IR_DATASETS}{identifier}"
    try:
        import ir_datasets
    except ImportError:
        fix = "pip install 'rankpress[ir-datasets]'"
        raise InputError(Fault(source=source, found="no package ir_datasets on this machine", fix=fix)) from None
    try:
        dataset = ir_datasets.load(identifier)
    except KeyError:
        near = suggest(identifier, [str(name) for name in ir_datasets.registry])
        fault = Fault(source=source, found=f"no collection '{identifier}'", allowed="ids of ir-datasets.com", fix=near)
        raise InputError(fault) from None
    if not dataset.has_queries():
        fix = "name a subset with queries, for instance one that ends in /test"
        raise InputError(Fault(source=source, found="a collection without queries", fix=fix))
    return dataset


def read_ir_dataset(identifier: str, dataset: Any, document_ids: Iterable[str] | None) -> Collection:
    """Read queries, judgments and documents; with ``document_ids`` only those documents are looked up.

    Documents without text are left out, with the judgments on them.

    Raises:
        InputError: the collection's files cannot be fetched or read.
    """
    try:
        queries = {query.query_id: _text(query) for query in dataset.queries_iter()}
        if document_ids is None:
            records = dataset.docs_iter()
        else:
            records = dataset.docs_store().get_many(list(document_ids)).values()
        documents = {record.doc_id: _text(record) for record in records}
        skipped = frozenset(document for document, text in documents.items() if not text)
        qrels: dict[str, dict[str, int]] = {}
        for judgment in dataset.qrels_iter() if dataset.has_qrels() else ():
            if judgment.query_id in queries and judgment.doc_id not in skipped:
                qrels.setdefault(judgment.query_id, {})[judgment.doc_id] = int(judgment.relevance)
    except OSError as error:
        fix = "see the network, and IR_DATASETS_HOME for files that are there already"
        fault = Fault(source=f"{IR_DATASETS}{identifier}", found=f"files that cannot be read ({error})", fix=fix)
        raise InputError(fault) from None
    if qrels:
        queries = {query: text for query, text in queries.items() if query in qrels}
    return Collection(
        name=identifier,
        identity=f"{IR_DATASETS}{identifier}",
        queries=queries,
        documents={document: text for document, text in documents.items() if text},
        qrels=qrels,
        skipped=skipped,
    )


def scored_documents(identifier: str, dataset: Any) -> Run:
    """Return the first stage that the collection brings along: best first.

    Raises:
        InputError: it brings none.
    """
    if not dataset.has_scoreddocs():
        fault = Fault(
            source=f"{IR_DATASETS}{identifier}",
            found="a collection without scored documents",
            allowed="candidates: bm25, bm25:DEPTH or a TREC run file",
        )
        raise InputError(fault)
    rows: dict[str, list[tuple[float, str]]] = {}
    for row in dataset.scoreddocs_iter():
        rows.setdefault(row.query_id, []).append((-float(row.score), row.doc_id))
    return {query: [Place(document, 0) for _, document in sorted(found)] for query, found in rows.items()}


def _text(record: Any) -> str:
    """The text of a query or a document: what ir_datasets calls its default text, else title, space, text."""
    if hasattr(record, "default_text"):
        return str(record.default_text()).strip()
    return f"{getattr(record, 'title', '') or ''} {record.text}".strip()
