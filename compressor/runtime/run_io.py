"""``rankpress rank``: requests from a file or standard input to a TREC run or JSONL."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np

from compressor.errors import Fault, InputError, suggest
from compressor.progress import progress
from compressor.runtime.rank_requests import RankRequest, read_requests
from compressor.runtime.ranker import EncodedSides, OnnxRanker, Ranked, ranked
from compressor.storage import check_folder_to_write, write_whole

OUTPUT_FORMATS = ("trec", "jsonl")
_INPUT_FORMATS: dict[str, Literal["jsonl", "tsv"]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv"}

_Scored: TypeAlias = tuple[RankRequest, list[Ranked]]


@dataclass(kw_only=True, slots=True)
class RankSummary:
    """What `rank_file` did.

    Attributes:
        n_queries: ranked queries.
        n_pairs: scored pairs.
        n_cut_documents: pairs whose document did not fit (for a bi-encoder: texts).
        n_cut_queries: pairs whose query was so long that it was cut as well.
    """

    n_queries: int = 0
    n_pairs: int = 0
    n_cut_documents: int = 0
    n_cut_queries: int = 0


def rank_file(
    folder: Path | str,
    input_path: Path | None,
    output_path: Path | None,
    *,
    format: str = "trec",
    top_k: int | None = None,
    threads: int | None = None,
    tag: str = "rankpress",
    file: str | None = None,
) -> RankSummary:
    """Rank the requests of an input with an exported folder.

    A file is checked as a whole before the first pair is scored; standard input is ranked query by query as it comes.
    An output file appears whole or not at all; lines on standard output are written as soon as they are known, so that
    those before an error stand.

    Args:
        folder: the ranker.
        input_path: JSONL (``.jsonl``, ``.ndjson``) or TSV (``.tsv``; other names: by the first character), in the forms
            of `request_lines`; None reads standard input.
        output_path: None writes to standard output.
        format: ``trec``, lines ``query_id Q0 document_id rank score tag``, in which tied scores are lowered by one
            float32 step each so that every reader keeps the order; or ``jsonl``, a line
            ``{"query_id", "documents": [{"id", "index", "rank", "score"}]}`` per query with the scores as they are.
        top_k: documents to write per query; None writes all.
        threads: threads of one operator; None takes what CPU affinity and cgroup quota allow.
        tag: name of the run in its last column.
        file: graph of the folder; None takes its main one.

    Raises:
        InputError: bad arguments, folder or input lines; lists all that could be found.
        RunError: the graph failed or gave NaN.
    """
    faults = _argument_faults(input_path, output_path, format, top_k, tag)
    if faults:
        raise InputError(faults)
    try:
        ranker: OnnxRanker | None = OnnxRanker.load(folder, file=file, threads=threads)
    except InputError as error:
        faults += error.faults
        ranker = None
    n_pairs, is_repeatable = None, input_path is not None and stat.S_ISREG(input_path.stat().st_mode)
    try:
        if is_repeatable:
            with _opened(input_path) as stream:
                n_pairs = sum(len(request.documents) for request in _requests(stream, input_path, format))
    except InputError as error:
        faults += error.faults
    if faults or ranker is None:
        raise InputError(faults)

    summary = RankSummary()
    render = _trec_lines(tag) if format == "trec" else _json_lines
    with _opened(input_path) as stream, progress(f"Ranking with {ranker.name}", n_pairs) as advance:
        requests = _requests(stream, input_path, format)
        scored = _scored(ranker, requests, top_k, summary, advance)
        if output_path is None:
            for item in scored:
                sys.stdout.write(render(item))
                sys.stdout.flush()
        else:
            write_whole(output_path, "".join(map(render, scored)))
    if summary.n_cut_queries:
        note = "pairs had a query so long that it was cut to make room for the document"
        print(f"note: {summary.n_cut_queries} of {summary.n_pairs} {note}", file=sys.stderr)
    return summary


def _argument_faults(
    input_path: Path | None, output_path: Path | None, format: str, top_k: int | None, tag: str
) -> list[Fault]:
    faults = []
    if input_path is not None and not input_path.exists():
        faults.append(Fault(source=input_path, found="no such file", allowed="JSONL or TSV, or standard input"))
    elif input_path is not None and input_path.is_dir():
        faults.append(Fault(source=input_path, found="a folder", allowed="a JSONL or TSV file"))
    if output_path is not None and output_path.is_dir():
        faults.append(Fault(source=output_path, found="a folder", allowed="the name of the file to write"))
    elif output_path is not None:
        try:
            check_folder_to_write(output_path.parent)
        except InputError as error:
            faults += error.faults
    if format not in OUTPUT_FORMATS:
        allowed = ", ".join(OUTPUT_FORMATS)
        faults.append(Fault(source="format", found=repr(format), allowed=allowed, fix=suggest(format, OUTPUT_FORMATS)))
    if top_k is not None and top_k < 1:
        faults.append(Fault(source="top_k", found=str(top_k), allowed="a whole number from 1"))
    if not tag or any(character.isspace() for character in tag):
        faults.append(Fault(source="tag", found=repr(tag), allowed="a name without white space"))
    return faults


def _opened(input_path: Path | None) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if input_path is None else input_path.open("rb")


def _requests(stream: BinaryIO, input_path: Path | None, format: str) -> Iterator[RankRequest]:
    source = "standard input" if input_path is None else str(input_path)
    input_format = _INPUT_FORMATS.get(input_path.suffix.lower()) if input_path is not None else None
    return read_requests(stream, source, format=input_format, ids_may_have_spaces=format != "trec")


def _scored(
    ranker: OnnxRanker,
    requests: Iterable[RankRequest],
    top_k: int | None,
    summary: RankSummary,
    advance: Callable[[int], object],
) -> Iterator[_Scored]:
    # Each query is scored by itself: in dynamic int8 a score depends a little on its batch, and so a ranking would
    # depend on which other queries stand in the file.
    for request in requests:
        encoded = ranker.encode([(request.query, document) for document in request.documents])
        rows = encoded.texts if isinstance(encoded, EncodedSides) else encoded
        found = ranker.score_list(encoded)
        summary.n_queries += 1
        summary.n_pairs += len(request.documents)
        summary.n_cut_documents += rows.n_cut_documents
        summary.n_cut_queries += rows.n_cut_queries
        advance(len(request.documents))
        yield request, ranked(found, top_k)


def _trec_lines(tag: str) -> Callable[[_Scored], str]:
    def render(scored: _Scored) -> str:
        request, ranking = scored
        lines = []
        lowest = np.float32(np.inf)
        for rank, item in enumerate(ranking, start=1):
            # Evaluators sort by score and each breaks ties in its own way; no two scores of ours are equal.
            lowest = min(np.float32(item.score), np.nextafter(lowest, np.float32(-np.inf)))
            lines.append(f"{request.query_id} Q0 {request.document_ids[item.index]} {rank} {lowest!s} {tag}\n")
        return "".join(lines)

    return render


def _json_lines(scored: _Scored) -> str:
    request, ranking = scored
    documents = [
        {"id": request.document_ids[item.index], "index": item.index, "rank": rank, "score": item.score}
        for rank, item in enumerate(ranking, start=1)
    ]
    return json.dumps({"query_id": request.query_id, "documents": documents}, ensure_ascii=False) + "\n"
