"""A small collection on disk, and a cache folder of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

CORPUS = """\
{"_id": "d1", "title": "Cats", "text": "Cats sleep most of the day."}
{"_id": "d2", "title": "", "text": "Dogs bark at night."}
{"_id": "d3", "text": "Birds sing in the morning and sleep at night.", "metadata": {"url": "x"}}
{"_id": "d4", "title": "Fish", "text": "Fish swim."}
"""
QUERIES = """\
{"_id": "q1", "text": "when do cats sleep"}
{"_id": "q2", "text": "what do dogs do at night"}
{"_id": "q3", "text": "singing birds"}
"""
TEST_QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td3\t0\nq2\td2\t1\n"
TRAIN_QRELS = "query-id\tcorpus-id\tscore\nq3\td3\t1\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RANKPRESS_CACHE", str(folder))
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Callable[..., Path]:
    """Write a BEIR folder named ``pets``; keyword arguments by file replace its files, None leaves one out."""

    def write(**files: str | None) -> Path:
        folder = tmp_path / "pets"
        contents = {"corpus": CORPUS, "queries": QUERIES, "test": TEST_QRELS, "train": TRAIN_QRELS, **files}
        paths = {
            "corpus": folder / "corpus.jsonl",
            "queries": folder / "queries.jsonl",
            "test": folder / "qrels" / "test.tsv",
            "train": folder / "qrels" / "train.tsv",
            "run": folder / "runs" / "first.trec",
        }
        for name, content in contents.items():
            if content is not None:
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                paths[name].write_text(content, encoding="utf-8")
        return folder

    return write
