"""ir_datasets behind a stand-in for the package, with the calls that version 0.5 and later have."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from compressor.data import load_data
from compressor.data_reference import DataReference
from compressor.errors import InputError

DOCUMENTS = {"d1": "Cats sleep.", "d2": "Dogs bark.", "d3": "", "d4": "Cats and dogs."}
QUERIES = {"1": "cats", "2": "dogs", "3": "birds"}


class Dataset:
    """One small dataset; ``scored`` are its scoreddocs, or None."""

    def __init__(self, scored: list[tuple[str, str, float]] | None = None) -> None:
        self.scored = scored
        self.looked_up: list[str] = []

    def has_queries(self):
        return True

    def has_qrels(self):
        return True

    def has_scoreddocs(self):
        return self.scored is not None

    def queries_iter(self):
        return [SimpleNamespace(query_id=key, default_text=lambda text=text: text) for key, text in QUERIES.items()]

    def qrels_iter(self):
        rows = [("1", "d1", 1), ("1", "d3", 1), ("2", "d2", 2)]
        return [SimpleNamespace(query_id=query, doc_id=doc, relevance=grade) for query, doc, grade in rows]

    def docs_iter(self):
        return [SimpleNamespace(doc_id=key, title="", text=text) for key, text in DOCUMENTS.items()]

    def docs_store(self):
        def get_many(ids):
            self.looked_up = list(ids)
            return {record.doc_id: record for record in self.docs_iter() if record.doc_id in ids}

        return SimpleNamespace(get_many=get_many)

    def scoreddocs_iter(self):
        return [SimpleNamespace(query_id=query, doc_id=doc, score=score) for query, doc, score in self.scored or []]


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    module = ModuleType("ir_datasets")
    known = {"pets/test": Dataset()}
    module.load = known.__getitem__  # type: ignore[attr-defined]
    module.registry = list(known)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ir_datasets", module)
    return known["pets/test"]


def load(**fields: str):
    return load_data(DataReference.model_validate({"collection": "ir_datasets:pets/test", **fields}))


def test_bm25_over_all_documents_that_have_text(dataset):
    data = load()
    assert data.name == "pets/test"
    assert data.queries == {"1": "cats", "2": "dogs"}
    assert data.documents == {key: text for key, text in DOCUMENTS.items() if text}
    assert data.qrels == {"1": {"d1": 1}, "2": {"d2": 2}}
    assert data.candidates == {"1": ["d1", "d4"], "2": ["d2", "d4"]}


def test_with_scored_documents_only_those_are_looked_up(dataset):
    dataset.scored = [("1", "d4", 0.5), ("1", "d1", 0.9), ("2", "d3", 2.0), ("2", "d2", 1.0)]
    data = load(candidates="scoreddocs")
    assert data.candidates == {"1": ["d1", "d4"], "2": ["d2"]}, "d3 has no text"
    assert dataset.looked_up == ["d1", "d2", "d3", "d4"]
    assert data.first_stage == "scoreddocs, depth 100"


def test_scored_documents_that_are_not_there(dataset):
    with pytest.raises(InputError, match="found a collection without scored documents; allowed: candidates: bm25"):
        load(candidates="scoreddocs")


def test_an_unknown_id_suggests_the_nearest(dataset):
    with pytest.raises(InputError, match=r"found no collection 'pets/tset'; .*did you mean 'pets/test'\?"):
        load_data(DataReference.model_validate("ir_datasets:pets/tset"))


def test_files_that_cannot_be_fetched(dataset, monkeypatch):
    def fail():
        raise ConnectionError("no route")

    monkeypatch.setattr(dataset, "queries_iter", fail)
    with pytest.raises(InputError, match=r"found files that cannot be read \(no route\); see the network"):
        load()


def test_the_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(InputError, match=r"found no package ir_datasets .*; pip install 'rankpress\[ir-datasets\]'"):
        load()
