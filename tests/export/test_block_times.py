"""Block times: every shape is timed as a graph of its own, and times of blocks add up."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.export import block_times
from compressor.export.block_times import measure_block_times, measure_times
from compressor.ranker.cost import macs
from compressor.ranker.narrowing import narrowed
from tests import tiny
from tests.ranker.cases import SPECS


def by_macs(specs, n_tokens, threads, precision):
    return [float(macs(spec, n_tokens)) for spec in specs]


@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize("n_layers", [1, 2, 6])
def test_times_of_blocks_add_up_to_that_of_any_shape(monkeypatch, placement, n_layers):
    monkeypatch.setattr(block_times, "measure_times", by_macs)
    spec = tiny.tiny_spec(layers=(tiny.tiny_layer(norm_placement=placement),) * n_layers)
    times = measure_block_times(spec, 20)
    assert times.of(spec) == pytest.approx(macs(spec, 20))
    draw = np.random.default_rng(0)
    heads, neurons = draw.integers(0, 3, n_layers).tolist(), draw.integers(0, 33, n_layers).tolist()
    small = narrowed(spec, width=spec.width, heads=heads, ffn_widths=neurons)
    assert times.of(small) == pytest.approx(macs(small, 20))
    assert times.measured_share(spec, small) == pytest.approx(macs(small, 20) / macs(spec, 20))


def test_more_units_never_take_less(monkeypatch):
    draw = np.random.default_rng(1)
    monkeypatch.setattr(block_times, "measure_times", lambda specs, *_: draw.random(len(specs)).tolist())
    times = measure_block_times(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), 20)
    for tables in (times.inner, times.last):
        for units, found in tables.values():
            assert units[0] == found[0] == 0
            assert (np.diff(units) > 0).all()
            assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", [name for name in SPECS if "low_rank" not in SPECS[name].model_dump_json()])
def test_every_family_can_be_timed(name, precision, monkeypatch):
    monkeypatch.setattr(block_times, "_ROUNDS", 1)
    spec = SPECS[name]
    times = measure_times([spec, spec], 12, 1, precision)
    assert len(times) == 2
    assert min(times) > 0


def test_wider_layers_take_longer():
    layers = (tiny.tiny_layer(),) * 3
    spec = narrowed(tiny.tiny_spec(layers=layers), width=16, heads=[2] * 3, ffn_widths=[4096] * 3)
    narrow = narrowed(spec, width=16, heads=[2] * 3, ffn_widths=[64] * 3)
    wide_ms, narrow_ms = measure_times([spec, narrow], 30, 1)
    assert wide_ms > 2 * narrow_ms
