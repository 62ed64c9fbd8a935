"""First-stage candidates by BM25, the same on every machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compressor.data.cache import cache_folder
from compressor.errors import Fault, InputError
from compressor.progress import progress
from compressor.storage import sha256_json, write_whole

K1, B = 1.2, 0.75
MAX_DOCUMENTS = 2_000_000  # the index is held in memory: about 1 kB a passage
_RULES = 1  # raise it when the analysis below changes: cached candidates depend on it
_WORD = re.compile(r"\w\w+")
# Lucene's classic English list.
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with",
    )
)


def bm25_candidates(
    queries: Mapping[str, str], documents: Mapping[str, str], depth: int, *, source: str | Path
) -> dict[str, list[str]]:
    """Return the best ``depth`` documents for each query, best first, ties by document id.

    BM25 by bm25s in Lucene's form (k1 1.2, b 0.75); words of two characters and more in lower case, without Lucene's
    English stop words, plurals cut by Harman's S-stemmer ("How effective is suffixing?", JASIS 1991). A document that
    shares no word with the query is no candidate, so a list may be shorter than ``depth``. Results are kept in the
    cache folder under a hash of everything they depend on.

    Raises:
        InputError: bm25s is not installed, or the collection is too large for an index in memory.
    """
    if len(documents) > MAX_DOCUMENTS:
        fault = Fault(
            source=source,
            found=f"{len(documents):,} documents",
            allowed=f"BM25 over at most {MAX_DOCUMENTS:,} documents, which are held in memory",
            fix="give a first-stage run: 'candidates: path/to/run.trec' (or scoreddocs, for ir_datasets)",
        )
        raise InputError(fault)
    ids = sorted(documents)
    texts = [documents[identifier] for identifier in ids]
    key = sha256_json([_RULES, K1, B, depth, _bm25s_version(source), ids, texts, list(queries.items())])
    path = cache_folder("candidates") / f"{key}.json"
    if path.is_file():
        ranked = json.loads(path.read_text(encoding="utf-8"))
    else:
        ranked = _ranked(list(queries.values()), texts, depth)
        write_whole(path, json.dumps(ranked, separators=(",", ":")))
    return {query: [ids[row] for row in rows] for query, rows in zip(queries, ranked, strict=True)}


def _ranked(queries: list[str], documents: list[str], depth: int) -> list[list[int]]:
    """Rows of ``documents`` for each query. Documents must stand in the order of their ids, which decides ties."""
    import bm25s

    vocabulary: dict[str, int] = {}
    rows = []
    with progress("Indexing documents", len(documents)) as advance:
        for text in documents:
            rows.append([vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)])
            advance()
    if not vocabulary:
        return [[] for _ in queries]
    index = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy", csc_backend="numpy")
    index.index((rows, vocabulary), show_progress=False)
    ranked = []
    with progress("Retrieving candidates", len(queries)) as advance:
        for text in queries:
            known = [vocabulary[term] for term in terms(text) if term in vocabulary]
            scores = index.get_scores_from_ids(known) if known else np.zeros(len(documents), np.float32)
            ranked.append(_best(scores, depth))
            advance()
    return ranked


def _best(scores: np.ndarray, depth: int) -> list[int]:
    rows = np.flatnonzero(scores > 0)
    if len(rows) > depth:
        # Everything as good as the last place stays in, so that the ties there are broken by order and not by chance.
        last = np.partition(scores[rows], len(rows) - depth)[len(rows) - depth]
        rows = rows[scores[rows] >= last]
    best: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:depth].tolist()
    return best


def terms(text: str) -> list[str]:
    """Return the index terms of a text."""
    return [_singular(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word if word.endswith(("eies", "aies")) else f"{word[:-3]}y"
    if word.endswith(("us", "ss", "aes", "ees", "oes")):
        return word
    return word[:-1]


def _bm25s_version(source: str | Path) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bm25s")
    except PackageNotFoundError:
        fault = Fault(
            source=source,
            found="a first stage by BM25, but the package bm25s is not installed",
            fix="pip install 'rankpress[bench]', or give a run file as 'candidates'",
        )
        raise InputError(fault) from None
