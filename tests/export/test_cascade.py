"""Cascades as graphs: they score and rank as torch does, in both dialects, and the folder is still one for all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compressor.cascade_stages import ExportedCascade
from compressor.errors import InputError, RunError
from compressor.export import export_folder
from compressor.export.cascade import check_cascade, write_cascade
from compressor.export.parity import parity_batches
from compressor.ranker.rounding import round_spec
from compressor.ranker.spec import Int8Dynamic, Int8Rows, RankerSpec
from compressor.runtime.cascade import OnnxCascade
from compressor.runtime.ranker import OnnxRanker
from compressor.storage import sha256_file
from tests.ranker.cascades import cascade, cascading, long_list, rank_list
from tests.ranker.cases import WITHOUT_RULES
from tests.tiny import build_ranker

WITH_EXITS = [name for name, spec in WITHOUT_RULES.items() if spec.exit_layers]
TOLERANCE = 1e-5  # fp32 sums in another order


@pytest.fixture(scope="module")
def ranker():
    return cascading()


@pytest.fixture(scope="module")
def folder(ranker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade") / "model"
    export_folder(ranker, folder, manifest={})
    return folder


def copied(folder, target, **manifest):
    """Copy a folder and change its manifest."""
    import shutil

    shutil.copytree(folder, target)
    whole = json.loads((target / "rankpress.json").read_text())
    (target / "rankpress.json").write_text(json.dumps({**whole, **manifest}))
    return target


def written(ranker, folder, dialect):
    """Write a ranker's cascade alone, and open it."""
    graphs = write_cascade(ranker.spec, ranker.weights, dialect)
    paths = [folder / f"{dialect}_{place}.onnx" for place in range(len(graphs))]
    for path, graph in zip(paths, graphs, strict=True):
        path.write_bytes(graph.SerializeToString())
        domains = {node.domain for node in graph.graph.node}
        assert dialect == "ort" or domains == {""}
    settings = ranker.spec.cascade.without_idle_stages()
    return OnnxCascade.load(ExportedCascade(**dict(settings), files=tuple(path.name for path in paths)), paths, 1)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("name", ["bert", *WITH_EXITS])
def test_every_stage_scores_as_in_torch(name, dialect, ranker, tmp_path):
    if name != "bert":
        spec = WITHOUT_RULES[name]
        places = (["embeddings"] if spec.tells_query_from_document else []) + list(spec.exit_layers)
        ranker = build_ranker(spec.changed(cascade=cascade(*({"behind": one, "keep": 0.5} for one in places))))
    query, documents = long_list(5)
    batches = parity_batches(ranker, [(query, document) for document in documents])
    for one in check_cascade(ranker, written(ranker, tmp_path, dialect), batches):
        assert one.max_difference < TOLERANCE, one.summary


def test_a_graph_that_scores_otherwise_is_found(ranker, tmp_path):
    found = written(ranker, tmp_path, "ort")
    name = "layers.1.exit.output.bias"
    other = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] + 0.01})
    with pytest.raises(RunError, match=r"ort_2.onnx does not score as the ranker does"):
        check_cascade(other, found, parity_batches(ranker, ()))


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_lists_are_ranked_as_in_torch_whatever_the_batches(ranker, dialect, batch_tokens, tmp_path):
    query, documents = long_list()
    expected = rank_list(ranker, query, documents)
    runner = written(ranker, tmp_path, dialect)
    encoded = ranker.tokenizer.encode_pairs([(query, document) for document in documents])
    told: list[int] = []
    found = runner.run(encoded, pad_id=ranker.spec.pad_id, batch_tokens=batch_tokens, on_rows=told.append)
    np.testing.assert_array_equal(found.stages, expected.stages)
    np.testing.assert_allclose(found.scores, expected.scores, atol=TOLERANCE)
    assert sum(told) == len(documents)


def test_a_quantized_ranker_cascades_too(ranker, tmp_path):
    rounded = ranker.changed(spec=round_spec(ranker.spec, Int8Dynamic(), Int8Rows()))
    export_folder(rounded, tmp_path / "model", manifest={})
    query, documents = long_list()
    found = OnnxRanker.load(tmp_path / "model", threads=1).rank(query, documents)
    assert sorted(hit.stage or 0 for hit in found) == sorted(rank_list(ranker, query, documents).stages.tolist())


