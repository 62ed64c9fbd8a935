"""Token times: graphs at several lengths are taken apart into layers, rules and the rest, and times add up."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from compressor.export import block_times, token_times
from compressor.export.token_times import measure_token_times
from compressor.ranker.cost import document_tokens, macs
from compressor.ranker.forms import with_token_rules
from compressor.ranker.narrowing import narrowed
from compressor.ranker.spec import KeepShareRule, PageRankScorer, PoolRule
from tests import tiny

WALK = KeepShareRule(share=0.5, scorer=PageRankScorer())


def by_macs(trials, n_pairs, threads, precision):
    return [float(macs(spec, n_tokens)) for spec, n_tokens in trials]


def ragged(n_layers=5):
    """A shape whose layers differ."""
    spec = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * n_layers)
    return narrowed(spec, width=spec.width, heads=[2, 1, 2, 0, 1][:n_layers], ffn_widths=[32, 8, 32, 16, 4][:n_layers])


@pytest.mark.parametrize("rules", [[PoolRule(stride=2), PoolRule(stride=4)], [WALK]], ids=["pool", "pagerank"])
@pytest.mark.parametrize("n_layers", [2, 5])
def test_times_of_parts_add_up_to_that_of_any_choice(monkeypatch, rules, n_layers):
    monkeypatch.setattr(token_times, "measure_trials", by_macs)
    spec = ragged(n_layers)
    times = measure_token_times(spec, 100, rules, threads=1)
    assert times.of(spec) == pytest.approx(macs(spec, 100))
    for place in range(n_layers - 1):
        for rule in rules:
            if rule.reads_attention and not spec.layers[place].attention:
                continue
            small = with_token_rules(spec, {place: rule})
            assert times.of(small) == pytest.approx(macs(small, 100), rel=0.02)  # between points, products are curved
    assert times.as_json()["tokens"] == 100


def test_windows_that_see_tokens_take_what_the_next_layer_needs_more(monkeypatch):
    monkeypatch.setattr(token_times, "measure_trials", by_macs)
    spec, rule = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 5), PoolRule(stride=2, queries_only=True)
    times = measure_token_times(spec, 100, [rule], threads=1)
    for place in range(3):  # behind the last but one the next layer is computed for the first token alone
        small = with_token_rules(spec, {place: rule})
        assert times.of(small) == pytest.approx(macs(small, 100), rel=0.02)


def test_more_tokens_never_take_less(monkeypatch):
    draw = np.random.default_rng(1)
    monkeypatch.setattr(token_times, "measure_trials", lambda trials, *_: draw.random(len(trials)).tolist())
    times = measure_token_times(ragged(), 60, [WALK])
    for points, found in [*times.layers, *times.rules.values()]:
        assert (np.diff(points) > 0).all()
        assert (np.diff(found) >= 0).all()
        assert found[0] >= 0


def test_another_share_takes_what_the_nearest_does(monkeypatch):
    monkeypatch.setattr(token_times, "measure_trials", by_macs)
    times = measure_token_times(ragged(), 60, [PoolRule(stride=2), PoolRule(stride=8)])
    assert times.rule(0, PoolRule(stride=3), 50) == times.rule(0, PoolRule(stride=2), 50)
    assert times.rule(1, PoolRule(stride=16), 50) == times.rule(2, PoolRule(stride=8), 50)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_graphs_are_timed_with_documents_to_cut(monkeypatch, precision):
    """Rows have a query and a document, of which a rule leaves what is counted on."""
    monkeypatch.setattr(block_times, "_ROUNDS", 1)
    seen = []
    run = ort.InferenceSession.run

    def watching(session, outputs, feeds, *rest):
        seen.append(feeds["input_ids"])
        return run(session, outputs, feeds, *rest)

    monkeypatch.setattr(ort.InferenceSession, "run", watching)
    times = measure_token_times(tiny.tiny_spec(), 30, [WALK], threads=1, precision=precision)
    assert times.of(tiny.tiny_spec()) > 0
    assert {ids.shape[1] for ids in seen} == set(times.layers[0][0].astype(int))
    separator = tiny.tiny_spec().pad_id + 1
    for ids in seen:
        assert len({len(each) for each in seen}) == 1  # as many pairs at every length
        places = np.flatnonzero(ids[0] == separator)
        assert (np.flatnonzero(ids[-1] == separator) == places).all()
        assert places[-1] - places[0] - 1 == document_tokens(ids.shape[1])
