"""A folder with a cascade is timed and judged as it ranks: a query's list at a time, through its stages."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from compressor.bench.engines import OnnxEngine
from compressor.bench.report_tables import cost_table
from compressor.bench.rows import RowSpec, row_fingerprint
from compressor.bench.run import run_bench
from compressor.bench.size import cost_of
from compressor.gate_settings import BenchSettings
from compressor.ranker.cost import macs, macs_of_stages
from tests.ranker.cascades import cascading, long_list, rank_list


@pytest.fixture(scope="module")
def ranker():
    return cascading()


@pytest.fixture(scope="module")
def folder(ranker, tmp_path_factory):
    from compressor.export.folder import export_folder

    folder = tmp_path_factory.mktemp("cascade") / "model"
    export_folder(ranker, folder, manifest={})
    return folder


def test_a_list_is_scored_as_it_is_ranked(ranker, folder):
    query, documents = long_list()
    pairs = [(query, document) for document in documents]
    engine, expected = OnnxEngine(folder, None, 1), rank_list(ranker, query, documents)
    found = engine.score(pairs)
    assert found.stages == expected.stages.tolist()
    assert found.scores == pytest.approx(expected.scores, abs=1e-4)
    assert engine.score_in_one_batch(pairs) == pytest.approx(ranker.score(pairs), abs=1e-4)
    assert OnnxEngine(folder, "onnx/model_quantized.onnx", 1).score(pairs).stages is None


def test_cost_is_that_of_what_was_run(ranker, folder):
    lengths, stages = np.array([10, 20, 20]), np.array([0, 2, 3])
    cost = cost_of(RowSpec(name="own", folder=folder), folder / "onnx/model.onnx", lengths, stages)
    assert cost.size_bytes == sum(path.stat().st_size for path in (folder / "onnx").glob("cascade_*.onnx"))
    spec = ranker.spec.as_served()
    short, long = macs_of_stages(spec, 10), macs_of_stages(spec, 20)
    assert cost.macs_per_pair == pytest.approx((short[0] + long[2] + long[3]) / 3)
    int8 = RowSpec(name="int8", folder=folder, file="onnx/model_quantized.onnx")
    whole = cost_of(int8, folder / "onnx/model_quantized.onnx", lengths)
    assert whole.macs_per_pair == pytest.approx((macs(spec, 10) + 2 * macs(spec, 20)) / 3)
    assert whole.parameters == sum(tensor.numel() for tensor in ranker.without_exits().weights.values())
    assert cost.parameters == sum(tensor.numel() for tensor in ranker.as_served().weights.values())


def test_other_stages_are_another_row(folder, tmp_path):
    def fingerprint(change=None):
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, target)
        if change:
            manifest = json.loads((target / "rankpress.json").read_text())
            change(target, manifest)
            (target / "rankpress.json").write_text(json.dumps(manifest))
        return row_fingerprint(RowSpec(name="own", folder=target))

    plain = fingerprint()
    assert fingerprint(lambda _, manifest: manifest.update(title="another")) == plain
    assert fingerprint(lambda _, manifest: manifest["cascade"].update(keep_at_least=3)) != plain
    assert fingerprint(lambda target, _: (target / "onnx/cascade_1.onnx").write_bytes(b"other")) != plain
    assert fingerprint(lambda _, manifest: manifest.pop("cascade")) != plain


def test_a_bench_says_what_each_stage_kept(folder, tiny_data):
    rows = [
        RowSpec(name="whole", folder=folder, file="onnx/model_quantized.onnx"),
        RowSpec(name="staged", folder=folder),
    ]
    settings = BenchSettings(threads=(1,), n_queries=3, rounds=2, warmup_queries=1, candidates=8)
    report = run_bench(rows, [tiny_data], settings, teacher="whole")
    whole, staged = report.rows
    assert whole.stage_shares is None
    assert staged.stage_shares == [7 / 8, 4 / 8, 2 / 8]  # 80, 50 and 25 % of 8, rounded up
    assert (staged.macs_per_pair or 0) < (whole.macs_per_pair or 0)
    assert staged.agreement[tiny_data.name]["kendall_tau"].mean < 1
    page = cost_table(report)
    assert page.count("candidates that went on behind its stages: 88 %, 50 %, 25 %") == 1
