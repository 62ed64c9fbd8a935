"""A dense run from the command line: what a bi-encoder finds, and what is said when it cannot."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import cli
from compressor.data import load_data
from compressor.data_reference import DataReference
from compressor.families import stock_checkpoint
from compressor.ranker.spec import SimilarityHead
from compressor.ranker.store import save_ranker
from compressor.training.scorers import open_embedder
from tests import tiny


@pytest.fixture(scope="module")
def encoder():
    return tiny.build_ranker(tiny.tiny_spec(head=SimilarityHead(pool="mean")))


@pytest.fixture
def room(tmp_path, monkeypatch, encoder, tiny_ranker):
    """A folder with a bi-encoder, a cross-encoder and a small collection."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKPRESS_CACHE", str(tmp_path / "cache"))
    save_ranker(encoder, tmp_path / "bi encoder")
    stock_checkpoint(tiny_ranker, tmp_path / "cross")
    small, data = tmp_path / "small", tiny.build_data()
    (small / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", data.documents), ("queries", data.queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (small / f"{name}.jsonl").write_text("".join(lines))
    rows = [f"{q}\t{d}\t{grade}" for q in list(data.queries)[:4] for d, grade in data.qrels[q].items()]
    (small / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rankpress", "retrieve", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, capsys.readouterr().err

    return _run


def lines_of(path):
    return [line.split() for line in path.read_text().splitlines()]


def expected(encoder, query_prefix="", passage_prefix=""):
    data = tiny.build_data()
    ids = sorted(data.documents)
    found = {}
    for query in list(data.queries)[:4]:
        pairs = [(query_prefix + data.queries[query], passage_prefix + data.documents[key]) for key in ids]
        scores = encoder.score(pairs)
        found[query] = [(ids[row], scores[row]) for row in np.argsort(-scores, kind="stable")]
    return found


def test_a_run_has_the_nearest_documents_of_each_query(room, run, encoder):
    code, err = run("bi encoder", "--data", "small/train", "--out", "runs/dense.trec", "--depth", 3)
    assert code == 0, err
    lines = lines_of(room / "runs" / "dense.trec")
    assert len(lines) == 4 * 3
    for query, found in expected(encoder).items():
        own = [line for line in lines if line[0] == query]
        assert [line[2] for line in own] == [document for document, _ in found[:3]]
        np.testing.assert_allclose([float(line[4]) for line in own], [score for _, score in found[:3]], atol=1e-5)
        assert [line[3] for line in own] == ["1", "2", "3"]
        assert {line[5] for line in own} == {"bi-encoder"}
    relevant = tiny.build_data().qrels
    hits = [len({d for d, _ in found[:3]} & set(relevant[q])) / 2 for q, found in expected(encoder).items()]
    assert f"3 documents for each query, with {np.mean(hits):.1%} of the relevant ones" in err


def test_prefixes_stand_before_the_texts(room, run, encoder):
    prefixes = {"query_prefix": "find the ", "passage_prefix": "page of "}
    flags = ("--query-prefix", "find the ", "--passage-prefix", "page of ")
    code, err = run("bi encoder", "--data", "small/train", "--out", "run", *flags)
    assert code == 0, err
    scores = [float(line[4]) for line in lines_of(room / "run")]
    wanted = [score for found in expected(encoder, **prefixes).values() for _, score in found]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert not np.allclose(scores, [score for found in expected(encoder).values() for _, score in found], atol=1e-3)


def test_a_second_run_embeds_nothing(room, run, monkeypatch):
    arguments = ("bi encoder", "--data", "small/train", "--out")
    assert run(*arguments, "first", "--depth", 8)[0] == 0

    def none(ranker, name):
        return (lambda texts, advance: pytest.fail("embedded again")), "from the cache"

    monkeypatch.setattr("compressor.training.scorers.open_embedder", none)
    assert run(*arguments, "second", "--depth", 2)[0] == 0
    tops = [line for line in lines_of(room / "first") if int(line[3]) <= 2]
    assert lines_of(room / "second") == tops


def test_the_run_is_a_first_stage_beside_bm25(room, run):
    assert run("bi encoder", "--data", "small/train", "--out", "runs/dense.trec")[0] == 0
    value = {"collection": "small", "split": "train", "candidates": ["bm25:2", "runs/dense.trec"]}
    data = load_data(DataReference.model_validate(value), base=room, depth=5)
    assert list(data.runs) == ["bm25", "dense.trec"]
    assert {len(found) for found in data.runs["dense.trec"].values()} == {5}
    dense = [line[2] for line in lines_of(room / "runs" / "dense.trec") if line[0] == "q1"]
    assert data.runs["dense.trec"]["q1"] == dense[:5]


def test_unlabelled_collections_are_searched_with_all_queries(room, run):
    (room / "small" / "qrels" / "train.tsv").unlink()
    code, err = run("bi encoder", "--data", "small", "--out", "run", "--depth", 1)
    assert code == 0
    assert len(lines_of(room / "run")) == 6
    assert "relevant" not in err


def test_torch_embeds_as_the_graph_does(room, encoder, monkeypatch):
    texts = list(tiny.DOCUMENTS.values())
    embed, how = open_embedder(encoder, "it")
    told = list[int]()
    vectors = embed(texts, told.append)
    assert how == "exported graph, fp32"
    assert sum(told) == len(texts)
    np.testing.assert_allclose(np.square(vectors).sum(axis=1), 1, atol=1e-5)
    monkeypatch.setattr("compressor.training.scorers._only_torch_has_the_gpu", lambda: True)
    monkeypatch.setattr("torch.Tensor.to", lambda tensor, *_: tensor)  # there is no such device here
    monkeypatch.setattr("torch.nn.Module.to", lambda module, *_: module)
    embed, how = open_embedder(encoder, "it")
    assert how == "torch, fp32, CUDA"
    np.testing.assert_allclose(embed(texts, told.append), vectors, atol=1e-5)


FAULTS = [
    (["cross", "--data", "small/train", "--out", "run"], "encoder: found cross, a cross-encoder, which cannot search"),
    (["absent", "--data", "small/train", "--out", "run"], "encoder: found 'absent': no such file or folder"),
    (["bi encoder", "--data", "small/trian", "--out", "run"], "did you mean 'train'?"),
    (["bi encoder", "--data", "smal/train", "--out", "run"], "no collection at"),
    (["bi encoder", "--data", "", "--out", "run"], "command line: --data: found ''"),
    (["bi encoder", "--data", "small/train", "--out", "small"], "small: found a folder; allowed: the name of the file"),
    (["bi encoder", "--data", "small/train", "--out", "file/run"], "file: found a file; allowed: a folder"),
    (["bi encoder", "--data", "small/train"], "Missing option '--out'"),
    (["bi encoder", "--data", "small/train", "--out", "run", "--depth", "0"], "Invalid value for '--depth'"),
    (["packaged:all-MiniLM", "--data", "small/train", "--out", "run"], "encoder: found the unknown model"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS, ids=[message[:40] for _, message in FAULTS])
def test_bad_input_is_named_and_writes_nothing(room, run, arguments, message):
    (room / "file").write_text("")
    before = sorted(room.rglob("*"))
    code, err = run(*arguments)
    assert code == 3, err
    assert message in err
    assert sorted(room.rglob("*")) == before


def test_all_faults_are_named_at_once(room, run):
    code, err = run("cross", "--data", "small/trian", "--out", "small")
    assert code == 3
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 3


def test_documents_without_text_can_be_left_out(room, run):
    with (room / "small" / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": "empty", "text": ""}\n')
    code, err = run("bi encoder", "--data", "small/train", "--out", "run")
    assert code == 3
    assert "the document 'empty' without text" in err
    assert run("bi encoder", "--data", "small/train", "--out", "run", "--skip-empty")[0] == 0
