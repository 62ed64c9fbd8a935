"""The baselines: made once, from the stock form of the teacher, and refused early where there is none."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from compressor.baselines import baseline_rows, refuse_without_stock
from compressor.errors import InputError
from compressor.ranker.spec import FeedForwardSpec
from compressor.runtime import OnnxRanker
from tests.tiny import tiny_layer, tiny_spec


def test_baselines_score_as_the_teacher_and_are_made_once(tmp_path, tiny_ranker, tiny_pairs, capfd):
    news: list[str] = []
    rows = baseline_rows(tmp_path / "made", lambda: tiny_ranker, news.append)
    assert [(row.name, row.kind, row.engine, row.scores_of) for row in rows] == [
        ("torch_fp32_padded", "baseline", "torch_fp32_padded", "stock_onnx_fp32"),
        ("stock_onnx_fp32", "baseline", "onnx", None),
    ]
    assert len(news) == 1
    scores = OnnxRanker.load(rows[1].folder).score(tiny_pairs)
    np.testing.assert_allclose(scores, tiny_ranker.score(tiny_pairs), atol=1e-5)
    assert logging.root.manager.disable == logging.NOTSET, "the exporter was silenced for good"
    assert capfd.readouterr() == ("", ""), "the exporter prints into our progress"

    def never():
        raise AssertionError("the teacher was loaded although its baselines are there")

    assert baseline_rows(tmp_path / "made", never, news.append) == rows
    assert len(news) == 1


def test_a_failed_export_leaves_nothing(tmp_path, tiny_ranker, monkeypatch):
    def broken(checkpoint, folder):
        folder.mkdir()
        raise RuntimeError("no export today")

    monkeypatch.setattr("compressor.baselines.export_stock", broken)
    with pytest.raises(RuntimeError, match="no export today"):
        baseline_rows(tmp_path / "made", lambda: tiny_ranker, print)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_without_a_stock_form_is_refused():
    wide, layer = tiny_spec(), tiny_layer()
    assert isinstance(layer.ffn, FeedForwardSpec)
    narrow = layer.changed(
        ffn=layer.ffn.changed(up=layer.ffn.up.changed(outputs=8), down=layer.ffn.down.changed(inputs=8))
    )
    refuse_without_stock(wide)
    with pytest.raises(InputError, match=r"teacher: found a ranker without a stock form \(.+\); allowed: a checkpoint"):
        refuse_without_stock(wide.changed(layers=(layer, narrow)))
