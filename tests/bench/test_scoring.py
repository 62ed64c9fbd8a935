from __future__ import annotations

import json

import numpy as np
import pytest

from compressor.bench.scoring import score_data
from compressor.errors import RunError
from compressor.gate_settings import BenchSettings

SETTINGS = BenchSettings(candidates=4)


def loads(row):
    log = row.folder / "loads.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_scores_stand_in_first_stage_order_up_to_the_depth(make_row, make_data):
    data = make_data()
    scores = score_data(make_row("one"), [data], SETTINGS, threads=1, cache=None)["made/test"]
    assert list(scores) == list(data.queries)
    assert all(values.shape == (4,) and values.dtype == np.float32 for values in scores.values())


def test_a_second_run_loads_nothing_and_gives_the_same(make_row, make_data, tmp_path):
    row, data = make_row("one"), [make_data("a/test"), make_data("b/test")]
    first = score_data(row, data, SETTINGS, threads=1, cache=tmp_path / "cache")
    again = score_data(row, data, SETTINGS, threads=1, cache=tmp_path / "cache")
    assert loads(row) == 1
    assert all((first[d][q] == again[d][q]).all() for d in first for q in first[d])


def test_new_weights_new_data_or_another_depth_are_scored_anew(make_row, make_data, tmp_path):
    row, cache = make_row("one"), tmp_path / "cache"
    score_data(row, [make_data()], SETTINGS, threads=1, cache=cache)
    score_data(row, [make_data(n_queries=25)], SETTINGS, threads=1, cache=cache)
    score_data(row, [make_data()], BenchSettings(candidates=3), threads=1, cache=cache)
    assert loads(row) == 3
    (row.folder / "model.onnx").write_bytes(b"\x01" * 1000)
    score_data(row, [make_data()], SETTINGS, threads=1, cache=cache)
    assert loads(row) == 4


def test_a_broken_run_keeps_what_it_has(make_row, make_data, tmp_path):
    row, data, cache = make_row("one", break_on="query 9"), make_data(), tmp_path / "cache"
    with pytest.raises(RunError, match="row 'one'"):
        score_data(row, [data], SETTINGS, threads=1, cache=cache)
    stored = np.load(next(cache.glob("*.npy")), allow_pickle=False)
    assert np.isfinite(stored[: 9 * 4]).all()
    assert np.isnan(stored[9 * 4 :]).all()


def test_a_store_cut_short_is_written_anew(make_row, make_data, tmp_path):
    row, cache = make_row("one"), tmp_path / "cache"
    score_data(row, [make_data()], SETTINGS, threads=1, cache=cache)
    path = next(cache.glob("*.npy"))
    path.write_bytes(path.read_bytes()[:100])
    scores = score_data(row, [make_data()], SETTINGS, threads=1, cache=cache)
    assert np.isfinite(scores["made/test"]["q3"]).all()


def test_the_fingerprint_knows_the_manifest_s_main_file(make_row):
    from compressor.bench.rows import row_fingerprint

    row = make_row("one")
    before = row_fingerprint(row)
    (row.folder / "other.onnx").write_bytes(b"other")
    (row.folder / "README.md").write_text("changes nothing")
    assert row_fingerprint(row) == before
    (row.folder / "rankpress.json").write_text(json.dumps({"main_file": "other.onnx"}))
    assert row_fingerprint(row) != before