def test_the_folder_ranks_by_the_cascade_and_scores_pairs_at_full_depth(ranker, folder):
    query, documents = long_list()
    loaded = OnnxRanker.load(folder, threads=1)
    expected = rank_list(ranker, query, documents)
    hits = loaded.rank(query, documents)
    assert [hit.index for hit in hits] == np.argsort(-expected.scores, kind="stable").tolist()
    assert [hit.stage for hit in hits] == sorted(expected.stages.tolist(), reverse=True)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert loaded.rank(query, documents, top_k=3) == hits[:3]
    pairs = [(query, document) for document in documents]
    np.testing.assert_allclose(loaded.score(pairs), ranker.without_exits().score(pairs), atol=TOLERANCE)


def test_short_lists_are_ranked_at_full_depth(folder):
    query, documents = long_list()
    loaded = OnnxRanker.load(folder, threads=1)
    for n in (0, 1, 2):
        hits = loaded.rank(query, documents[:n])
        scores = loaded.score([(query, document) for document in documents[:n]])
        assert [hit.score for hit in hits] == sorted(scores.tolist(), reverse=True)
        assert [hit.stage for hit in hits] == [3] * n
    assert sorted(hit.stage or 0 for hit in loaded.rank(query, documents[:3])) == [1, 3, 3]


def test_the_folder_says_what_lies_in_it(ranker, folder):
    manifest = json.loads((folder / "rankpress.json").read_text())
    files = [f"onnx/cascade_{place}.onnx" for place in range(4)]
    assert manifest["cascade"] == {**ranker.spec.cascade.model_dump(mode="json"), "files": files}
    for name in files:
        assert manifest["files"][name]["sha256"] == sha256_file(folder / name)
        assert manifest["files"][name]["role"].startswith("cascade")
    assert {record["file"] for record in manifest["parity"]} >= {name.removeprefix("onnx/") for name in files}
    spec = RankerSpec.model_validate_json((folder / "spec.json").read_text())
    assert spec == ranker.spec.as_served()
    assert spec.exit_layers == (0, 1)
    assert manifest["fingerprint"] == ranker.as_served().fingerprint
    assert (folder / "model.safetensors").exists(), "the stock form of the ranker without its exits"


def test_other_graphs_of_the_folder_know_no_cascade(folder):
    query, documents = long_list()
    companion = OnnxRanker.load(folder, file="onnx/model_quantized.onnx", threads=1)
    assert companion.cascade is None
    assert {hit.stage for hit in companion.rank(query, documents)} == {None}
    assert OnnxRanker.load(folder, file="onnx/model.onnx", threads=1).cascade is not None


def test_a_cascade_that_drops_nothing_leaves_no_graphs(tmp_path):
    idle = cascading(cascade({"behind": 1, "keep": 1}))
    report = export_folder(idle, tmp_path / "model", manifest={}, int8_companion=False)
    assert "cascade" not in report.manifest
    assert [path.name for path in (tmp_path / "model" / "onnx").iterdir()] == ["model.onnx"]
    assert OnnxRanker.load(tmp_path / "model", threads=1).cascade is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"files": ["onnx/cascade_0.onnx"]}, "1 files for 3 stages"),
        ({"files": ["onnx/gone.onnx", *(f"onnx/cascade_{place}.onnx" for place in (1, 2, 3))]}, "onnx/gone.onnx"),
        ({"files": ["../model.onnx", *(f"onnx/cascade_{place}.onnx" for place in (1, 2, 3))]}, "model.onnx"),
        ({"files": ["onnx/model.onnx", *(f"onnx/cascade_{place}.onnx" for place in (1, 2, 3))]}, "the outputs logits"),
        ({"keep_at_least": 0}, "keep_at_least"),
        ({"kept": 3}, "kept"),
    ],
)
def test_a_broken_entry_is_one_clear_error(folder, tmp_path, changes, found):
    whole = json.loads((folder / "rankpress.json").read_text())["cascade"]
    broken = copied(folder, tmp_path / "model", cascade={**whole, **changes})
    with pytest.raises(InputError, match=found):
        OnnxRanker.load(broken, threads=1)


def test_nan_at_a_stage_is_an_error(ranker, tmp_path):
    name = "layers.0.exit.output.bias"
    broken = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] * float("nan")})
    query, documents = long_list()
    encoded = ranker.tokenizer.encode_pairs([(query, document) for document in documents])
    with pytest.raises(RunError, match=r"ort_1.onnx: NaN or infinite scores"):
        written(broken, tmp_path, "ort").run(encoded, pad_id=0, batch_tokens=1000)
