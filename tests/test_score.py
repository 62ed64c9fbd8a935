"""A teacher's run from the command line, and what it measures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import cli
from compressor.bench.quality import evaluate
from compressor.families import stock_checkpoint
from compressor.families.large_teacher import open_large
from compressor.large_settings import LargeRanker
from tests import tiny
from tests.families.large_rankers import build_t5


@pytest.fixture
def room(tmp_path, monkeypatch, tiny_ranker):
    """A folder with a large ranker, a small one, and a collection with a first-stage run."""
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "cache"))
    build_t5(tmp_path / "t5")
    stock_checkpoint(tiny_ranker, tmp_path / "cross")
    small, data = tmp_path / "small", tiny.build_data()
    (small / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", data.documents), ("queries", data.queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (small / f"{name}.jsonl").write_text("".join(lines))
    rows = [f"{q}\t{d}\t{grade}" for q, grades in data.qrels.items() for d, grade in grades.items()]
    (small / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rankpress", "score", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return _run


def read_run(path):
    found: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        found.setdefault(query, {})[document] = float(score)
    return found


def test_a_large_ranker_s_run_and_its_measures(room, run):
    code, out, err = run("{large: t5}", "--data", "small/test", "--out", "runs/t5.trec", "--candidates", 5)
    assert code == 0, err
    found = read_run(room / "runs" / "t5.trec")
    data = tiny.build_data()
    scorer = open_large(LargeRanker(large=str(room / "t5"))).open()
    assert list(found) == list(data.queries)
    assert max(map(len, found.values())) == 2, "all that BM25 finds"
    for query, scores in found.items():
        pairs = [(data.queries[query], data.documents[document].strip()) for document in scores]
        expected = scorer.score(pairs, lambda n: None)  # type: ignore[union-attr]
        np.testing.assert_allclose(list(scores.values()), expected, atol=2e-5)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
    measured = {line.split()[0]: float(line.split()[1]) for line in out.splitlines()}
    ranked = {query: list(scores) for query, scores in found.items()}
    by_rank = {query: -np.arange(len(documents), dtype=np.float32) for query, documents in ranked.items()}
    quality = evaluate(replace(data, candidates=ranked), by_rank, list(measured))
    assert set(measured) == {"nDCG@10", "RR@10"}
    for name, value in measured.items():
        assert value == pytest.approx(quality.per_query[name].mean(), abs=6e-5)
    assert "runs/t5.trec" in err


def test_small_rankers_and_score_files_are_teachers_too(room, run):
    code, first, err = run("cross", "--data", "small/test", "--out", "cross.trec", "--measures", "nDCG@10")
    assert code == 0, err
    code, again, err = run(
        "{scores: cross.trec}", "--data", "small/test", "--out", "again.trec", "--measures", "nDCG@10"
    )
    assert code == 0, err
    assert first == again
    assert first.startswith("nDCG@10 0.")
    once, twice = read_run(room / "cross.trec"), read_run(room / "again.trec")
    assert list(once) == list(twice)
    assert all(twice[query] == pytest.approx(scores) for query, scores in once.items())


@pytest.mark.parametrize(
    ("teacher", "more", "words"),
    [
        ("{large: t5, precision: int9}", (), "teacher.precision: found 'int9'; allowed: 'fp32', 'bf16', 'int8'"),
        ("{large: t5, window: 4}", (), "window, stride and list_scores are for 'scoring: first_token'"),
        ("{large: [}", (), "TEACHER: found '{large: [}'; allowed: a ranker's name, or a mapping such as"),
        ("self", (), "TEACHER: found 'self', and no recipe; name a ranker"),
        ("{large: nowhere}", (), "large ranker: found 'nowhere', no folder and no hub id"),
        ("{large: t5}", ("--measures", "nDGC@10"), "did you mean 'nDCG@10'?"),
    ],
)
def test_bad_input_is_said_and_nothing_is_written(room, run, teacher, more, words):
    code, _, err = run(teacher, "--data", "small/test", "--out", "run.trec", *more)
    assert code == 3
    assert words in err
    assert not (room / "run.trec").exists()
