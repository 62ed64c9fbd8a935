"""The real engines on a tiny ranker: one model in three runtimes gives one score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.bench.cross_encoder_predict import SentenceTransformers
from compressor.bench.engines import OnnxEngine, TorchPadded
from compressor.bench.rows import RowSpec
from compressor.bench.run import run_bench
from compressor.bench.worker_process import WorkerProcess
from compressor.errors import InputError
from compressor.gate_settings import BenchSettings


@pytest.fixture(scope="module")
def own_folder(tiny_ranker, tmp_path_factory):
    from compressor.export.folder import export_folder

    folder = tmp_path_factory.mktemp("own") / "model"
    export_folder(tiny_ranker, folder, manifest={})
    return folder


@pytest.fixture(scope="module")
def stock_folder(tiny_ranker, tmp_path_factory):
    from compressor.families.stock import stock_checkpoint

    folder = tmp_path_factory.mktemp("stock") / "model"
    stock_checkpoint(tiny_ranker, folder)
    return folder


def test_onnx_and_padded_torch_agree(own_folder, stock_folder, tiny_pairs, tiny_ranker):
    onnx, torch = OnnxEngine(own_folder, None, 1), TorchPadded(stock_folder, 1, batch_pairs=4)
    ours, theirs = onnx.score(tiny_pairs), torch.score(tiny_pairs)
    assert ours.scores == pytest.approx(tiny_ranker.score(tiny_pairs), abs=1e-4)
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-4)
    assert ours.lengths == theirs.lengths
    assert max(ours.lengths) == tiny_ranker.spec.max_length
    assert ours.forward_s > 0
    assert theirs.tokenize_s > 0
    assert onnx.score_in_one_batch(tiny_pairs) == pytest.approx(ours.scores, abs=1e-4)
    assert torch.score_in_one_batch(tiny_pairs) == pytest.approx(theirs.scores, abs=1e-4)


def test_sentence_transformers_scores_alike(stock_folder, tiny_pairs, tiny_ranker):
    engine = SentenceTransformers(stock_folder, 1)
    found = engine.score(tiny_pairs)
    assert found.scores == pytest.approx(tiny_ranker.score(tiny_pairs), abs=1e-4)
    assert found.lengths == TorchPadded(stock_folder, 1, batch_pairs=4).score(tiny_pairs).lengths
    assert found.forward_s > 0
    assert engine.score_in_one_batch(tiny_pairs) == pytest.approx(found.scores, abs=1e-4)
    rounded = SentenceTransformers(stock_folder, 1, "bfloat16").score(tiny_pairs)
    assert rounded.scores == pytest.approx(found.scores, abs=0.1)
    assert (rounded.scores != found.scores).any()
    assert not RowSpec(name="st", folder=stock_folder, engine="sentence_transformers_bf16").is_graph


def test_the_padded_baseline_keeps_the_order_of_arrival(stock_folder, tiny_pairs):
    seen: list[list[int]] = []
    engine = TorchPadded(stock_folder, 1, batch_pairs=4)
    forward = engine._forward
    engine._forward = lambda batch: (seen.append(list(batch["input_ids"].shape)), forward(batch))[1]  # type: ignore
    lengths = engine.score(tiny_pairs).lengths
    expected = [lengths[i : i + 4] for i in range(0, len(lengths), 4)]
    assert seen == [[len(batch), max(batch)] for batch in expected]


def test_a_checkpoint_that_is_no_ranker_is_refused(tmp_path, stock_folder):
    with pytest.raises(InputError, match=r"found no config\.json; this baseline needs a stock Hugging Face checkpoint"):
        TorchPadded(tmp_path, 1, batch_pairs=4)
    two = tmp_path / "two"
    two.mkdir()
    for path in stock_folder.iterdir():
        (two / path.name).write_bytes(path.read_bytes())
    _write_two_labels(two)
    with pytest.raises(InputError, match="a classifier with 2 outputs; allowed: a ranker with one output"):
        TorchPadded(two, 1, batch_pairs=4)


def _write_two_labels(folder: Path) -> None:
    import json

    from safetensors.numpy import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    config.update(id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1}, num_labels=2)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = np.concatenate([weights[name]] * 2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_graph_is_bad_input_that_names_row_and_folder(stock_folder):
    with pytest.raises(InputError, match=r"row 'stock': .*model: found no ONNX file"):
        WorkerProcess(RowSpec(name="stock", folder=stock_folder), 1)


def test_a_bench_of_real_processes(own_folder, stock_folder, tiny_data):
    rows = [
        RowSpec(
            name="torch_fp32_padded", kind="baseline", engine="torch_fp32_padded", folder=stock_folder,
            scores_of="own",
        ),
        RowSpec(name="own", folder=own_folder),
        RowSpec(name="int8", folder=own_folder, file="onnx/model_quantized.onnx"),
    ]  # fmt: skip
    settings = BenchSettings(threads=(1,), n_queries=3, rounds=2, warmup_queries=1, candidates=8)
    report = run_bench(rows, [tiny_data], settings, teacher="own")
    torch, own, int8 = report.rows
    assert torch.scores_of == "own"
    assert torch.parameters == own.parameters
    assert own.latency[0].speedup.keys() == {"torch_fp32_padded"}
    assert int8.latency[0].speedup.keys() == {"torch_fp32_padded", "own"}
    assert int8.agreement[tiny_data.name]["score_rmse"].mean > 0
    assert own.batch_sensitivity is not None
    assert own.batch_sensitivity.max_shift < 1e-4
    assert own.macs_per_pair is not None
    assert torch.latency[0].peak_memory_bytes > own.latency[0].peak_memory_bytes > 1e7
