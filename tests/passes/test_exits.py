"""add_exits and cut_at_exit: copies of the head that change no score, cuts that score as the exit did, and faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.passes import PlanError
from compressor.passes.add_exits import AddExits
from compressor.passes.cut_at_exit import CutAtExit
from compressor.passes.drop_layers import DropLayers
from compressor.passes.quantize import Quantize
from compressor.passes.subclone import Subclone
from compressor.ranker.cost import macs
from tests import tiny
from tests.passes.students import supply_for
from tests.ranker.cases import SPECS

WITH_EXITS = [name for name, spec in SPECS.items() if spec.exit_layers]
# Where the head reads the first token alone, the cut computes its last layer for that token only: other blocks in
# matrix products, sums in another order.
CUT_TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def ranker():
    """A cross-encoder of four layers."""
    return tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3)


@pytest.fixture(scope="module")
def elastic(ranker):
    """The same with exits behind layers 1 and 2, which score otherwise than the head's copies would."""
    result = run(AddExits(layers=(1, 2)), ranker)
    noise = torch.Generator().manual_seed(1)
    drawn = {n: t + torch.randn(t.shape, generator=noise) for n, t in result.weights.items() if ".exit." in n}
    return result.changed(weights={**result.weights, **drawn})


def run(step, ranker, data=None):
    planned = step.plan(ranker.spec)
    result = step.apply(ranker, supply_for(step, data, ranker))
    assert result.spec == planned
    return result


def refusal(step, ranker):
    with pytest.raises(PlanError) as caught:
        step.plan(ranker.spec)
    return caught.value


@pytest.mark.parametrize(
    ("n_layers", "layers", "expected"),
    [
        (2, "upper_two_thirds", (0,)),
        (3, "upper_two_thirds", (0, 1)),
        (6, "upper_two_thirds", (1, 2, 3, 4)),
        (12, "upper_two_thirds", tuple(range(3, 11))),
        (3, "every_other", (0,)),
        (6, "every_other", (1, 3)),
        (4, [0, 2], (0, 2)),
    ],
)
def test_which_layers_get_an_exit(n_layers, layers, expected):
    spec = tiny.tiny_spec(layers=(tiny.tiny_layer(),) * n_layers)
    assert AddExits(layers=layers).plan(spec).exit_layers == expected


def test_exits_start_as_copies_of_the_head(ranker, tiny_pairs):
    result = run(AddExits(layers=(0, 2)), ranker)
    names = [name for name in ranker.weights if name.startswith("head.")]
    assert names
    for layer in (0, 2):
        assert result.spec.layers[layer].exit == ranker.spec.head
        for name in names:
            copy = result.weights[name.replace("head.", f"layers.{layer}.exit.")]
            assert torch.equal(copy, ranker.weights[name])
    np.testing.assert_array_equal(result.score(tiny_pairs), ranker.score(tiny_pairs))
    trained = result.trainable()
    with torch.no_grad():
        trained.head.output.weight.add_(1)
    assert torch.equal(trained.layers[0].exit.output.weight, ranker.weights["head.output.weight"])


def test_an_untrained_exit_scores_as_dropped_layers_do(ranker):
    cut = run(CutAtExit(layer=2), run(AddExits(), ranker))
    dropped = run(DropLayers(keep=(0, 1, 2), compensate="none"), ranker)
    assert cut.fingerprint == dropped.fingerprint


def test_exits_that_are_there_stay_as_they_are(elastic, ranker):
    result = run(AddExits(layers=(0, 1)), elastic)
    assert result.spec.exit_layers == (0, 1, 2)
    assert all(torch.equal(result.weights[name], tensor) for name, tensor in elastic.weights.items())
    assert torch.equal(result.weights["layers.0.exit.dense.weight"], ranker.weights["head.dense.weight"])
    assert run(AddExits(layers=(1, 2)), elastic).fingerprint == elastic.fingerprint


