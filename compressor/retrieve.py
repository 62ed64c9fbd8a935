"""`rankpress retrieve`: a dense first stage, found exactly and written as a TREC run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.commands import data_reference
from compressor.console import say
from compressor.data import check_reference, read_collection
from compressor.data.collection import Collection
from compressor.data.dense import nearest
from compressor.data.embeddings import embeddings
from compressor.data.trec import write_run
from compressor.errors import Fault, InputError
from compressor.storage import check_folder_to_write

if TYPE_CHECKING:
    from compressor.ranker.spec import RankerSpec


def retrieve(
    encoder: str,
    reference: str,
    *,
    depth: int,
    out: Path,
    query_prefix: str = "",
    passage_prefix: str = "",
    skip_empty: bool = False,
) -> None:
    """Find the documents nearest to each query of a collection and write them as a run.

    Texts are embedded through the encoder's exported fp32 graph; embeddings are kept in the cache, so that a killed run
    goes on and another depth costs nothing. The search is exact. Equal scores are ordered by document id.

    Args:
        encoder: a bi-encoder: a hub id, a folder, an ONNX file, or ``packaged:NAME``.
        reference: ``COLLECTION[/SPLIT]``.
        depth: documents a query; all where there are fewer.
        out: the run; an existing file is replaced.
        query_prefix, passage_prefix: what the encoder was trained to see before a text.
        skip_empty: leave out documents without text.

    Raises:
        InputError: the encoder, the collection or the place of the run is at fault; nothing is written.
        RunError: the encoder gives NaN.
    """
    from compressor.families import load_teacher, peek_teacher
    from compressor.training.scorers import open_embedder

    faults: list[Fault] = []
    checks: list[Callable[[], object]] = [
        lambda: _check_encoder(peek_teacher(encoder, Path()), encoder),
        lambda: check_reference(data_reference(reference), Path()),
        partial(_check_out, out),
    ]
    for check in checks:
        try:
            check()
        except InputError as error:
            faults += _of_encoder(error)
    if faults:
        raise InputError(faults)
    collection = read_collection(data_reference(reference).changed(skip_empty=skip_empty), Path())
    ranker = load_teacher(encoder, Path())
    embed, how = open_embedder(ranker, encoder)
    say(f"{collection.name}: {len(collection.queries):,} queries, {len(collection.documents):,} documents; {how}")
    ids = sorted(collection.documents)
    name, cached = Path(encoder).name, partial(embeddings, embed=embed, encoder=ranker.fingerprint)
    passages = cached([passage_prefix + collection.documents[key] for key in ids], name=name, what="documents")
    asked = cached([query_prefix + text for text in collection.queries.values()], name=name, what="queries")
    rows, scores = nearest(np.concatenate(asked), passages, depth)
    run = {
        query: [(ids[row], float(score)) for row, score in zip(found, values, strict=True)]
        for query, found, values in zip(collection.queries, rows, scores, strict=True)
    }
    write_run(out, run, tag="-".join(name.split()))
    say(f"{out}: {rows.shape[1]} documents for each query{_recall(collection, run)}; name it under 'candidates'")


def _check_encoder(spec: RankerSpec, encoder: str) -> None:
    if spec.output_name != "embedding":
        allowed = "a bi-encoder, which gives a vector for each text"
        fix = "name an encoder, such as packaged:all-MiniLM-L6-v2"
        found = f"{encoder}, a cross-encoder, which cannot search"
        raise InputError(Fault(source="encoder", found=found, allowed=allowed, fix=fix))


def _of_encoder(error: InputError) -> list[Fault]:
    """Return the faults of an error; what families call the teacher is the encoder here."""
    return [replace(one, source="encoder") if one.source == "teacher" else one for one in error.faults]


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise InputError(Fault(source=out, found="a folder", allowed="the name of the file to write"))
    check_folder_to_write(out.parent)


def _recall(collection: Collection, run: dict[str, list[tuple[str, float]]]) -> str:
    """Say which share of the relevant documents was found, a mean over queries; nothing without judgments."""
    shares = []
    for query, grades in collection.qrels.items():
        relevant = {document for document, grade in grades.items() if grade > 0}
        if relevant:
            shares.append(len(relevant & {document for document, _ in run.get(query, ())}) / len(relevant))
    return f", with {np.mean(shares):.1%} of the relevant ones" if shares else ""
