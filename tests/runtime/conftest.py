"""Fixtures of the runtime's tests: folders that need neither torch nor a file outside the test's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.runtime import OnnxRanker
from tests.runtime.tiny_folder import WORDS, write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder folder; read it only."""
    return write_folder(tmp_path_factory.mktemp("folders") / "tiny-ranker")


@pytest.fixture(scope="session")
def ranker(folder: Path) -> OnnxRanker:
    return OnnxRanker.load(folder, threads=2)


@pytest.fixture(scope="session")
def pairs() -> list[tuple[str, str]]:
    """60 ragged pairs of 12 queries; some documents are longer than a row."""
    queries = [" ".join(WORDS[i : i + 1 + i % 4]) for i in range(12)]
    return [(queries[i % 12], " ".join((WORDS * 3)[i % 17 : i % 17 + 1 + (i * 7) % 40])) for i in range(60)]
