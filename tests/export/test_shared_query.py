"""A list whose query is run once: equal scores, less work, and a folder that is still one for all."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from compressor.bench.rows import RowSpec, row_fingerprint
from compressor.bench.size import cost_of
from compressor.errors import InputError, RunError
from compressor.export import export_folder
from compressor.export.packing import pack
from compressor.export.parity import parity_batches
from compressor.export.shared_query import check_shared_query, shares_query, write_shared_query
from compressor.passes.pool_tokens import PoolTokens
from compressor.passes.quantize import Quantize
from compressor.ranker.cost import macs, macs_of_shared_query
from compressor.runtime.packed import unpack
from compressor.runtime.ranker import OnnxRanker
from compressor.runtime.shared_query import OnnxSharedQuery
from compressor.storage import sha256_file
from tests.passes.students import applied
from tests.ranker.cascades import long_list
from tests.ranker.cases import SEPARATOR, SPECS, of_layers
from tests.tiny import LONG_DOCUMENT, build_ranker, tiny_layer

FILES = {"query": "onnx/query.onnx", "candidates": "onnx/candidates.onnx"}
ISOLATED = {"isolates_query": True, "separator_id": SEPARATOR}
ADVERSARIAL = ["", "[SEP]", "a [SEP] in the text [SEP] [CLS] of a page", "[PAD]", "the", LONG_DOCUMENT, "rain " * 30]


@pytest.fixture(scope="module")
def ranker():
    return build_ranker(of_layers(*[tiny_layer()] * 3, **ISOLATED), seed=3)


@pytest.fixture(scope="module")
def folder(ranker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "model"
    export_folder(ranker, folder, manifest={})
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return OnnxRanker.load(folder, threads=1)


def written(ranker, folder, dialect="ort"):
    """Write the two graphs alone, and open them."""
    paths = [folder / f"{dialect}_{name}.onnx" for name in FILES]
    for path, graph in zip(paths, write_shared_query(ranker.spec, ranker.weights, dialect), strict=True):
        path.write_bytes(graph.SerializeToString())
        assert dialect == "ort" or {node.domain for node in graph.graph.node} == {""}
    return OnnxSharedQuery.load(paths, ranker.tokenizer, 1)


def query_runs(monkeypatch):
    """Return a list that grows by the number of tokens of every query that is run."""
    runs: list[int] = []
    handed = OnnxSharedQuery._handed

    def counted(self, ids, types, pad_id):
        runs.append(len(ids))
        return handed(self, ids, types, pad_id)

    monkeypatch.setattr(OnnxSharedQuery, "_handed", counted)
    return runs


def relative(found, expected):
    return float(np.abs(np.asarray(found) - expected).max() / max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize(
    "name",
    ["isolated", "isolated_modernbert", "electra", "roberta", "rms_norm", "window_and_rotary", "causal_mean",
     "uneven_layers", "without_blocks", "last_without_attention", "low_rank"],
)  # fmt: skip
def test_every_shape_scores_as_in_torch(name, dialect, tmp_path):
    ranker = build_ranker(SPECS[name].changed(**ISOLATED))
    batches = parity_batches(ranker, [("which tree is green", document) for document in ADVERSARIAL])
    parity = check_shared_query(ranker, written(ranker, tmp_path, dialect), batches)
    assert parity.max_difference < 1e-5, parity.summary
    assert parity.n_rows == 11 + len(ADVERSARIAL)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_lists_are_scored_as_pair_by_pair_with_one_run_of_the_query(ranker, loaded, batch_tokens, monkeypatch):
    query, documents = long_list()
    pairs = [(query, document) for document in documents]
    runs = query_runs(monkeypatch)
    found = loaded.score_list(loaded.encode(pairs), batch_tokens=batch_tokens)
    assert runs == [len(ranker.tokenizer.encode_pairs([(query, "")]).input_ids[0]) - 2]  # all but [CLS] and last [SEP]
    assert found.stages is None
    assert relative(found.scores, loaded.score(pairs)) < 1e-5
    assert relative(found.scores, ranker.score(pairs)) < 1e-5


@pytest.mark.parametrize("query", ["which tree is green", "", "[SEP]", "two [SEP] texts", "[CLS] [PAD]"])
def test_odd_texts_score_the_same(ranker, loaded, query):
    pairs = [(query, document) for document in ADVERSARIAL]
    assert relative(loaded.score_list(loaded.encode(pairs)).scores, ranker.score(pairs)) < 1e-5


def test_a_query_that_long_documents_cut_is_another_one(ranker, loaded, monkeypatch):
    query = "how long is the road by the sea " * 4
    pairs = [(query, document) for document in ADVERSARIAL]
    runs = query_runs(monkeypatch)
    found = loaded.score_list(loaded.encode(pairs)).scores
    assert len(set(runs)) == len(runs) > 1, "cut at several places"
    assert relative(found, ranker.score(pairs)) < 1e-5


def test_a_candidate_scores_alone_as_in_company(ranker, loaded):
    query, documents = long_list(9)
    encoded = loaded.encode([(query, document) for document in documents])
    together = loaded.shared_query.run(encoded, pad_id=0, batch_tokens=100_000)
    for place, document in enumerate(documents):
        alone = loaded.shared_query.run(loaded.encode([(query, document)]), pad_id=0, batch_tokens=1)
        assert relative(alone, together[place]) < 1e-6


def test_the_query_graph_takes_no_document(folder):
    names = {node.name for node in onnx.load(folder / FILES["query"]).graph.input}
    assert names == {"input_ids", "attention_mask", "token_type_ids"}


def test_rank_uses_it_and_pairs_do_not(loaded, monkeypatch):
    query, documents = long_list()
    expected = loaded.score([(query, document) for document in documents])
    runs = query_runs(monkeypatch)
    hits = loaded.rank(query, documents)
    assert len(runs) == 1
    assert [hit.index for hit in hits] == np.argsort(-expected, kind="stable").tolist()
    assert {hit.stage for hit in hits} == {None}
    assert loaded.rank(query, documents, top_k=3) == hits[:3]
    assert [len(loaded.rank(query, documents[:n])) for n in (0, 1)] == [0, 1]
    assert len(runs) == 2, "a single candidate, or none, gains nothing"


def test_the_folder_says_what_lies_in_it(folder, loaded):
    manifest = json.loads((folder / "rankpress.json").read_text())
    assert manifest["shared_query"] == FILES
    for name in FILES.values():
        assert manifest["files"][name]["sha256"] == sha256_file(folder / name)
        assert manifest["files"][name]["role"].startswith("shared query")
    assert "candidates.onnx" in {record["file"] for record in manifest["parity"]}
    assert "A list's query is run once" in (folder / "README.md").read_text()
    assert loaded.shared_query is not None
    assert OnnxRanker.load(folder, file="onnx/model_quantized.onnx", threads=1).shared_query is None
    assert OnnxRanker.load(folder, file="onnx/model.onnx", threads=1).shared_query is not None


def test_where_nothing_can_be_shared_nothing_is_written(ranker, tmp_path):
    pooled = applied(PoolTokens(layer=0), ranker)
    for name, other in {"pooled": pooled, "seeing": build_ranker()}.items():
        assert not shares_query(other.spec)
        report = export_folder(other, tmp_path / name, manifest={}, int8_companion=False)
        assert "shared_query" not in report.manifest
        assert [path.name for path in (tmp_path / name / "onnx").iterdir()] == ["model.onnx"]
        assert OnnxRanker.load(tmp_path / name, threads=1).shared_query is None
    blind = of_layers(*[tiny_layer(attention=None)] * 2, **ISOLATED)
    assert not shares_query(blind)


@pytest.mark.parametrize(
    ("settings", "atol"),
    [({"scheme": "int8_dynamic"}, 0.25), ({"scheme": "int8_blocks"}, 1e-3), ({"scheme": "fp16"}, 1e-4)],
)
def test_a_rounded_ranker_shares_too(ranker, settings, atol, tmp_path):
    rounded = applied(Quantize.model_validate(settings), ranker)
    export_folder(rounded, tmp_path / "model", manifest={})
    loaded = OnnxRanker.load(tmp_path / "model", threads=1)
    query, documents = long_list()
    pairs = [(query, document) for document in documents]
    found = loaded.score_list(loaded.encode(pairs)).scores
    assert loaded.shared_query is not None
    np.testing.assert_allclose(found, loaded.score(pairs), atol=atol)


def test_graphs_that_score_otherwise_are_found(ranker, tmp_path):
    shared = written(ranker, tmp_path)
    for name in ("layers.1.attention.value.bias", "layers.0.ffn.up.bias"):
        other = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] + 0.05})
        with pytest.raises(RunError, match=r"ort_candidates.onnx does not score as the ranker does"):
            check_shared_query(other, shared, parity_batches(ranker, ()))


def changed(folder, target, **manifest):
    """Copy a folder and change its manifest."""
    shutil.copytree(folder, target)
    whole = json.loads((target / "rankpress.json").read_text())
    (target / "rankpress.json").write_text(json.dumps({**whole, **manifest}))
    return target


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"query": "onnx/gone.onnx"}, "onnx/gone.onnx"),
        ({"candidates": "../outside.onnx"}, "outside.onnx"),
        ({"query": "/etc/passwd"}, "passwd"),
        ({"query": FILES["candidates"], "candidates": FILES["query"]}, "the outputs logits"),
        ({"query": "onnx/model.onnx"}, "the outputs logits"),
        ({"candidates": "onnx/model.onnx"}, "the inputs input_ids"),
        ({"query": "onnx/shallow.onnx"}, r"query.2 \[16\]"),
        ({"query": 3}, "query"),
        ({"third": "onnx/model.onnx"}, "third"),
    ],
)
def test_a_broken_entry_is_one_clear_error(folder, tmp_path, changes, found):
    broken = changed(folder, tmp_path / "model", shared_query={**FILES, **changes})
    (tmp_path / "outside.onnx").write_bytes((folder / FILES["candidates"]).read_bytes())
    other = build_ranker(of_layers(tiny_layer(), tiny_layer(), **ISOLATED))
    shallow, _ = write_shared_query(other.spec, other.weights)
    (broken / "onnx/shallow.onnx").write_bytes(shallow.SerializeToString())
    with pytest.raises(InputError, match=found):
        OnnxRanker.load(broken, threads=1)


def test_a_tokenizer_without_a_separator_is_refused(folder, tmp_path):
    broken = changed(folder, tmp_path / "model")
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="a tokenizer without a separator"):
        OnnxRanker.load(broken, threads=1)


def test_nan_is_an_error(ranker, tmp_path):
    name = "layers.0.attention.value.bias"
    broken = ranker.changed(weights={**ranker.weights, name: ranker.weights[name] * float("nan")})
    encoded = ranker.tokenizer.encode_pairs([("a", "b"), ("a", "c")])
    with pytest.raises(RunError, match=r"ort_candidates.onnx: NaN or infinite scores"):
        written(broken, tmp_path).run(encoded, pad_id=0, batch_tokens=100)


def test_a_row_of_a_report_counts_what_is_run(ranker, folder, tmp_path):
    lengths = np.array([14, 20, 20])
    cost = cost_of(RowSpec(name="own", folder=folder), folder / "onnx/model.onnx", lengths)
    assert cost.size_bytes == sum((folder / name).stat().st_size for name in FILES.values())
    short, long = (macs_of_shared_query(ranker.spec, n)[1] for n in (14, 20))
    assert cost.macs_per_pair == pytest.approx((short + 2 * long) / 3)
    assert "its query, run once for a list" in (cost.macs_scope or "")
    int8 = RowSpec(name="int8", folder=folder, file="onnx/model_quantized.onnx")
    whole = cost_of(int8, folder / "onnx/model_quantized.onnx", lengths)
    assert whole.macs_per_pair == pytest.approx((macs(ranker.spec, 14) + 2 * macs(ranker.spec, 20)) / 3)
    plain = row_fingerprint(RowSpec(name="own", folder=folder))
    unshared = changed(folder, tmp_path / "unshared", shared_query=None)
    assert row_fingerprint(RowSpec(name="own", folder=unshared)) != plain
    other = changed(folder, tmp_path / "other")
    (other / FILES["query"]).write_bytes(b"other")
    assert row_fingerprint(RowSpec(name="own", folder=other)) != plain


def test_a_pack_of_the_main_file_alone_knows_no_other(folder, loaded, tmp_path):
    query, documents = long_list(5)
    for main_only in (True, False):
        pack(folder, tmp_path / "ranker.pack", main_only=main_only)
        unpack(tmp_path / "ranker.pack", tmp_path / "again")
        again = OnnxRanker.load(tmp_path / "again", threads=1)
        assert (again.shared_query is None) == main_only
        assert [hit.index for hit in again.rank(query, documents)] == [
            hit.index for hit in loaded.rank(query, documents)
        ]