@pytest.mark.parametrize(
    ("settings", "n_layers", "found", "setting"),
    [
        ({"layers": [1, 0]}, 4, "[1, 0] for a ranker of 4 layers", "layers"),
        ({"layers": [1, 1]}, 4, "[1, 1] for a ranker of 4 layers", "layers"),
        ({"layers": [3]}, 4, "[3] for a ranker of 4 layers", "layers"),
        ({}, 1, "a ranker of 1 layer, the last of which ends in the head", ""),
        ({"layers": "every_other"}, 2, "a ranker of 2 layers, the last of which ends in the head", ""),
    ],
)
def test_add_exits_refuses_layers_that_can_have_none(settings, n_layers, found, setting):
    ranker = tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * n_layers))
    fault = refusal(AddExits.model_validate(settings), ranker)
    assert (fault.found, fault.setting) == (found, setting)
    assert fault.allowed


def test_add_exits_refuses_a_bi_encoder():
    assert refusal(AddExits(), tiny.build_ranker(SPECS["similarity_mean"])).found.startswith("a bi-encoder")


@pytest.mark.parametrize("name", WITH_EXITS)
def test_a_cut_scores_as_the_exit_did(name, tiny_pairs):
    whole = tiny.build_ranker(SPECS[name])
    batch = tiny.batch_of(whole.spec, [1, 7, 40, 23, 2])
    for layer in whole.spec.exit_layers:
        cut = run(CutAtExit(layer=layer), whole)
        assert len(cut.spec.layers) == layer + 1
        assert cut.spec.exit_layers == ()
        with torch.inference_mode():
            expected = whole.module.trace(**batch).exits[layer]
            assert (whole.module(**batch) - expected).abs().max() > 0.01
            # Its relations are asked for, so that the last layer is computed for every token here too.
            assert torch.equal(cut.module.trace(**batch, relations=[layer]).logits, expected)
            torch.testing.assert_close(cut.module(**batch), expected, rtol=0, atol=CUT_TOLERANCE)
        assert macs(cut.spec, 20) < macs(whole.spec, 20)


def test_a_cut_notes_the_layers_that_stay(elastic):
    step = CutAtExit(layer=1)
    supply = supply_for(step, None, elastic)
    step.apply(elastic, supply)
    assert supply.notes["kept_layers"] == [0, 1]


def test_at_the_last_layer_nothing_is_cut(elastic):
    result = run(CutAtExit(layer=3), elastic)
    assert result.fingerprint == elastic.fingerprint


@pytest.mark.parametrize(
    ("layer", "found"), [(0, "layer 0, which has no exit"), (4, "layer 4, of a ranker of 4 layers")]
)
def test_a_cut_elsewhere_is_refused_and_the_exits_named(layer, found, elastic):
    fault = refusal(CutAtExit(layer=layer), elastic)
    assert (fault.found, fault.setting) == (found, "layer")
    assert fault.allowed == "1, 2: the layers with an exit; or 3, the last one"


def test_a_cut_of_a_ranker_without_exits_is_refused(ranker):
    fault = refusal(CutAtExit(layer=3), ranker)
    assert fault.found == "a ranker without exits"
    assert "put add_exits before cut_at_exit" in fault.fix


def test_exits_are_promised_until_layers_go(elastic):
    (promise,) = AddExits(layers=(1, 2)).promises(elastic)
    assert promise.check(elastic) is None
    assert promise.check(elastic.without_exits()) == "no exit behind layers 1, 2"
    one = elastic.spec.layers[1].changed(exit=None)
    layers = (elastic.spec.layers[0], one, *elastic.spec.layers[2:])
    weights = {name: tensor for name, tensor in elastic.weights.items() if not name.startswith("layers.1.exit.")}
    fewer = elastic.changed(spec=elastic.spec.changed(layers=layers), weights=weights)
    assert promise.check(fewer) == "no exit behind layer 1"
    assert promise.check(run(CutAtExit(layer=1), elastic)) is None


def test_a_cut_is_promised_to_stay_cut(elastic):
    cut = run(CutAtExit(layer=1), elastic)
    (promise,) = CutAtExit(layer=1).promises(cut)
    assert promise.check(cut) is None
    assert promise.check(elastic) == "4 layers"


