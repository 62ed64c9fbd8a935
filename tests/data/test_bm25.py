"""BM25 against its formula, its ties, and its cache."""

from __future__ import annotations

import math

import pytest

from compressor.data import bm25
from compressor.data.bm25 import bm25_candidates, terms
from compressor.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats and a Dog", ["cat", "dog"]),
        ("queries, houses; glass bus", ["query", "house", "glass", "bus"]),
        ("x = y_1", ["y_1"]),
        ("Ähren über 3.14", ["ähren", "über", "14"]),
        ("", []),
    ],
)
def test_terms(text, expected):
    assert terms(text) == expected


def test_the_order_is_that_of_the_formula():
    documents = {"a": "red red fox", "b": "red fox den pup", "c": "blue whale", "d": "fox fox fox fox fox fox fox"}
    query = "red fox"

    def score(text: str) -> float:
        words = text.split()
        mean = sum(len(other.split()) for other in documents.values()) / len(documents)
        total = 0.0
        for term in query.split():
            frequency, n = words.count(term), sum(term in other.split() for other in documents.values())
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            total += idf * frequency / (frequency + 1.2 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    expected = sorted((key for key in documents if score(documents[key]) > 0), key=lambda key: -score(documents[key]))
    assert bm25_candidates({"q": query}, documents, 10, source="test") == {"q": expected}


def test_ties_go_by_document_id_also_at_the_cut():
    names = [f"d{number:03}" for number in range(200)]
    documents = {name: "a longer text" if name > "d150" else "same text" for name in reversed(names)}
    for depth in (1, 70, 151, 180):
        assert bm25_candidates({"q": "text"}, documents, depth, source="test")["q"] == names[:depth]


def test_a_query_without_a_known_word_has_no_candidates():
    assert bm25_candidates({"q": "zebra", "p": "the"}, {"a": "fox"}, 5, source="test") == {"q": [], "p": []}
    assert bm25_candidates({"q": "zebra"}, {"a": "!"}, 5, source="test") == {"q": []}


def test_the_second_call_reads_the_cache(cache, monkeypatch):
    documents = {"a": "fox", "b": "red fox"}
    first = bm25_candidates({"q": "fox"}, documents, 5, source="test")
    assert len(list((cache / "candidates").iterdir())) == 1

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(bm25, "_ranked", fail)
    assert bm25_candidates({"q": "fox"}, documents, 5, source="test") == first
    with pytest.raises(AssertionError, match="computed again"):
        bm25_candidates({"q": "fox"}, documents, 4, source="test")
    with pytest.raises(AssertionError, match="computed again"):
        bm25_candidates({"q": "fox"}, documents | {"a": "foxes"}, 5, source="test")


def test_a_collection_too_large_for_memory_is_refused(monkeypatch):
    monkeypatch.setattr(bm25, "MAX_DOCUMENTS", 2)
    with pytest.raises(InputError, match="big: found 3 documents; allowed: BM25 over at most 2 documents"):
        bm25_candidates({}, dict.fromkeys("abc", "x"), 5, source="big")


def test_a_missing_bm25s_says_how_to_install_it(monkeypatch):
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(InputError, match=r"pip install 'rankpress\[bench\]', or give a run file as 'candidates'"):
        bm25_candidates({"q": "a"}, {"d": "a"}, 5, source="test")


def test_a_cache_folder_that_cannot_be_made_is_a_fault_of_the_user_s(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"a cache folder that cannot be made .*; name a folder .* in RANKPRESS_CACHE"):
        bm25_candidates({"q": "a"}, {"d": "a"}, 5, source="test")
