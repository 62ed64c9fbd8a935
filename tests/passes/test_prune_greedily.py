"""prune_greedily: what does nothing goes, and what is cut is what was tried and accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compressor.errors import InputError
from compressor.passes.prune_greedily import PruneGreedily
from tests import tiny
from tests.passes.students import applied, score_rmse


def run(ranker, data, notes=None, **settings):
    step = PruneGreedily.model_validate({"neuron_group": 8, "compensate": "none", **settings})
    return applied(step, ranker, data, notes)


@pytest.fixture(scope="module", params=["post", "pre"])
def whole(request):
    """A ranker of three layers, two heads and 32 neurons each."""
    layer = tiny.tiny_layer(norm_placement=request.param)
    return tiny.build_ranker(tiny.tiny_spec(layers=(layer,) * 3), seed=3)


def test_what_does_nothing_goes_and_nothing_else(whole, tiny_data):
    weights = {name: tensor.clone() for name, tensor in whole.weights.items()}
    weights["layers.0.attention.output.weight"].zero_()  # a block
    weights["layers.1.attention.output.weight"][:, 8:] = 0  # a head
    weights["layers.2.ffn.down.weight"][:, 4:20:2] = 0  # eight neurons that are no neighbors
    idle = whole.changed(weights=weights)
    notes: dict[str, Any] = {}
    small = run(idle, tiny_data, notes, max_divergence=1e-6)
    assert notes["heads"] == [0, 1, 2]
    assert notes["ffn_widths"] == [32, 32, 24]
    assert notes["accepted"] == {"blocks": 1, "heads": 1, "neurons": 1}
    assert score_rmse(small, idle, tiny_data) < 1e-5
    assert small.spec.layers[0].attention is None


@pytest.mark.parametrize("limit", [0.01, 0.3])
def test_what_is_cut_is_what_was_tried_and_stays_within_the_limit(whole, tiny_data, limit):
    notes: dict[str, Any] = {}
    run(whole, tiny_data, notes, max_divergence=limit)
    assert 0 < notes["loss_chosen_on"]["after"] <= limit + 1e-5
    assert notes["loss_chosen_on"]["before"] == pytest.approx(0, abs=1e-5)
    assert notes["loss_drawn_anew"]["after"] > 0


def test_a_larger_limit_cuts_more(whole, tiny_data):
    sizes = []
    for limit in (0.001, 0.05, 1.0):
        notes: dict[str, Any] = {}
        run(whole, tiny_data, notes, max_divergence=limit)
        sizes.append(sum(notes["ffn_widths"]) + 8 * sum(notes["heads"]))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_accuracy_mode_never_raises_the_loss_on_judged_lists(whole, tiny_data):
    notes: dict[str, Any] = {}
    run(whole, tiny_data, notes, mode="accuracy", loss="labels")
    assert notes["loss_chosen_on"]["after"] <= notes["loss_chosen_on"]["before"] + 1e-6
    assert notes["trials"] > 0


def test_the_rise_is_a_share_of_the_loss_at_the_start(whole, tiny_data):
    notes: dict[str, Any] = {}
    run(whole, tiny_data, notes, loss="labels", max_rise=0.1)
    assert notes["loss_chosen_on"]["after"] <= 1.1 * notes["loss_chosen_on"]["before"] + 1e-5
    assert sum(notes["accepted"].values()) > 0


def test_refitting_brings_scores_nearer(whole, tiny_data):
    cut, fitted = (run(whole, tiny_data, max_divergence=0.002, compensate=how) for how in ("none", "refit"))
    assert fitted.spec == cut.spec
    assert score_rmse(fitted, whole, tiny_data) < score_rmse(cut, whole, tiny_data)


def test_it_is_repeatable_and_leaves_the_whole_alone(whole, tiny_data):
    before = whole.changed().fingerprint
    first, second = (run(whole, tiny_data, max_divergence=0.1) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert whole.changed().fingerprint == before
    assert all(torch.equal(whole.module.state_dict()[name], tensor) for name, tensor in whole.weights.items())


def test_what_cannot_be_is_refused(whole, tiny_data):
    with pytest.raises(ValueError, match="mode: accuracy needs loss: labels"):
        PruneGreedily(mode="accuracy")
    unjudged = tiny_data.only(list(tiny_data.queries))
    unjudged.qrels.clear()
    with pytest.raises(InputError, match="0 lists for prune_greedily"):
        run(whole, unjudged, loss="labels")