@pytest.mark.parametrize(
    ("kept", "exits"),
    [([0, 1, 3], {1: 1}), ([1, 2, 3], {0: 1, 1: 2}), ([0, 1, 2], {1: 1}), ([0, 1], {}), ([2, 3], {0: 2})],
)
def test_dropped_layers_take_their_exits_along(kept, exits, elastic):
    result = run(DropLayers(keep=tuple(kept), compensate="none"), elastic)
    assert result.spec.exit_layers == tuple(exits)
    for new, old in exits.items():
        for name in ("dense.weight", "output.bias"):
            assert torch.equal(
                result.weights[f"layers.{new}.exit.{name}"], elastic.weights[f"layers.{old}.exit.{name}"]
            )
    for name in ("head.dense.weight", "head.output.bias"):
        assert torch.equal(result.weights[name], elastic.weights[name])


@pytest.mark.parametrize("step", [DropLayers(keep={"layers": 2}), Subclone(layers=2)], ids=lambda step: step.verb)
def test_layers_are_not_chosen_by_measurement_where_exits_go_with_them(step, elastic):
    fault = refusal(step, elastic)
    assert fault.found.startswith("layers to be chosen by measurement, of a ranker with exits")
    assert f"put {step.verb} before add_exits" in fault.fix
    step.plan(elastic.without_exits().spec)


def test_a_subclone_of_everything_keeps_exits_and_a_narrow_one_narrows_them(elastic, tiny_data):
    same = run(Subclone(width=16), elastic, tiny_data)
    assert same.fingerprint == elastic.fingerprint
    narrow = run(Subclone(width=8, layers=[1, 2, 3], weights="subcloned"), elastic, tiny_data)
    assert narrow.spec.exit_layers == (0, 1)
    assert narrow.spec.layers[0].exit.dense.inputs == 8
    cut, whole = narrow.weights["layers.0.exit.dense.weight"], elastic.weights["layers.1.exit.dense.weight"]
    assert cut.shape == (8, 8)
    assert np.isin(cut, whole).all()


def test_exits_may_be_added_to_a_subclone(elastic, ranker, tiny_data):
    step = Subclone(ffn_width=20)
    small = run(step, ranker, tiny_data)
    (promise,) = step.promises(small)
    assert promise.check(run(AddExits(), small)) is None
    assert promise.check(ranker) is not None


def test_quantizing_and_cutting_may_stand_in_either_order(elastic):
    first_cut = run(Quantize(scheme="int8_dynamic"), run(CutAtExit(layer=1), elastic))
    first_rounded = run(CutAtExit(layer=1), run(Quantize(scheme="int8_dynamic"), elastic))
    assert first_cut.fingerprint == first_rounded.fingerprint
    assert first_cut.spec.layers[1].ffn.up.precision.kind == "int8_dynamic"
    assert first_cut.spec.head.dense.precision.kind == "fp32"
    (promise,) = Quantize(scheme="int8_dynamic").promises(run(Quantize(scheme="int8_dynamic"), elastic))
    assert promise.check(first_rounded) is None


def test_exits_after_quantizing_are_refused(ranker):
    fault = refusal(AddExits(), run(Quantize(scheme="int8_dynamic"), ranker))
    assert "put add_exits before quantize" in fault.fix


def test_a_new_head_leaves_exits_alone(elastic):
    from compressor.passes.start_from import StartFrom

    result = run(StartFrom(checkpoint="self", head="new"), elastic)
    changed = {name for name, tensor in result.weights.items() if not torch.equal(tensor, elastic.weights[name])}
    assert changed == {"head.output.weight", "head.output.bias"}


def test_settings_that_mean_nothing_are_refused():
    for layers in ([], "lower_third", [-1]):
        with pytest.raises(ValueError, match="layers"):
            AddExits.model_validate({"layers": layers})
    with pytest.raises(ValueError, match="layer"):
        CutAtExit.model_validate({"layer": -1})
