"""The record that every reader of a collection returns, before candidates are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """Queries, documents and judgments of one split.

    Args:
        name: ``folder/split``, for reports.
        identity: equal for the splits of one collection and different for others: a resolved path, or a built-in name.
        queries: text by id, in the order of the file; only those of the split.
        documents: text by id, in the order of the file.
        qrels: grade by query id and document id; empty where the split has no judgments.
        skipped: ids of documents without text, which were left out.
        titles: title by document id, where a document has one; its text begins with it.
    """

    name: str
    identity: str
    queries: dict[str, str]
    documents: Mapping[str, str]
    qrels: dict[str, dict[str, int]]
    skipped: frozenset[str] = frozenset()
    titles: Mapping[str, str] = field(default_factory=dict)
