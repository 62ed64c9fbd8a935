"""drop_layers: which layers stay is tested elsewhere; here, that those that stay take over the others' work."""

from __future__ import annotations

import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.drop_layers import DropLayers
from compressor.ranker.spec import DenseForm
from tests import tiny
from tests.passes.students import applied, score_rmse
from tests.ranker.cases import SPECS

PLACEMENTS = ("post", "pre")


@pytest.fixture(scope="module", params=PLACEMENTS)
def whole(request):
    """A ranker of five layers."""
    layer = tiny.tiny_layer().changed(norm_placement=request.param)
    return tiny.build_ranker(tiny.tiny_spec(layers=(layer,) * 5), seed=3)


@pytest.mark.parametrize("keep", ["every_other", (0, 2, 3, 4), (1, 2), (0, 3)], ids=str)
def test_refitting_brings_scores_nearer(whole, tiny_data, keep):
    cut, fitted = (applied(DropLayers(keep=keep, compensate=how), whole, tiny_data) for how in ("none", "refit"))
    assert fitted.spec == cut.spec
    assert score_rmse(fitted, whole, tiny_data) < 0.85 * score_rmse(cut, whole, tiny_data)


def test_layers_before_the_first_gap_stay_as_they_are(whole, tiny_data):
    fitted = applied(DropLayers(keep=(0, 1, 3, 4)), whole, tiny_data)
    for name, tensor in whole.weights.items():
        if name.startswith(("layers.0.", "layers.1.", "embeddings.")):
            assert torch.equal(fitted.weights[name], tensor), name
    assert not torch.equal(fitted.weights["layers.2.ffn.down.weight"], whole.weights["layers.3.ffn.down.weight"])


def test_all_layers_kept_is_no_change(whole):
    kept = applied(DropLayers(keep=(0, 1, 2, 3, 4)), whole)
    assert kept.weights.keys() == whole.weights.keys()
    assert all(torch.equal(kept.weights[name], tensor) for name, tensor in whole.weights.items())


def test_layers_that_add_nothing_are_dropped_without_loss(tiny_data):
    layer = tiny.tiny_layer().changed(norm_placement="pre")
    whole = tiny.build_ranker(tiny.tiny_spec(layers=(layer,) * 4), seed=3)
    weights = {
        name: torch.zeros_like(tensor)
        if name.startswith(("layers.1.", "layers.2.")) and (".attention.output." in name or ".ffn.down." in name)
        else tensor
        for name, tensor in whole.weights.items()
    }
    whole = whole.changed(weights=weights)
    fitted = applied(DropLayers(keep=(0, 3)), whole, tiny_data)
    spread = whole.score(tiny_data.texts(tiny_data.pairs())).std()
    assert score_rmse(fitted, whole, tiny_data) < 0.05 * spread  # a ridge on 48 pairs is not nothing


@pytest.mark.parametrize("name", SPECS)
def test_every_dense_family_is_refitted_and_others_are_refused(name, tiny_data):
    spec = SPECS[name]
    layer = next(layer for layer in reversed(spec.layers) if layer.attention and layer.ffn)
    whole = tiny.build_ranker(spec.changed(layers=(layer.changed(exit=None),) * 3), seed=5)
    step = DropLayers(keep=(0, 2))
    assert layer.attention
    assert layer.ffn
    if all(isinstance(one.form, DenseForm) for one in (layer.attention.output, layer.ffn.down)):
        fitted = applied(step, whole, tiny_data)
        assert score_rmse(fitted, whole, tiny_data) < score_rmse(
            applied(DropLayers(keep=(0, 2), compensate="none"), whole, tiny_data), whole, tiny_data
        )
    else:
        with pytest.raises(PlanError, match="factorized") as caught:
            step.plan(whole.spec)
        assert caught.value.setting == "compensate"
