"""cut_nested: the first neurons as a ranker of their own, by share, layer by layer or by budget, and faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import compressor.passes  # noqa: F401  # fills the registry
from compressor.errors import InputError
from compressor.export import write_graph
from compressor.passes import PlanError
from compressor.passes.cut_nested import CutNested
from compressor.passes.drop_layers import DropLayers
from compressor.passes.nest_widths import NestWidths
from compressor.passes.nested_widths import DEFAULT_SHARES, TRAINED, mixes, share_of
from compressor.passes.width_budget import Budget
from compressor.pipeline import check_recipe, make_stages, run_passes
from compressor.ranker.cost import macs, parameters
from compressor.ranker.history import StageRecord
from compressor.ranker.spec import ClassifierHead
from compressor.ranker.sub_network import SubNetwork, running
from compressor.recipe import parse_recipe
from compressor.registry import registered
from compressor.runtime.batching import padded
from tests import tiny
from tests.passes.students import QUICK, applied, unlabelled
from tests.ranker.cases import SPECS

SCORING = [name for name, spec in SPECS.items() if isinstance(spec.head, ClassifierHead)]


def with_widths(ranker, shares=DEFAULT_SHARES):
    """Return the ranker with the history of one whose neurons were nested; cutting asks for nothing else."""
    widths = [[share_of(layer.ffn_width, share) for layer in ranker.spec.layers] for share in shares]
    record = StageRecord(verb="nest_widths", notes={TRAINED: widths, "steps": 3})
    return ranker.changed(history=(*ranker.history, record))


@pytest.fixture(scope="module")
def nested():
    """A cross-encoder of four layers of 32 neurons."""
    return with_widths(tiny.build_ranker(tiny.tiny_spec(layers=(tiny.tiny_layer(),) * 4), seed=3))


def widths_of(ranker):
    return [layer.ffn_width for layer in ranker.spec.layers]


def prefix_scores(ranker, widths, pairs):
    with running(ranker.module, SubNetwork(ffn_widths=widths)):
        return ranker.score(pairs)


@pytest.mark.parametrize("name", SCORING)
def test_the_cut_scores_as_the_first_neurons_in_torch_and_onnx(name, tiny_pairs):
    ranker = with_widths(tiny.build_ranker(SPECS[name]))
    shares = [DEFAULT_SHARES[1 + index % 3] for index in range(len(ranker.spec.layers))]
    step = CutNested(share=tuple(shares))
    cut = applied(step, ranker)
    assert cut.spec == step.plan(ranker.spec)
    assert widths_of(cut) == [share_of(*one) for one in zip(widths_of(ranker), shares, strict=True)]
    expected = prefix_scores(ranker, widths_of(cut), tiny_pairs)
    np.testing.assert_allclose(cut.score(tiny_pairs), expected, atol=1e-4, rtol=0)
    model = write_graph(cut.spec, cut.weights, dialect="ort").SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    encoded = cut.tokenizer.encode_pairs(tiny_pairs)
    inputs = padded(encoded, np.arange(len(tiny_pairs)), cut.spec.pad_id)
    feeds = {one.name: inputs[one.name] for one in session.get_inputs()}
    np.testing.assert_allclose(session.run(["logits"], feeds)[0][:, 0], expected, atol=1e-4, rtol=0)


def test_cost_falls_by_what_was_cut(nested):
    cut = applied(CutNested(share=0.25), nested)
    gone, neurons = 4 * 24, 2 * tiny.WIDTH  # each neuron has a row of one matrix and a column of the other
    assert parameters(nested.spec) - parameters(cut.spec) == gone * (neurons + 1)
    assert sum(tensor.numel() for tensor in cut.weights.values()) == parameters(cut.spec)
    n_tokens = 30  # the last layer reads the first token alone
    assert macs(nested.spec, n_tokens) - macs(cut.spec, n_tokens) == 24 * neurons * (3 * n_tokens + 1)


def test_the_whole_is_left_as_it_is(nested, tiny_pairs):
    for step in (CutNested(share=1), CutNested(budget={"macs": 1}), CutNested(share=(1, 1, 1, 1))):
        result = applied(step, nested)
        assert result.spec == nested.spec
        assert result.fingerprint == nested.fingerprint
    mixed = applied(CutNested(share=(1, 0.5, 1, 0.25)), nested)
    assert mixed.spec.layers[0] == nested.spec.layers[0]
    assert widths_of(mixed) == [32, 16, 32, 8]


def test_mixes_grow_one_layer_at_a_time_from_the_last():
    found = list(mixes(3, (1, 0.5, 0.25)))
    assert found == [
        [0.25, 0.25, 0.25], [0.25, 0.25, 0.5], [0.25, 0.5, 0.5], [0.5, 0.5, 0.5],
        [0.5, 0.5, 1], [0.5, 1, 1], [1, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.72, 0.8, 0.9])
def test_a_budget_is_kept_by_the_widest_mix_within_it(nested, kind, share):
    budget = Budget.model_validate({kind: share})
    step = CutNested(budget=budget, n_tokens=20)
    cut = step.plan(nested.spec)
    shares = [layer.ffn_width / 32 for layer in cut.layers]
    assert shares == sorted(shares)
    assert len(set(shares)) <= 2
    limit = share * budget.cost(nested.spec, 20)
    assert budget.cost(cut, 20) <= limit
    every = list(mixes(4, DEFAULT_SHARES))
    wider = CutNested(share=tuple(every[every.index(shares) + 1])).plan(nested.spec)
    assert budget.cost(wider, 20) > limit
    assert widths_of(applied(step, nested)) == [layer.ffn_width for layer in cut.layers]


def test_layers_may_go_before_the_cut(nested, tiny_pairs):
    uneven = tiny.build_ranker(nested.spec.changed(layers=tuple(
        tiny.tiny_layer(ffn=layer.ffn.changed(
            up=layer.ffn.up.changed(outputs=width), down=layer.ffn.down.changed(inputs=width)
        )) for layer, width in zip(nested.spec.layers, (32, 24, 16, 8), strict=True)
    )))  # fmt: skip
    dropped = applied(DropLayers(keep=(1, 3), compensate="none"), with_widths(uneven))
    record = StageRecord(verb="drop_layers", notes={"kept_layers": [1, 3]})
    ranker = dropped.changed(history=(*dropped.history, record))
    cut = applied(CutNested(share=0.5), ranker)
    assert widths_of(cut) == [12, 4]
    np.testing.assert_allclose(cut.score(tiny_pairs), prefix_scores(ranker, [12, 4], tiny_pairs), atol=1e-4)


@pytest.mark.parametrize(
    ("later", "changes", "settings", "message"),
    [
        (None, {"history": ()}, {"share": 0.5}, "a ranker without nested widths.*put nest_widths before it"),
        ({"verb": "distill", "notes": {"steps": 9}}, {}, {"share": 0.5}, "distill behind nest_widths"),
        ({"verb": "drop_layers", "notes": {"kept_layers": [0, 7]}}, {}, {"share": 0.5}, "cut since nest_widths"),
        (None, {}, {"share": 0.75}, "24 of 32 neurons in layer 0.*choose among its shares: 1, 0.5, 0.25, 0.125"),
        (None, {}, {"share": [1, 1, 0.5, 0.3]}, "10 of 32 neurons in layer 3"),
        (None, {}, {"budget": {"macs": 0.8}, "shares": [0.8, 0.1]}, "neurons in layer 0, which nest_widths did not"),
    ],
)
def test_what_was_not_trained_is_not_cut(nested, later, changes, settings, message):
    history = (*nested.history, *([StageRecord.model_validate(later)] if later else ()))
    ranker = nested.changed(**{"history": history, **changes})
    with pytest.raises(InputError, match=f"(?s){message}"):
        applied(CutNested.model_validate(settings), ranker)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name one: share or budget"),
        ({"share": 0.5, "budget": {"macs": 0.5}}, "name one: share or budget"),
        ({"share": 0}, "greater than 0"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"share": []}, "share"),
        ({"budget": {"macs": 0.5}, "shares": [0.25, 1]}, "the largest first"),
        ({"budget": {"macs": 0.5}, "n_tokens": 0}, "n_tokens"),
    ],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CutNested.model_validate(settings)


def test_what_does_not_fit_the_shape_is_refused_when_planned(nested):
    with pytest.raises(PlanError, match="2 shares for 4 layers") as caught:
        CutNested(share=(1, 0.5)).plan(nested.spec)
    assert caught.value.setting == "share"
    with pytest.raises(PlanError, match=r"less than every layer with its smallest share, 0\.125") as caught:
        CutNested(budget={"macs": 0.05}).plan(nested.spec)
    least = float(caught.value.allowed.split()[1].rstrip("%")) / 100
    narrow = CutNested(budget={"macs": least + 1e-4}).plan(nested.spec)
    assert [layer.ffn_width for layer in narrow.layers] == [4] * 4


def test_several_widths_come_out_of_one_training(nested, tiny_data, monkeypatch, tmp_path):
    data, teacher = unlabelled(tiny_data), nested.changed(history=())
    nest: dict[str, Any] = {**QUICK, "epochs": 0.25, "losses": {"mse": 1}, "representations": {}}

    def recipe_of(**settings):
        passes = [{"nest_widths": nest}, {"cut_nested": settings}]
        names = {"train": "api-docs/train", "calibration": "api-docs/train"}
        return parse_recipe({"teacher": "packaged", "data": names, "passes": passes}, registered(), "r")

    def ranker_of(**settings):
        stages = make_stages(recipe_of(**settings), "t", lambda need: data, tmp_path / "stages")
        return run_passes(stages, lambda: teacher, lambda need: data, 12, said.append)

    said: list[str] = []
    half = ranker_of(share=0.5)
    monkeypatch.setattr(NestWidths, "apply", lambda *_: pytest.fail("trained again"))
    mixed = ranker_of(budget={"parameters": 0.7})
    assert "resuming behind nest_widths: 1 of 2 passes are stored" in said
    assert widths_of(half) == [16] * 4
    assert widths_of(mixed) == [8, 8, 16, 16]
    assert mixed.history[-1].notes["ffn_widths"] == widths_of(mixed)
    with pytest.raises(InputError, match="which nest_widths did not train"):
        ranker_of(share=0.3)
    shapes = check_recipe(recipe_of(share=0.25), teacher.spec, Path("r"))
    assert [[layer.ffn_width for layer in shape.layers] for shape in shapes] == [[32] * 4, [32] * 4, [8] * 4]
